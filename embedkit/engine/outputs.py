"""The files of one output, and how they appear under their names all together.

While a job runs there are NAME.npy.partial (rows at their places; for parquet too) and NAME.ledger. Publication writes
the smaller files as partials, makes everything durable, says in the ledger what is to be renamed to what, renames, and
removes the ledger. From that record on it can be repeated any number of times, wherever it was cut off: a partial that is
still there is renamed, one that is not there any more must lie under its final name with the recorded checksum.
The manifest is renamed first: until the last rename, whoever reads finds a manifest that does not fit.

Cost: the ledger is read once a file of text, the vectors twice (parquet three times), a block in memory at a time.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from embedkit.engine.ledger import AFRESH, Ledger, Record
from embedkit.engine.row_form import RowForm
from embedkit.errors import IntegrityError, UsageError
from embedkit.storage import (
    HEADER,
    SUFFIX,
    PositionalFile,
    check_file,
    check_is_text,
    file_record,
    npy_header,
    remove,
    rename,
    sealed_json,
    sealed_partial,
    sync_folder,
)

FORMAT, VERSION = "embedkit-vectors", 2
FORMS = (".npy", ".parquet")
LONGEST_NAME = 255  # bytes of a file's name, on all usual file systems
GROUP = 4  # windows in one row group of a parquet file


class Row(NamedTuple):
    """What is known of one vector beside its numbers."""

    id: str  # of the vector: the document's own, or "doc#0" where documents are cut into chunks
    document: str
    start: int  # characters of the document that it covers
    end: int


@dataclass(frozen=True)
class Names:
    """Where the files of one output lie: the vectors where a link leads that the user gave, all others beside the name."""

    path: Path

    def __post_init__(self) -> None:
        if self.path.suffix not in FORMS:
            raise UsageError(
                f"{self.path}: vectors are written as NAME.npy or NAME.parquet; choose a name that ends so."
            )

    def check_names(self) -> None:
        """Raises UsageError for a name that is no text or too long for the files beside it: at once, not when the whole corpus is
        embedded."""
        check_is_text(self.path)
        if (length := max(len(os.fsencode(partial(name).name)) for name in self.all)) > LONGEST_NAME:
            raise UsageError(
                f"{self.path.name} is too long a name: files beside it would have {length} bytes, {LONGEST_NAME} are possible; choose "
                f"a shorter one."
            )

    @property
    def target(self) -> Path:
        """Where the vectors lie."""
        return Path(os.path.realpath(self.path))

    @property
    def ids(self) -> Path:
        return self.path.with_suffix(".ids.txt")

    @property
    def manifest(self) -> Path:
        return self.path.with_suffix(".manifest.json")

    @property
    def chunks(self) -> Path:
        return self.path.with_suffix(".chunks.jsonl")

    @property
    def ranges(self) -> Path:
        return self.path.with_suffix(".ranges.npy")

    @property
    def quarantine(self) -> Path:
        return self.path.with_suffix(".quarantine.jsonl")

    @property
    def ledger(self) -> Path:
        return self.path.with_suffix(".ledger")

    @property
    def all(self) -> tuple[Path, ...]:
        """Every name under which something may be published, in the order of the renames."""
        return self.manifest, self.path, self.ids, self.chunks, self.ranges, self.quarantine

    @property
    def rows(self) -> Path:
        """Where the vectors grow."""
        return partial(self.target)

    @property
    def sealed(self) -> Path:
        """What becomes the file of vectors: the grown rows themselves, or a parquet file made of them."""
        return self.rows if self.path.suffix == ".npy" else partial(self.target.with_suffix(".sealed.parquet"))

    @property
    def folders(self) -> tuple[Path, ...]:
        """Those in which the files lie, one or two."""
        return tuple(dict.fromkeys((self.target.parent, self.path.parent)))


def partial(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


def rows_of(record: Record) -> Iterator[Row]:
    """The vectors that a window's record speaks of, in order."""
    ids, spans = record["ids"], record["spans"]
    if spans is None:
        inputs = record["inputs"]
        yield from (Row(ids[place], ids[place], 0, 0) for place in (range(len(ids)) if inputs is None else inputs))
        return
    number, last = 0, -1
    for place, (start, end) in zip(record["inputs"], spans, strict=True):
        number, last = (number + 1 if place == last else 0), place
        yield Row(f"{ids[place]}#{number}", ids[place], start, end)


