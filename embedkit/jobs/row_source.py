"""Vectors that are taken as they are: an array, or what `embedkit embed` wrote; whose they are, and what made them."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np

from embedkit.corpus import Fields, read_corpus
from embedkit.corpus.arrow import PlacedRows, parquet_rows
from embedkit.corpus.documents import ROW, checked_id, to_document
from embedkit.corpus.formats import jsonl_rows
from embedkit.engine import open_vectors
from embedkit.engine.outputs import Names
from embedkit.engine.vector_file import RowNumbers, read_column
from embedkit.engine.vector_folder import JoinedRows, json_columns, parts_of
from embedkit.errors import DataError, IntegrityError, UsageError
from embedkit.index.ids import several
from embedkit.index.manifest import Source
from embedkit.index.update import Change
from embedkit.index.writer import Content
from embedkit.limits import shown
from embedkit.typed import checked, parsed
from embedkit.types import Array, Document
from embedkit.vectors import Ranges

BLOCK = 4096  # documents taken at once
CAPTION = "caption"  # what clip-retrieval calls the text of an image


@dataclass(frozen=True)
class RowSource:
    rows: Array  # (n, dim)
    ids: Sequence[str]  # of the documents, one a row; of those with several rows, the same one several times
    spans: Array | None = (
        None  # (n, 2) characters of its document that each row covers, where documents have several rows
    )
    set_aside: frozenset[str] = frozenset()  # documents of the corpus that have no row
    source: Source = field(default_factory=Source)
    similarity: str = "cosine"
    documents: Iterable[Document] | None = None  # that came with the rows, in the same order

    @property
    def dim(self) -> int:
        return int(self.rows.shape[1])

    @classmethod
    def of(
        cls,
        source: Any,
        ids: Sequence[str] | str | None = None,
        limit: int | None = None,
        fields: Fields = Fields(),  # noqa: B008
        vectors: str | None = None,
    ) -> RowSource:
        """source: an array (n, dim), the path of a NAME.npy or NAME.parquet, or a folder of such (see `vector_folder`), whose
        metadata `fields` reads. vectors: the column of a parquet file of another program, or of a folder of such, that holds them,
        beside the documents. Raises DataError for an array of another kind, UsageError for ids that are not one a row, and
        what `open_vectors` raises."""
        if isinstance(source, np.ndarray):
            if source.ndim != 2 or source.dtype.kind not in "fiu" or source.shape[1] == 0:
                raise DataError(
                    f"An array of {source.dtype} of shape {source.shape} came; expected numbers of shape (rows, dim)."
                )
            made = cls(source, RowNumbers(len(source)))
        elif vectors is not None:
            made = cls._of_column(Path(source), vectors, fields)
        elif Path(source).is_dir():
            made = cls._of_folder(Path(source), fields)
        else:
            made = cls._of_file(Path(source))
        if ids is not None:
            named = [
                checked_id(str(identifier), f"ids, row {number}") for number, identifier in enumerate(several(ids), 1)
            ]
            if len(named) != len(made.rows):
                raise UsageError(f"{len(named)} ids came with {len(made.rows)} vectors; give one id a vector.")
            made = replace(made, ids=named, spans=None)
        if limit is None:
            return made
        end = sum(rows for _, rows in itertools.islice(made.groups(), min(limit, sys.maxsize)))  # of so many documents
        spans = None if made.spans is None else made.spans[:end]
        return replace(made, rows=made.rows[:end], ids=made.ids[:end], spans=spans)

    @classmethod
    def _of_folder(cls, folder: Path, fields: Fields) -> RowSource:
        """All files of a folder as one. Raises DataError where they do not fit each other."""
        parts = parts_of(folder)
        if not parts.vectors:
            raise UsageError(f"{folder} holds no vectors; expected .npy files, or parquet files that embedkit wrote.")
        made = [cls._of_file(path) for path in parts.vectors]
        parts.check_lengths([len(part.rows) for part in made])
        kinds = [f"width {part.dim} by {str(part.source.fingerprint)[:12]} ({part.source.on_long})" for part in made]
        if odd := [place for place, kind in enumerate(kinds) if kind != kinds[0]]:
            raise DataError(
                f"{parts.vectors[odd[0]]} holds rows of {kinds[odd[0]]}, {parts.vectors[0]} of {kinds[0]}; give a folder of one "
                f"model's vectors."
            )
        named = [path.suffix == ".parquet" or Names(path).ids.exists() for path in parts.vectors]
        if any(named) != all(named):
            raise DataError(
                f"{parts.vectors[named.index(False)]} has no ids beside it, other files of {folder} have; add them."
            )
        rows = cast(Array, JoinedRows([part.rows for part in made]))
        spans = [part.spans for part in made if part.spans is not None]
        joined = replace(
            made[0],
            rows=rows,
            ids=list(itertools.chain.from_iterable(part.ids for part in made)) if all(named) else RowNumbers(len(rows)),
            spans=np.concatenate(spans) if spans else None,
            set_aside=frozenset().union(*(part.set_aside for part in made)),
        )
        if not parts.metadata:
            return joined
        if not all(named) and fields.id not in (None, ROW):
            ids = [document.id for document in MetadataRows(parts.metadata, fields)]
            return replace(joined, ids=ids, documents=MetadataRows(parts.metadata, fields))
        return replace(
            joined, documents=MetadataRows(parts.metadata, fields if all(named) else replace(fields, id=ROW))
        )

    @classmethod
    def _of_column(cls, path: Path, vectors: str, fields: Fields) -> RowSource:
        paths = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
        if not paths or any(one.suffix != ".parquet" for one in paths):
            raise UsageError(
                f"{path} is no parquet file, nor a folder of such; vectors are read from a column of parquet."
            )
        parts = [read_column(one, vectors) for one in paths]
        if odd := [place for place, part in enumerate(parts) if part.shape[1] != parts[0].shape[1]]:
            raise DataError(
                f"{paths[odd[0]]} holds vectors of {parts[odd[0]].shape[1]} numbers, {paths[0]} of {parts[0].shape[1]}; give files "
                f"of one model's vectors."
            )
        documents = MetadataRows(paths, fields, vectors)
        rows = parts[0] if len(parts) == 1 else cast(Array, JoinedRows(parts))
        return cls(rows, [document.id for document in documents], documents=documents)

    @classmethod
    def _of_file(cls, path: Path) -> RowSource:
        file, names = open_vectors(path), Names(path)
        manifest, ids, spans = file.manifest, file.ids, None
        if manifest.get("precision") == "binary":
            raise UsageError(
                f"{path} holds bits, by which nothing can be verified; embed again with --precision float16 or int8: an index makes "
                f"light codes of its own (--coarse)."
            )
        rows = file.rows if file.ranges is None else cast(Array, DecodedRows(file.rows, file.ranges))
        on_long = manifest.get("on_long", "truncate")
        if on_long == "chunk":
            ids, spans = _chunks(names.chunks, manifest)
        aside: frozenset[str] = frozenset()
        if manifest.get("set_aside"):
            aside = frozenset(row["id"] for row in _lines(names.quarantine, manifest, SetAside))
        settings = manifest.get("settings", {})
        made_by = Source(
            model=settings.get("model"),
            fingerprint=manifest.get("fingerprint"),
            settings=settings,
            compute=manifest.get("compute", {}),
            on_long=on_long,
            first_input=manifest.get("first_input"),
        )
        return cls(rows, ids, spans, aside, made_by, manifest.get("similarity", "cosine"))

    def groups(self) -> Iterator[tuple[str, int]]:
        """(document id, how many rows it has), in order."""
        if self.spans is None:
            yield from ((identifier, 1) for identifier in self.ids)
            return
        for identifier, rows in itertools.groupby(self.ids):
            yield identifier, sum(1 for _ in rows)


class DecodedRows:
    """int8 codes (n, dim) that are sliced as rows, and become float32 where somebody makes an array of them."""

    def __init__(self, codes: Array, ranges: Ranges) -> None:
        self._codes, self._ranges, self.shape = codes, ranges, codes.shape

    def __len__(self) -> int:
        return len(self._codes)

    def __getitem__(self, place: Any) -> DecodedRows:
        return DecodedRows(self._codes[place], self._ranges)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self._ranges.decode(self._codes), dtype)


class MetadataRows:
    """The documents of parquet files beside vectors, read anew each time. Where no text is named and none stands there, it is
    clip-retrieval's caption, or empty; what an export wrote as JSON is mappings and lists again. vectors: the column of these,
    which is no metadata."""

    def __init__(self, paths: Sequence[Path], fields: Fields, vectors: str | None = None) -> None:
        self._paths, self._fields, self._vectors = paths, fields, vectors

    def __iter__(self) -> Iterator[Document]:
        placed = itertools.chain.from_iterable(map(self._rows, self._paths))
        for position, (where, row) in enumerate(placed):
            if self._fields.text is None and "text" not in row:
                row = {name: value for name, value in row.items() if name != CAPTION} | {"text": row.get(CAPTION) or ""}
            yield to_document(row, where, self._fields, position)

    def _rows(self, path: Path) -> PlacedRows:
        packed = json_columns(path)
        left_out = [*self._fields.leave_out, *([self._vectors] if self._vectors else ())]
        for where, row in parquet_rows(path, left_out):
            try:
                yield where, {**row, **{name: parsed(row[name]) for name in packed if row.get(name) is not None}}
            except ValueError as error:
                raise DataError(f"{where}: {', '.join(packed)} is no JSON ({error}); export the index again.") from None


class SetAside(TypedDict):
    id: str


class Chunk(TypedDict):
    document: str
    start: int
    end: int


def _lines(path: Path, manifest: Mapping[str, Any], kind: Any) -> Iterator[Any]:
    """The rows of a file beside vectors. Raises IntegrityError where it is not theirs, or its rows are of another kind."""
    if path.name not in manifest["files"]:
        raise IntegrityError(f"The manifest of the vectors tells of {path.name}, and names no such file; embed again.")
    try:
        with path.open("rb") as stream:
            for where, row in jsonl_rows(stream, str(path)):
                yield checked(row, kind, where, step="embed again")
    except DataError as error:
        raise IntegrityError(str(error)) from None


def _chunks(path: Path, manifest: Mapping[str, Any]) -> tuple[list[str], Array]:
    """The document and the span of each row."""
    documents, spans = [], []
    for chunk in _lines(path, manifest, Chunk):
        if not 0 <= chunk["start"] <= chunk["end"] < 1 << 32:
            raise IntegrityError(f"{path}: a row covers the characters {shown(chunk)}, which no text has; embed again.")
        documents.append(chunk["document"])
        spans.append((chunk["start"], chunk["end"]))
    if len(documents) != manifest["count"]:
        raise IntegrityError(f"{path} has {len(documents)} rows, {manifest['count']} were expected; embed again.")
    return documents, np.array(spans, dtype="<u4").reshape(-1, 2)


def add_vectors(change: Change, source: RowSource, documents: Any, fields: Fields, *, whole: bool) -> int:
    """The rows of a source and, from `documents`, a corpus in the same order, their texts; how many documents came.

    whole: the corpus must end with the rows. Raises DataError where ids do not fit, with what `Change.add` raises."""
    texts = None if documents is None else read_corpus(documents, fields)
    kept = documents is not None and change.old.texts
    writer, counts, empty = change.document_writer(), [], 0
    groups = source.groups()
    while block := list(itertools.islice(groups, BLOCK)):
        some = [_document(identifier, texts, source.set_aside) for identifier, _ in block]
        writer.append(some, texts=kept)
        counts += [rows for _, rows in block] if source.spans is not None else []
        empty += sum(not document.full_text for document in some) if kept else 0
    writer.close()
    rest = None if texts is None or not whole else _next(texts, source.set_aside)
    if rest is not None:
        raise DataError(
            f"After the last vector stands the document {rest.id!r}; give the corpus that was embedded, in the same order."
        )
    several = None if source.spans is None else np.array(counts)
    change.add(source.rows, Content(writer.count, empty, several, source.spans))
    return writer.count


def _next(texts: Iterator[Document], set_aside: frozenset[str]) -> Document | None:
    return next((document for document in texts if document.id not in set_aside), None)


def _document(identifier: str, texts: Iterator[Document] | None, set_aside: frozenset[str]) -> Document:
    if texts is None:
        return Document(id=identifier, text="")
    document = _next(texts, set_aside)
    if document is None or document.id != identifier:
        found = "nothing" if document is None else f"the document {document.id!r}"
        raise DataError(
            f"Beside the vector of {identifier!r} stands {found}; give the corpus that was embedded, in the same order (ids "
            f"come from NAME.ids.txt beside the vectors, and are row numbers where it is missing)."
        )
    return document


def rows_a_document(documents: Iterable[str], rows: Iterable[str]) -> Array:
    """(documents,) how many rows each has. rows: the document of each row, in the order of the documents."""
    counts, waiting = [], iter(rows)
    row = next(waiting, None)
    for identifier in documents:
        count = 0
        while row == identifier:
            count, row = count + 1, next(waiting, None)
        counts.append(count)
    if row is not None:
        raise DataError(f"A vector belongs to {row!r}, which is no document; build the index again without --resume.")
    return np.array(counts, dtype=np.int64)
