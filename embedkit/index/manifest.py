"""What stands in an index folder, format version 4; without a recipe it is version 3, and 2 without a sparse leg as well.

    manifest-000003.json            one version of the index: its segments, with size and SHA-256 of every file, and a checksum
                                    of itself; the one with the highest number counts, its rename is the only commit
    segment-0001.fine.npy           (rows, dim) float32, float16 or uint8: the rows that verify a shortlist
    segment-0001.codes.faiss        the light codes, held in RAM; absent where the segment is searched exactly
    segment-0001.documents.sqlite   titles, texts, metadata and its postings
    segment-0001.ids.npy, .ids.txt  what a document number is called
    segment-0001.starts.npy, .spans.npy   where the rows of each document begin, and which characters each covers; absent where
                                    every document has one row
    segment-0001.terms.txt, .terms.npy    the terms of the sparse leg, in order, and where each begins
    segment-0001.postings.npy       where the entries of each term begin
    segment-0001.posted.npy, .weights.npy   the entries: document numbers, and term frequencies (BM25) or weights
    segment-0001.lengths.npy        terms in each document, for BM25
    segment-0001.built.json         what building the segment was predicted to take, and what it took: for people, no part of the index
    segment-0001.deleted-000003.npy bits of the documents that are deleted from version 3 on
    ranges-000001.npy               (2, dim) lowest value and step of each dimension, for int8 rows
    lock                            empty; whoever writes holds it

Every file is written once. Nothing outside this package reads them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict, get_type_hints

from embedkit.errors import IntegrityError, UsageError
from embedkit.limits import MANIFEST, read_at_most, shown
from embedkit.storage import BLOCK, BlockRecord, check_blocks, check_is_text, check_size, read_json, sealed_json
from embedkit.typed import misfit

FORMAT, VERSION = "embedkit-index", 4
WITHOUT_SPARSE, WITHOUT_RECIPE = 2, 3  # the versions of indexes without these, which older code reads
READ = f"formats {WITHOUT_SPARSE} to {VERSION}"
OLD_MANIFEST = "manifest.json"  # of version 1
LOCK = "lock"
FINE, CODES, DOCUMENTS = "fine.npy", "codes.faiss", "documents.sqlite"
IDS, ID_TEXTS, STARTS, SPANS = "ids.npy", "ids.txt", "starts.npy", "spans.npy"
TERM_TEXTS, TERMS, POSTINGS, POSTED, WEIGHTS = "terms.txt", "terms.npy", "postings.npy", "posted.npy", "weights.npy"
LENGTHS = "lengths.npy"
BUILT = "built.json"  # beside the parts: code that does not know it leaves it alone
SPARSE_PARTS = frozenset({TERM_TEXTS, TERMS, POSTINGS, POSTED, WEIGHTS, LENGTHS})
PARTS = frozenset({FINE, CODES, DOCUMENTS, IDS, ID_TEXTS, STARTS, SPANS}) | SPARSE_PARTS
MANIFEST_NAME = re.compile(r"manifest-(\d{6,12})\.json")
OURS = re.compile(r"(segment-\d{4,9}\.[a-z0-9.-]+|ranges-\d{6,12}\.npy|manifest-\d{6,12}\.json)(\.partial)?")

Metric = Literal["cosine", "dot"]
Method = Literal["minmax", "rrf"]


class Settings(TypedDict, total=False):
    """Arguments with which `embedkit.load` opens the model again, as far as an index brings them."""

    model: str | None
    revision: str | None
    max_tokens: int | None
    dim: int | None
    layers: int | None
    prompts: Mapping[str, str] | None
    prompt_names: Mapping[str, str] | None
    profile: Mapping[str, Any] | None


@dataclass(frozen=True)
class Source:
    """What made the vectors; all None for bare vectors that name nothing."""

    model: str | None = None
    fingerprint: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)  # `Settings`, and others that nobody reads
    compute: Mapping[str, str] = field(default_factory=dict)
    on_long: str = "truncate"  # what became of texts beyond the model's limit; "chunk" gave them several rows
    first_input: str | None = None  # the literal first text that the model read, its prompt in front


@dataclass(frozen=True)
class Bm25:
    """How texts become terms, and how these are weighed; the defaults are Anserini's."""

    k1: float = 0.9  # how fast a term that comes again counts less
    b: float = 0.4  # how much of its length a document is divided by
    stem: str = "english"  # a Snowball algorithm, or "none"
    stop: str = "english"  # stop words: "english" (Lucene's 33) or "none"

    @property
    def fits(self) -> bool:
        """Whether k1 and b are what they can be; beyond them nothing changes but the rounding."""
        return 0 <= self.k1 <= 1000 and 0 <= self.b <= 1