def seal(names: Names, rows: PositionalFile, form: RowForm, ledger: Ledger, facts: Mapping[str, Any]) -> Record:
    """Writes everything that is to be published, durably, and says in the ledger how; returns that record.

    facts: the manifest but for its "files"; "count", "on_long" and "set_aside" are read from it.
    """
    count = facts["count"]
    rows.write(0, npy_header((count, form.columns), form.dtype))
    rows.truncate(HEADER + count * form.width)
    rows.sync()
    chunked = facts["on_long"] == "chunk"
    made = {names.path: names.sealed}
    if names.path.suffix == ".parquet":
        with sealed_partial(names.sealed) as stream:
            _write_parquet(stream, rows, form, _windows(ledger), chunked)
    else:
        made[names.ids] = _listed(names.ids, ledger, lambda window: (row.id + "\n" for row in rows_of(window)))
    if chunked:
        made[names.chunks] = _listed(names.chunks, ledger, lambda window: map(_line, map(Row._asdict, rows_of(window))))
    if form.ranges is not None:
        made[names.ranges] = partial(names.ranges)
        with sealed_partial(made[names.ranges]) as stream:
            array = form.ranges.array
            stream.write(npy_header(array.shape, array.dtype) + array.tobytes())
    if facts["set_aside"]:
        made[names.quarantine] = _listed(names.quarantine, ledger, _set_aside)
    files = {name: file_record(made[name]) for name in made}
    made[names.manifest] = partial(names.manifest)
    with sealed_partial(made[names.manifest]) as stream:
        stream.write(sealed_json({**facts, "files": {name.name: record for name, record in files.items()}}))
    files[names.manifest] = file_record(made[names.manifest])
    _sync(names)
    record = {"publish": {name.name: files[name] for name in names.all if name in files}}
    ledger.append(record)
    return record


def publish(names: Names, record: Record) -> None:
    """Renames what `seal` wrote, and removes what an older output left. Raises IntegrityError where a file is damaged."""
    wanted = record["publish"]
    if not {names.manifest.name, names.path.name} <= wanted.keys():
        raise IntegrityError(f"{names.ledger} publishes no vectors; {AFRESH}.")
    for name in names.all:
        if name.name not in wanted:
            continue
        source, target = (names.sealed, names.target) if name == names.path else (partial(name), name)
        if source.exists():
            check_file(source, wanted[name.name])
            rename(source, target)
        else:
            check_file(target, wanted[name.name])
    _sync(names)
    remove(names.rows)  # of a parquet file; that of an .npy has been renamed
    for name in names.all:
        if name.name not in wanted:
            remove(name)
            remove(partial(name))
    _sync(names)
    remove(names.ledger)
    sync_folder(names.ledger.parent)


def _sync(names: Names) -> None:
    for folder in names.folders:
        sync_folder(folder)


def _windows(ledger: Ledger) -> Iterator[Record]:
    return (record for _, record in ledger if "documents" in record)  # not the head


def _listed(name: Path, ledger: Ledger, lines: Callable[[Record], Iterable[str]]) -> Path:
    """A text file made of the ledger alone."""
    with sealed_partial(partial(name)) as stream:
        for window in _windows(ledger):
            stream.write("".join(lines(window)).encode())
    return partial(name)


def _set_aside(window: Record) -> Iterator[str]:
    return (_line({"id": window["ids"][int(place)], "reason": reason}) for place, reason in window["failed"].items())


def _line(fact: Mapping[str, Any]) -> str:
    return json.dumps(fact, ensure_ascii=False) + "\n"


def _write_parquet(
    stream: IO[bytes], rows: PositionalFile, form: RowForm, windows: Iterator[Record], chunked: bool
) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    text, place = pa.string(), pa.int64()
    columns = {"id": text, **({"document": text, "start": place, "end": place} if chunked else {})}
    schema = pa.schema([*columns.items(), ("embedding", pa.list_(pa.from_numpy_dtype(form.dtype), form.columns))])
    position = HEADER
    with pyarrow.parquet.ParquetWriter(stream, schema, compression="none", use_dictionary=False) as writer:
        while several := list(itertools.islice(windows, GROUP)):
            if not (group := [row for window in several for row in rows_of(window)]):
                continue  # all of them were set aside
            numbers = np.frombuffer(rows.read(position, len(group) * form.width), dtype=form.dtype)
            position += len(group) * form.width
            embedding = pa.FixedSizeListArray.from_arrays(pa.array(numbers), form.columns)
            known = [pa.array([getattr(row, name) for row in group], type=kind) for name, kind in columns.items()]
            writer.write_table(pa.table([*known, embedding], schema=schema), row_group_size=len(group))
