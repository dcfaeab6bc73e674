"""File formats: bytes in, numbered rows out.

Each reader streams: it yields `(number, row)`, the number being the line (or the row, counted from 1, where a format has
no lines) for messages, and the row a mapping of field names to values. What a row must hold is not decided here but in
`documents.py`. No line, record or text file is held whole beyond the limits of `limits.py`, packed or not.
"""

from __future__ import annotations

import csv
import functools
import gzip
import json
import math
import sys
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from embedkit.corpus.arrow import PlacedRows, parquet_rows
from embedkit.errors import DataError, UsageError
from embedkit.limits import LINE, TEXT, open_regular, shown

TEXT_SUFFIXES = (".txt", ".md", ".rst")
LINE_FEED = "each line ended by a line feed, as tr '\\r' '\\n' writes it"


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a regular file, unpacked when its name ends in .gz; a damaged archive is a DataError."""
    try:
        with open_regular(path) as stream:
            if path.suffix.lower() != ".gz":
                yield stream
                return
            with gzip.open(stream, "rb") as unpacked:
                yield unpacked  # type: ignore[misc]
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}); fetch or pack it again.") from None


def finite_number(text: str) -> float | None:
    """The number that a text is, in ASCII digits as other programs write it; None where it is none, or no finite one."""
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan  # Python's own 1_000
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def raw_lines(stream: IO[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    """Numbered lines. Raises DataError for one longer than LINE, before more of it is read."""
    for number, line in enumerate(iter(functools.partial(stream.readline, LINE + 1), b""), 1):
        if len(line) > LINE:
            raise DataError(
                f"{name}, line {number}: it has more than {LINE:,} bytes, the most that are read; split it."
            )
        yield number, line


def decoded_lines(stream: IO[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Numbered lines as text. Raises DataError with line and byte where the bytes are not UTF-8."""
    for number, line in raw_lines(stream, name):
        if number == 1 and (encoding := _wide_encoding(line)):
            raise DataError(f"{name}, line 1: this is {encoding}, not UTF-8; {_convert(encoding)}.")
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}, line {number}: byte 0x{line[error.start]:02x} (the {error.start + 1}th of the line) is not UTF-8; "
                f"{_convert('WINDOWS-1252')}."
            ) from None
        yield number, text.removeprefix("\ufeff") if number == 1 else text


def _wide_encoding(start: bytes) -> str | None:
    """UTF-16 or UTF-32, by the byte order mark or by the zeros in the first characters of a markup or Latin text."""
    if start.startswith((b"\xff\xfe\0\0", b"\0\0")):
        return "UTF-32"
    return "UTF-16" if start.startswith((b"\xff\xfe", b"\xfe\xff", b"\0")) or start[1:2] == b"\0" else None


def _convert(encoding: str) -> str:
    """WINDOWS-1252 holds all printable characters of LATIN1, and the quotation marks that texts of Windows have."""
    return f"convert the file first, for example with: iconv -f {encoding} -t UTF-8"


def jsonl_rows(stream: IO[bytes], name: str) -> PlacedRows:
    """One JSON object a line; blank lines are passed over."""
    for number, line in decoded_lines(stream, name):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:  # JSONDecodeError, and a number of over 4300 digits
            hint = "one object a line" if "\r" not in line.rstrip() else f"one object a line, {LINE_FEED}"
            raise DataError(f"{name}, line {number}: not valid JSON ({error}); expected {hint}.") from None
        if not isinstance(row, dict):
            raise DataError(f"{name}, line {number}: a JSON {type(row).__name__} came, one object a line was expected.")
        yield f"{name}, line {number}", row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError for a name that stands twice, of which Python would take the last value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {shown(next(name for name in names if names.count(name) > 1))} stands twice")
    return found


class RecordLines:
    """The lines of csv or tsv, for a reader that says where each record begins. Raises DataError for a record longer than LINE:
    a quotation mark that is left open would join all lines."""

    def __init__(self, lines: Iterable[tuple[int, str]], name: str) -> None:
        csv.field_size_limit(sys.maxsize)  # the default refuses texts over 128 KiB; a record is bounded here
        self._lines, self._name = lines, name
        self.begins(1)

    def begins(self, number: int) -> None:
        """A record begins with the line of this number."""
        self.number, self._held = number, 0

    def __iter__(self) -> Iterator[str]:
        for _, text in self._lines:
            self._held += len(text)
            if self._held > LINE:
                raise DataError(
                    f"{self._name}, line {self.number}: a record has more than {LINE:,} characters, the most that are read; is a "
                    f"quotation mark left open?"
                )
            yield text