@dataclass(frozen=True)
class Sparse:
    """The sparse leg: by BM25, by the weights of a model, or, where both are None, by weights from a file."""

    bm25: Bm25 | None = None
    model: str | None = None
    fingerprint: str | None = None
    # what hybrid search does unless told otherwise
    fusion: Method = "minmax"
    weight: float = 0.5  # of the dense leg

    @property
    def parts(self) -> frozenset[str]:
        """The files that each segment has for it."""
        return SPARSE_PARTS if self.bm25 is not None else SPARSE_PARTS - {LENGTHS}


@dataclass(frozen=True)
class Recipe:
    """The recipe that the builder named. What was built stands in the manifest's own fields: options beat a recipe."""

    name: str  # of one that embedkit brings, or of a file
    hash: str  # SHA-256 of the settings
    settings: Mapping[str, Any]  # with every default written out


def segment_file(number: int, part: str) -> str:
    """The name of a part of a segment."""
    return f"segment-{number:04}.{part}"


@dataclass(frozen=True)
class SegmentRecord:
    """What a manifest says of one segment."""

    number: int
    rows: int
    documents: int
    empty_texts: int
    coarse: str | None  # faiss factory string; None: searched exactly
    probes: int | None  # inverted lists that a query visits
    shortlist: int  # candidates that the fine rows verify, at least
    # what a search keeps of the exact neighbours, mean and lower end of its interval: at 10 of rows held out, or of the queries
    # that the index was tuned with
    recall: tuple[float, float] | None
    files: Mapping[str, BlockRecord]  # by PARTS
    deleted: int = 0  # documents
    deletion: int | None = None  # version whose file holds the bits
    deletion_file: BlockRecord | None = None

    def name(self, part: str) -> str:
        return segment_file(self.number, part)

    @property
    def deletion_name(self) -> str:
        return self.name(f"deleted-{self.deletion:06}.npy")

    def named_files(self) -> Iterator[tuple[str, BlockRecord]]:
        """(file name, record) of all its files."""
        for part, record in self.files.items():
            yield self.name(part), record
        if self.deletion_file is not None:
            yield self.deletion_name, self.deletion_file


@dataclass(frozen=True)
class Manifest:
    """One version of an index."""

    number: int
    dim: int
    metric: Metric
    unit_rows: bool  # the norm: True where every row has length 1 (or 0)
    fine: str  # dtype of the rows on disk: float32, float16 or int8
    coarse: str  # as asked: "auto", "none" or a faiss factory string
    bytes_per_vector: int | None  # as asked, for "auto"
    recall_target: float | None  # as asked: what settings are held to on rows held out
    texts: bool  # whether documents have texts, or ids alone
    source: Source
    created: str  # ISO 8601, UTC
    embedkit: str
    next_segment: int
    segments: tuple[SegmentRecord, ...]
    ranges: int | None = None  # version whose file holds the ranges of int8 rows
    ranges_file: BlockRecord | None = None
    sparse: Sparse | None = None
    recipe: Recipe | None = None

    @property
    def ranges_name(self) -> str:
        return f"ranges-{self.ranges:06}.npy"

    @property
    def documents(self) -> int:
        """That are there: deleted ones are not counted."""
        return sum(segment.documents - segment.deleted for segment in self.segments)

    def named_files(self) -> dict[str, BlockRecord]:
        """File name -> record, of every file of this version but the manifest."""
        found = {name: record for segment in self.segments for name, record in segment.named_files()}
        if self.ranges_file is not None:
            found[self.ranges_name] = self.ranges_file
        return found

    def build_records(self) -> list[str]:
        """The names of the files, which need not be there, that say how its segments were built."""
        return [segment.name(BUILT) for segment in self.segments]

    def sealed(self) -> bytes:
        body = asdict(self)
        for name in ("sparse", "recipe"):
            if body[name] is None:
                del body[name]
        return sealed_json({"format": FORMAT, "version": self.version, **body})

    @property
    def version(self) -> int:
        """Of the format: the oldest that has a place for all of it."""
        if self.recipe is not None:
            return VERSION
        return WITHOUT_SPARSE if self.sparse is None else WITHOUT_RECIPE


