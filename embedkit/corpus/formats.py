"""File formats: bytes in, numbered rows out.

Each reader streams: it yields `(number, row)`, the number being the line (or the row, counted from 1, where a format has
no lines) for messages, and the row a mapping of field names to values. What a row must hold is not decided here but in
`documents.py`.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from embedkit.corpus.images import IMAGE, IMAGE_SUFFIXES, with_undecoded_images
from embedkit.errors import DataError, UsageError

PlacedRows = Iterator[tuple[str, Mapping[str, Any]]]  # ("corpus.jsonl, line 3", row)
TEXT_SUFFIXES = (".txt", ".md", ".rst")


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked when its name ends in .gz; a damaged archive is a DataError."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            yield stream  # type: ignore[misc]
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}); fetch or pack it again.") from None


def finite_number(text: str) -> float | None:
    """The number that a text is, in ASCII digits as other programs write it; None where it is none, or no finite one."""
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan  # Python's own 1_000
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def decoded_lines(stream: Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Numbered lines as text. Raises DataError with line and byte where the bytes are not UTF-8."""
    for number, line in enumerate(stream, 1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}, line {number}: byte 0x{line[error.start]:02x} (the {error.start + 1}th of the line) is not UTF-8; "
                f"convert the file first, for example with: iconv -f LATIN1 -t UTF-8."
            ) from None
        yield number, text.removeprefix("\ufeff") if number == 1 else text


def jsonl_rows(stream: Iterable[bytes], name: str) -> PlacedRows:
    """One JSON object a line; blank lines are passed over."""
    for number, line in decoded_lines(stream, name):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # JSONDecodeError, and a number of over 4300 digits
            raise DataError(f"{name}, line {number}: not valid JSON ({error}); expected one object a line.") from None
        if not isinstance(row, dict):
            raise DataError(f"{name}, line {number}: a JSON {type(row).__name__} came, one object a line was expected.")
        yield f"{name}, line {number}", row


def delimited_rows(stream: Iterable[bytes], name: str, delimiter: str) -> PlacedRows:
    """csv or tsv as Python's csv module and spreadsheets write it, with a header."""
    csv.field_size_limit(sys.maxsize)  # the default refuses texts over 128 KiB
    lines = (text for _, text in decoded_lines(stream, name))
    table = csv.reader(lines, delimiter=delimiter, strict=True)
    number = 1  # of the line where a record begins
    try:
        header = next(table, None)
        if header is None:
            return
        if len(set(header)) < len(header):
            raise DataError(f"{name}, line 1: the header {header} names a column twice; give each a name of its own.")
        number = table.line_num + 1
        for values in table:
            if delimiter == "\t" and any(holds_a_row(value, len(header)) for value in values):
                raise DataError(
                    f"{name}, lines {number} to {table.line_num}: a quotation mark joins several rows into one; write it twice "
                    f'inside quotes (""), as spreadsheets do.'
                )
            if values:
                if len(values) != len(header):
                    raise DataError(
                        f"{name}, line {number}: {len(values)} columns came, the header has {len(header)}; "
                        f"quote a text that holds the delimiter or a line break."
                    )
                yield f"{name}, line {number}", dict(zip(header, values, strict=True))
            number = table.line_num + 1
    except csv.Error as error:
        raise DataError(
            f'{name}, line {number}: {error}; write a quotation mark inside quotes twice (""), as spreadsheets do.'
        ) from None


def holds_a_row(value: str, columns: int) -> bool:
    """Whether a line inside a value of a tsv is a whole row: many a tsv is written without quotes, so that a text that begins with
    a quotation mark would swallow the rows up to the next one."""
    return columns > 1 and any(line.count("\t") == columns - 1 for line in value.split("\n")[1:])


def csv_rows(stream: Iterable[bytes], name: str) -> PlacedRows:
    return delimited_rows(stream, name, ",")


def tsv_rows(stream: Iterable[bytes], name: str) -> PlacedRows:
    return delimited_rows(stream, name, "\t")


def parquet_rows(path: Path) -> PlacedRows:
    with _parquet_file(path) as table:
        holds_bytes = any("binary" in str(column.type) for column in table.schema_arrow)  # those of images, say
        batches = table.iter_batches(batch_size=32 if holds_bytes else 1024)
        yield from placed((row for batch in batches for row in batch.to_pylist()), str(path))


def parquet_length(path: Path) -> int:
    """How many rows a file has, by its footer."""
    with _parquet_file(path) as table:
        return int(table.metadata.num_rows)


@contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            yield table
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if getattr(error, "errno", None) is not None:
            raise  # the system's: no permission, a failing disk
        raise DataError(f"{path} is not a whole parquet file ({_first_line(error)}); write it again.") from None