def delimited_rows(stream: IO[bytes], name: str, delimiter: str) -> PlacedRows:
    """csv or tsv as Python's csv module and spreadsheets write it, with a header."""
    lines = RecordLines(decoded_lines(stream, name), name)
    table = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = next(table, None)
        if header is None:
            return
        if len(set(header)) < len(header):
            raise DataError(
                f"{name}, line 1: the header {shown(header)} names a column twice; give each a name of its own."
            )
        lines.begins(table.line_num + 1)
        for values in table:
            if delimiter == "\t" and any(holds_a_row(value, len(header)) for value in values):
                raise DataError(
                    f"{name}, lines {lines.number} to {table.line_num}: a quotation mark joins several rows into one; write it twice "
                    f'inside quotes (""), as spreadsheets do.'
                )
            if values:
                if len(values) != len(header):
                    raise DataError(
                        f"{name}, line {lines.number}: {len(values)} columns came, the header has {len(header)}; "
                        f"quote a text that holds the delimiter or a line break."
                    )
                yield f"{name}, line {lines.number}", dict(zip(header, values, strict=True))
            lines.begins(table.line_num + 1)
    except csv.Error as error:
        step = 'write a quotation mark inside quotes twice (""), as spreadsheets do'
        if "new-line character" in str(error):  # Python's word for a carriage return without a line feed
            error, step = csv.Error("a carriage return stands alone"), LINE_FEED
        raise DataError(f"{name}, line {lines.number}: {error}; {step}.") from None


def holds_a_row(value: str, columns: int) -> bool:
    """Whether a line inside a value of a tsv is a whole row: many a tsv is written without quotes, so that a text that begins with
    a quotation mark would swallow the rows up to the next one."""
    return columns > 1 and any(line.count("\t") == columns - 1 for line in value.split("\n")[1:])


def csv_rows(stream: IO[bytes], name: str) -> PlacedRows:
    return delimited_rows(stream, name, ",")


def tsv_rows(stream: IO[bytes], name: str) -> PlacedRows:
    return delimited_rows(stream, name, "\t")


def placed(rows: Iterable[Any], name: str) -> PlacedRows:
    """Rows of a source without lines, counted from 1."""
    return ((f"{name}, row {number}", row) for number, row in enumerate(rows, 1))


def text_rows(root: Path, paths: Iterable[Path]) -> PlacedRows:
    """One document a file, its id the path below the root."""
    for number, path in enumerate(paths, 1):
        yield f"{root}, row {number}", {"id": path.relative_to(root).as_posix(), "text": _text(path)}


def _text(path: Path) -> str:
    lines, held = [], 0
    with open_bytes(path) as stream:
        for _, line in decoded_lines(stream, str(path)):
            lines.append(line)
            held += len(line)
            if held > TEXT:
                raise DataError(f"{path} has more than {TEXT:,} characters, the most that a text may have; split it.")
    return "".join(lines)


STREAM_FORMATS: dict[str, Callable[[IO[bytes], str], PlacedRows]] = {
    ".jsonl": jsonl_rows,
    ".ndjson": jsonl_rows,
    ".csv": csv_rows,
    ".tsv": tsv_rows,
}


def suffix_of(path: Path) -> str:
    """What says how a file is read, in small letters: ".csv" of "A.CSV" and of "a.csv.gz"."""
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def file_rows(path: Path, leave_out: Collection[str] = ()) -> PlacedRows:
    """The rows of one file, by its suffix. An unknown one is refused at once, before anything is read. leave_out: columns of a
    parquet file that are not read."""
    suffix = suffix_of(path)
    if read := STREAM_FORMATS.get(suffix):
        return _streamed(path, read)
    if path.suffix.lower() == ".parquet":
        return parquet_rows(path, leave_out)
    if suffix in TEXT_SUFFIXES:
        return text_rows(path.parent, [path])
    known = ", ".join([*STREAM_FORMATS, *TEXT_SUFFIXES])
    raise UsageError(
        f"{path}: files ending in {suffix or 'nothing'!r} are not read; expected {known}, any of these as .gz, or .parquet."
    )


def _streamed(path: Path, read: Callable[[IO[bytes], str], PlacedRows]) -> PlacedRows:
    with open_bytes(path) as stream:
        yield from read(stream, str(path))