TYPES: dict[type, dict[str, Any]] = {
    kind: get_type_hints(kind) for kind in (Source, Bm25, Sparse, Recipe, SegmentRecord, Manifest)
}


def manifest_name(number: int) -> str:
    return f"manifest-{number:06}.json"


def manifest_numbers(folder: Path) -> list[int]:
    """Of the versions that stand in the folder, ascending."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        found = ((MANIFEST_NAME.fullmatch(entry.name), entry) for entry in entries)
        return sorted(int(match[1]) for match, entry in found if match and _is_file(entry))


def _is_file(entry: os.DirEntry[str]) -> bool:
    """As it stood when the folder was listed: a writer may remove it meanwhile. Links are followed."""
    return entry.is_file(follow_symlinks=False) or (entry.is_symlink() and Path(entry.path).is_file())


def newest_number(folder: Path) -> int:
    """Raises UsageError where there is no index, IntegrityError where there is one of the first format."""
    check_is_text(folder)
    if numbers := manifest_numbers(folder):
        return numbers[-1]
    if (folder / OLD_MANIFEST).is_file() and (folder / "fine.npy").is_file():
        raise IntegrityError(f"{folder} has index format 1, this embedkit reads {READ}; build it again.")
    if (folder / LOCK).is_file():
        raise UsageError(
            f"{folder} was begun and is not finished; go on with: embedkit index build CORPUS -o {folder} --resume."
        )
    raise UsageError(f"{folder} holds no index; make one with: embedkit index build CORPUS -o {folder}.")


def read_manifest(folder: Path, number: int | None = None) -> Manifest:
    """The newest version, or that one. Raises UsageError where there is no index, IntegrityError where the manifest is damaged
    or newer than this code."""
    wanted = newest_number(folder) if number is None else number
    path = folder / manifest_name(wanted)
    try:
        body = read_json(path)
    except FileNotFoundError:  # a writer has just replaced it
        if number is None and newest_number(folder) != wanted:
            return read_manifest(folder)
        raise IntegrityError(f"{path} is missing; restore it or build the index again.") from None
    if body.pop("format", None) != FORMAT:
        raise IntegrityError(f"{path} describes something else than an index.")
    version = body.pop("version", None)
    if version not in (WITHOUT_SPARSE, WITHOUT_RECIPE, VERSION):
        raise IntegrityError(
            f"{folder} has index format {shown(version)}, this embedkit reads {READ}; "
            f"{'update embedkit' if isinstance(version, int) and version > VERSION else 'build it again'}."
        )
    try:
        manifest = _from_json(body)
        _check(manifest)
        if version != manifest.version:
            raise ValueError(f"format {version}, sparse {manifest.sparse}, recipe {manifest.recipe}")
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise IntegrityError(f"{path} says what no index can be ({error!s:.300}); build the index again.") from None
    if path.name != manifest_name(manifest.number):
        raise IntegrityError(f"{path} is the manifest of version {manifest.number}; give it its own name again.")
    return manifest


def _from_json(body: Mapping[str, Any]) -> Manifest:
    segments = tuple(
        SegmentRecord(**{**record, "recall": None if record["recall"] is None else tuple(record["recall"])})
        for record in body["segments"]
    )
    sparse = body.get("sparse")
    if sparse is not None:
        sparse = Sparse(**{**sparse, "bm25": None if sparse["bm25"] is None else Bm25(**sparse["bm25"])})
    recipe = None if body.get("recipe") is None else Recipe(**body["recipe"])
    source = Source(**body["source"])
    return Manifest(**{**body, "source": source, "segments": segments, "sparse": sparse, "recipe": recipe})


def _check(manifest: Manifest) -> None:
    """Raises ValueError for facts that do not fit together: before any of them sizes a buffer or names a file."""
    sparse = () if manifest.sparse is None else (manifest.sparse,)
    settings = [leg.bm25 for leg in sparse if leg.bm25 is not None]
    recipe = () if manifest.recipe is None else (manifest.recipe,)
    for record in (manifest, manifest.source, *manifest.segments, *sparse, *settings, *recipe):
        for name, kind in TYPES[type(record)].items():
            if (reason := misfit(getattr(record, name), kind, name)) is not None:
                raise ValueError(reason)
    if (reason := misfit(manifest.source.settings, Settings, "settings")) is not None:
        raise ValueError(reason)
    for name in ("number", "dim", "next_segment"):
        _whole(manifest, name, 1)
    if manifest.metric not in ("cosine", "dot") or manifest.fine not in ("float32", "float16", "int8"):
        raise ValueError(f"metric {manifest.metric!r}, rows in {manifest.fine!r}")
    if not (manifest.fine == "int8") == (manifest.ranges is not None) == (manifest.ranges_file is not None):
        raise ValueError("ranges without int8 rows, or the other way round")
    if any(not 0 <= leg.weight <= 1 for leg in sparse) or any(not one.fits for one in settings):
        raise ValueError(f"a sparse leg of {manifest.sparse}")
    numbers = [segment.number for segment in manifest.segments]
    if len(set(numbers)) != len(numbers):
        raise ValueError("a segment stands there twice")
    for segment in manifest.segments:
        for name in ("number", "rows", "documents", "empty_texts", "shortlist", "deleted"):
            _whole(segment, name, 0)
        if segment.probes is not None:
            _whole(segment, "probes", 1)
        if not 1 <= segment.number < manifest.next_segment or segment.deleted > segment.documents:
            raise ValueError(f"segment {segment.number}")
        expected = frozenset() if manifest.sparse is None else manifest.sparse.parts
        if not {FINE, DOCUMENTS, IDS} <= set(segment.files) <= PARTS or SPARSE_PARTS & set(segment.files) != expected:
            raise ValueError(f"the files {sorted(segment.files)} of a segment")
        if (segment.coarse is None) != (CODES not in segment.files):
            raise ValueError("codes without a factory string, or the other way round")
        if (segment.deletion is None) != (segment.deletion_file is None):
            raise ValueError("a deletion without its file")
    for version in (manifest.ranges, *(segment.deletion for segment in manifest.segments)):
        if version is not None and not 1 <= version <= manifest.number:
            raise ValueError(f"a file of version {version}")
    for record in manifest.named_files().values():
        if record["block"] != BLOCK or record["bytes"] < 0:
            raise ValueError(f"a file of {record['bytes']} bytes in blocks of {record['block']}")
        if len(record["sha256"]) != -(-record["bytes"] // BLOCK):
            raise ValueError("blocks without a checksum")


def _whole(record: Any, name: str, least: int) -> None:
    value = getattr(record, name)
    if type(value) is not int or not least <= value < 1 << 48:
        raise ValueError(f"{name} is {shown(value)}")


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Raises IntegrityError for the first file that is missing or of another length."""
    for name, record in manifest.named_files().items():
        check_size(folder / name, record)