def placed(rows: Iterable[Any], name: str) -> PlacedRows:
    """Rows of a source without lines, counted from 1."""
    return ((f"{name}, row {number}", row) for number, row in enumerate(rows, 1))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def text_rows(root: Path, paths: Iterable[Path]) -> PlacedRows:
    """One document a file, its id the path below the root."""
    for number, path in enumerate(paths, 1):
        with open_bytes(path) as stream:
            text = "".join(line for _, line in decoded_lines(stream, str(path)))
        yield f"{root}, row {number}", {"id": path.relative_to(root).as_posix(), "text": text}


STREAM_FORMATS: dict[str, Callable[[Iterable[bytes], str], PlacedRows]] = {
    ".jsonl": jsonl_rows,
    ".ndjson": jsonl_rows,
    ".csv": csv_rows,
    ".tsv": tsv_rows,
}


def file_rows(path: Path) -> PlacedRows:
    """The rows of one file, by its suffix. An unknown one is refused at once, before anything is read."""
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if read := STREAM_FORMATS.get(suffix):
        return _streamed(path, read)
    if path.suffix == ".parquet":
        return parquet_rows(path)
    if suffix in TEXT_SUFFIXES:
        return text_rows(path.parent, [path])
    known = ", ".join([*STREAM_FORMATS, *TEXT_SUFFIXES])
    raise UsageError(
        f"{path}: files ending in {suffix or 'nothing'!r} are not read; expected {known}, any of these as .gz, or .parquet."
    )


def _streamed(path: Path, read: Callable[[Iterable[bytes], str], PlacedRows]) -> PlacedRows:
    with open_bytes(path) as stream:
        yield from read(stream, str(path))


def folder_rows(folder: Path, *, images: bool = False) -> PlacedRows:
    """A BEIR folder, a saved `datasets` folder, parquet files, text files or images, whichever is found first. images: these
    before texts."""
    for name in ("corpus.jsonl", "corpus.jsonl.gz"):
        if (folder / name).exists():
            return file_rows(folder / name)
    if (folder / "dataset_dict.json").exists():
        splits = ", ".join(sorted(path.parent.name for path in folder.glob("*/state.json")))
        raise UsageError(
            f"{folder} holds several splits ({splits}); give the folder of one, for example {folder}/train."
        )
    if (folder / "state.json").exists():
        return saved_dataset_rows(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not _hidden(path.relative_to(folder)))
    if parquet := [path for path in files if path.suffix == ".parquet"]:
        return (row for path in parquet for row in parquet_rows(path))
    if tables := [path for path in files if path.suffix in STREAM_FORMATS]:
        raise UsageError(f"{folder} holds {tables[0].name} and is no BEIR folder; name the file itself: {tables[0]}.")
    texts = [path for path in files if path.suffix in TEXT_SUFFIXES]
    pictures = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if texts and not (images and pictures):
        return text_rows(folder, texts)
    if pictures:
        return image_rows(folder, pictures)
    raise UsageError(
        f"{folder} holds no corpus: looked for corpus.jsonl (BEIR), state.json (a saved datasets folder), *.parquet, "
        f"text files ({', '.join(TEXT_SUFFIXES)}) and images ({', '.join(IMAGE_SUFFIXES)})."
    )


def image_rows(root: Path, paths: Iterable[Path]) -> PlacedRows:
    """One document an image, its id the path below the root."""
    for number, path in enumerate(paths, 1):
        below = path.relative_to(root)
        yield f"{root}, row {number}", {"id": below.as_posix(), IMAGE: below}


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def saved_dataset_rows(folder: Path) -> PlacedRows:
    import datasets

    try:
        table = datasets.load_from_disk(str(folder))
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is not a whole datasets folder ({error}); save it again.") from None
    return placed(with_undecoded_images(table), str(folder))


def hub_rows(name: str) -> PlacedRows:
    """`NAME[:SPLIT]` of the Hugging Face hub, streamed; without a split, the only one or `train`."""
    import datasets

    repository, _, split = name.partition(":")
    try:
        splits = datasets.get_dataset_split_names(repository)
        chosen = split or (splits[0] if len(splits) == 1 else "train")
        if chosen not in splits:
            raise UsageError(
                f"hf:{repository} has no split {chosen!r}; it has {', '.join(splits)}: add one as hf:{repository}:SPLIT."
            )
        table = datasets.load_dataset(repository, split=chosen, streaming=True)
    except (OSError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"hf:{repository} cannot be read from the hub ({_first_line(error)}); check name and network."
        ) from None
    return placed(with_undecoded_images(table), f"hf:{name}")