def check_files(folder: Path, manifest: Manifest) -> None:
    """Reads every byte. Raises IntegrityError for the first file that is missing, changed or foreign.

    Files of other versions, and what a writer was about when it ended, are no harm: the next writer removes them."""
    own = folder / manifest_name(manifest.number)
    if (
        read_at_most(own, MANIFEST, IntegrityError) != manifest.sealed()
    ):  # its checksum is of what it says, not of the spaces between
        raise IntegrityError(f"{own} has changed since it was written; restore it or build the index again.")
    for name, record in manifest.named_files().items():
        check_blocks(folder / name, record)
    for name in manifest.build_records():
        path = folder / name
        if path.is_file() and read_at_most(path, MANIFEST, IntegrityError) != sealed_json(read_json(path)):
            raise IntegrityError(f"{path} has changed since it was written; restore it, or remove it.")
    known = {LOCK, manifest_name(manifest.number), *manifest.named_files()}
    foreign = sorted(
        entry.name for entry in folder.iterdir() if entry.name not in known and not _passing(entry.name, manifest)
    )
    if foreign:
        raise IntegrityError(f"{folder} holds {', '.join(foreign)}, which its manifest does not name; remove it.")


def is_leftover(path: Path) -> bool:
    """Whether a file may be of a build that has not ended, and of nothing else."""
    return path.name == LOCK or OURS.fullmatch(path.name) is not None or path.name.startswith(("build.", "add."))


def _passing(name: str, manifest: Manifest) -> bool:
    """Whether a file is of an older version that somebody still reads, or of a writer that has not committed."""
    return OURS.fullmatch(name) is not None or name.startswith(("build.", "add."))
