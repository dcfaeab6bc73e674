"""The documents of one segment: ids, titles, texts and metadata, in a SQLite file written once and then only read.

Documents are numbered 0, 1, ... in the order in which they came. Three tables answer three questions:

    documents   number -> the document
    ids         id -> number: entries of (hash of the id, number) in buckets by the first bits of the hash
    postings    (field, value) -> the numbers that have it, ranked in the order of field and value; the value PRESENT
                stands for "any value" and holds the numbers of all documents that have the field

SQLite only finds the rows. That they are the right ones is shown by a checksum in each, and that none is missing by
their keys, which have no gaps: of a damaged file, a reader gives the right answer or raises IntegrityError. A file that
somebody made to harm may hold views without end, trees that lead back to themselves and values of a gigabyte: a reader takes
these tables alone, no value longer than the file, no more rows than it asked for, and stops a statement after STEPS.
"""

from __future__ import annotations

import errno
import json
import math
import os
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import starmap
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from embedkit.errors import IntegrityError, UsageError
from embedkit.index.instants import instant
from embedkit.index.lifetimes import at_the_end, connecting, forkable_lock, remembered
from embedkit.typed import deeper_than, may_nest
from embedkit.types import Document

Scalar = str | int | float  # a metadata value as it is compared; numbers come before texts
Value = Scalar | bytes
Cut = tuple[Value, bool]  # the place in the order of values just before the value, or just after it (True)
Numbers = NDArray[np.uint32]  # (n,) document numbers, ascending

PRESENT = b""  # comes after all numbers and texts
AT_ONCE = 500  # values in one statement; SQLite allows 999 in its oldest builds
IDS_READ = 10_000  # ids in memory while all are read
STREAMED = 64  # documents in memory while all are read
PER_BUCKET = 128  # entries of ids, at most, in the mean
FIELDS_KEPT = 256  # whose kinds of values are remembered
DEEPEST = 100  # levels of metadata; Python's own parser ends somewhere below 1000, depending on the caller's depth
LEAST_LENGTH = 1 << 20  # bytes that a value may have at least, of those that are asked for
ATTEMPTS = 3  # to open a file while other threads take and give back descriptors
STEPS = 2_000_000  # of SQLite's machine for one statement; the longest of ours takes a tenth of them
ENTRY = np.dtype([("hash", "<u8"), ("number", "<u4")])

SCHEMA = (
    """CREATE TABLE documents (number INTEGER PRIMARY KEY, id TEXT NOT NULL, id_check INTEGER NOT NULL,
       content_check INTEGER NOT NULL, title TEXT NOT NULL, text TEXT NOT NULL, metadata TEXT NOT NULL)""",
    "CREATE TABLE ids (bucket INTEGER PRIMARY KEY, entries_check INTEGER NOT NULL, entries BLOB NOT NULL)",
    # value has no type of its own: numbers stay numbers and texts stay texts, and they compare as in Python
    """CREATE TABLE postings (rank INTEGER PRIMARY KEY, field TEXT NOT NULL, value NOT NULL,
       key_check INTEGER NOT NULL, numbers_check INTEGER NOT NULL, numbers BLOB NOT NULL)""",
    "CREATE TABLE sizes (documents INTEGER NOT NULL, postings INTEGER NOT NULL, sizes_check INTEGER NOT NULL)",
)
BY_VALUE = "CREATE UNIQUE INDEX by_value ON postings (field, value)"


class DocumentReader:
    """Looks documents up by number, by id and by metadata. May be used from several threads.

    count: documents in the file, as the manifest says. Every method, and the opening, raises IntegrityError where the
    file is damaged or was made for another count.
    """

    def __init__(self, path: Path, count: int) -> None:
        self._path, self.count = path, count
        self._lock = forkable_lock(statements=True)
        self._known_kinds: dict[str, frozenset[type]] = {}
        self._patience = _Patience()
        try:
            self._connection = _connected(path)
        except FileNotFoundError as error:
            raise self._damaged(error.strerror) from None
        at_the_end(self, disconnect, self._connection)  # it is in a cycle of its own: its statements
        if sys.version_info >= (3, 11):
            longest = min(max(path.stat().st_size, LEAST_LENGTH), 2**31 - 1)  # the most that SQLite can be told
            self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, longest)
        self._connection.set_progress_handler(self._patience.is_over, STEPS // 2)
        try:
            self._check_schema()
            self._ranks = self._read_sizes()
        except BaseException:
            self._connection.close()
            raise

    def ids(self, numbers: Iterable[int]) -> dict[int, str]:
        """number -> id."""
        return {
            number: self._id(number, name, check)
            for number, name, check in self._by_number("number, id, id_check", numbers)
        }

    def documents(self, numbers: Iterable[int]) -> dict[int, Document]:
        """number -> Document."""
        columns = "number, id, id_check, content_check, title, text, metadata"
        return {row[0]: self._document(*row) for row in self._by_number(columns, numbers)}

    def numbers(self, ids: Sequence[str]) -> dict[str, int]:
        """id -> number, for those that are there."""
        bits = bucket_bits(self.count)
        wanted: dict[int, list[tuple[int, str]]] = {}
        for name in dict.fromkeys(ids):
            hashed = hash_of(name)
            wanted.setdefault(hashed >> (63 - bits), []).append((hashed, name))
        candidates: list[tuple[str, int]] = []
        for bucket, check, blob in self._rows_by("ids", "bucket", "bucket, entries_check, entries", sorted(wanted)):
            entries = np.frombuffer(self._blob(blob, bucket, check, ENTRY.itemsize), ENTRY)
            for hashed, name in wanted[bucket]:
                candidates += [(name, int(n)) for n in entries["number"][entries["hash"] == np.uint64(hashed)]]
        names = self.ids(number for _, number in candidates)
        found = {name: number for name, number in candidates if names[number] == name}
        return {name: found[name] for name in dict.fromkeys(ids) if name in found}

    def stream(self, start: int = 0) -> Iterator[Document]:
        """All documents from number `start` on, in order, STREAMED of them in memory at once."""
        for first in range(start, self.count, STREAMED):
            yield from self.documents(range(first, min(first + STREAMED, self.count))).values()

    def all_ids(self) -> Iterator[str]:
        """In order of number."""
        for first in range(0, self.count, IDS_READ):
            yield from self._ids_between(first, min(first + IDS_READ, self.count))

    def fields(self) -> list[str]:
        """The metadata fields that a document has a value for, sorted. Cost: one search in the index a field."""
        names: list[str] = []
        _, key = self._seek("", (-math.inf, False))
        while key is not None:
            names.append(key[0])
            _, key = self._seek(key[0], (PRESENT, True))
        return names

    def kinds(self, field: str) -> frozenset[type]:
        """float where one of the field's values is a number, str where one is a text; empty where no document has it."""
        return remembered(self._known_kinds, FIELDS_KEPT, field, self._kinds)  # asked by every filter

    def _kinds(self, field: str) -> frozenset[type]:
        found = (self._seek(field, (first, False))[1] for first in (-math.inf, ""))
        values = (key[1] for key in found if key is not None and key[0] == field)
        return frozenset(str if isinstance(value, str) else float for value in values if value != PRESENT)

    def posting(self, field: str, value: Value) -> Numbers:
        """The documents where one of the field's values is `value`, or where it has any, for PRESENT."""
        rank, key = self._seek(field, (value, False))
        return self._numbers(rank, rank + 1 if key == (field, value) else rank)

    def postings(self, field: str, start: Cut, stop: Cut) -> Numbers:
        """The documents with a value between the cuts, in no order, one of several such values more than once."""
        first, _ = self._seek(field, start)
        end, _ = self._seek(field, stop)
        return self._numbers(first, end)

    def close(self) -> None:
        with self._lock:  # SQLite does not survive it under a statement
            self._connection.close()

    def _ids_between(self, start: int, stop: int) -> list[str]:
        found = self._select(
            "SELECT number, id, id_check FROM documents WHERE number >= ? AND number < ? ORDER BY number",
            (start, stop),
            stop - start,
        )
        if [row[0] for row in found] != list(range(start, stop)):
            raise self._damaged(f"documents {start} to {stop - 1} are not all there")
        return list(starmap(self._id, found))

    def _check_schema(self) -> None:
        """Raises IntegrityError for anything but the tables and the index that the writer makes: before they are asked."""
        found = self._select("SELECT sql FROM sqlite_master", (), len(SCHEMA) + 1)
        if {statement for (statement,) in found} != {*SCHEMA, BY_VALUE}:
            raise self._damaged("it holds other tables than those of an index")

    def _read_sizes(self) -> int:
        """The number of postings."""
        found = self._select("SELECT documents, postings, sizes_check FROM sizes", (), 1)
        if len(found) != 1:
            raise self._damaged(f"{len(found)} rows of sizes")
        documents, postings, check = found[0]
        self._agree(check, key_check(documents, postings))
        if type(postings) is not int:
            raise self._damaged("the number of its postings is none")
        if documents != self.count:
            raise self._damaged(f"it holds {documents} documents, {self.count} were expected")
        return postings

    def _by_number(self, columns: str, numbers: Iterable[int]) -> list[tuple[Any, ...]]:
        wanted = sorted({int(number) for number in numbers})
        if wanted and not 0 <= wanted[0] <= wanted[-1] < self.count:
            outside = wanted[0] if wanted[0] < 0 else wanted[-1]
            raise self._damaged(f"document {outside} was asked for, it holds {self.count}")
        return self._rows_by("documents", "number", columns, wanted)

    def _rows_by(self, table: str, key: str, columns: str, values: Sequence[int]) -> list[tuple[Any, ...]]:
        """A row for each of the ascending values, in their order; the key is the first column."""
        found: list[tuple[Any, ...]] = []
        for start in range(0, len(values), AT_ONCE):
            part = values[start : start + AT_ONCE]
            marks = ",".join("?" * len(part))
            found += self._select(
                f"SELECT {columns} FROM {table} WHERE {key} IN ({marks}) ORDER BY {key}", part, len(part)
            )
        if [row[0] for row in found] != list(values):
            raise self._damaged(f"of {len(values)} rows of {table}, {len(found)} were found, or others")
        return found

    def _document(
        self, number: int, name: str, id_check: int, content_check: int, title: str, text: str, metadata: str
    ) -> Document:
        self._id(number, name, id_check)
        if not all(isinstance(part, str) for part in (title, text, metadata)):
            raise self._damaged(f"document {number} is no text")
        self._agree(content_check, contents_check(number, name, title, text, metadata))
        try:
            known = json.loads(metadata)
        except (ValueError, RecursionError) as error:
            raise self._damaged(error) from None
        if not isinstance(known, dict) or (may_nest(metadata, DEEPEST + 1) and deeper_than(known, DEEPEST + 1)):
            raise self._damaged(f"the metadata of document {number} are none")
        return Document(id=name, text=text, title=title, metadata=known)

    def _id(self, number: int, name: str, check: int) -> str:
        self._agree(check, key_check(number, name))
        if not isinstance(name, str):
            raise self._damaged(f"the id of document {number} is no text")
        return name

    def _seek(self, field: str, cut: Cut) -> tuple[int, tuple[str, Value] | None]:
        """The rank of the first posting after the cut, and its field and value; past the last one, None.

        The index only gives a hint: that the posting before lies before the cut is looked up by its rank.
        """
        value, after = cut
        more = ">" if after else ">="
        found = self._select(
            f"SELECT rank, field, value, key_check FROM postings WHERE (field, value) {more} (?, ?) "
            "ORDER BY field, value LIMIT 1",
            (field, value),
            1,
        )
        rank, key = self._checked_key(found[0]) if found else (self._ranks, None)
        if key is not None and not _is_before(field, cut, key):
            raise self._damaged("its index of values is out of order")
        if rank:
            before = self._select("SELECT rank, field, value, key_check FROM postings WHERE rank = ?", (rank - 1,), 1)
            if not before or _is_before(field, cut, self._checked_key(before[0])[1]):
                raise self._damaged("its index of values has a gap")
        return rank, key

    def _checked_key(self, row: tuple[Any, ...]) -> tuple[int, tuple[str, Value]]:
        rank, field, value, check = row
        self._agree(check, key_check(rank, field, value))
        if not (isinstance(field, str) and (isinstance(value, (str, int, float)) or value == PRESENT)):
            raise self._damaged("a posting is of no value")
        return rank, (field, value)

    def _numbers(self, first: int, end: int) -> Numbers:
        """Those of the postings of these ranks, one after the other."""
        blobs = []
        for start in range(first, end, AT_ONCE):
            stop = min(start + AT_ONCE, end)
            rows = self._select(
                "SELECT rank, numbers_check, numbers FROM postings WHERE rank >= ? AND rank < ? ORDER BY rank",
                (start, stop),
                stop - start,
            )
            if [row[0] for row in rows] != list(range(start, stop)):
                raise self._damaged(f"postings {start} to {stop - 1} are not all there")
            blobs += [self._blob(blob, rank, check, 4) for rank, check, blob in rows]
        numbers = np.frombuffer(b"".join(blobs), "<u4")
        if len(numbers) and numbers.max() >= self.count:
            raise self._damaged(f"a posting names document {numbers.max()}, it holds {self.count}")
        return numbers

    def _blob(self, blob: Any, key: int, check: int, item: int) -> bytes:
        if not isinstance(blob, bytes) or len(blob) % item:
            raise self._damaged("a list of numbers is none")
        self._agree(check, crc32(blob, key))
        return blob

    def _select(self, statement: str, values: Sequence[object], most: int) -> list[tuple[Any, ...]]:
        """The rows, of which there can be `most`, or one more than that."""
        try:
            with self._lock:
                self._patience.passed = False
                return self._connection.execute(statement, values).fetchmany(most + 1)
        except sqlite3.ProgrammingError:  # not a damaged file
            raise UsageError(f"{self._path} was closed meanwhile; open its index again.") from None
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise_system_error(error, self._path)
            raise self._damaged(error) from None

    def _agree(self, stored: object, computed: int) -> None:
        if stored != computed:
            raise self._damaged("the checksum of a row does not fit")

    def _damaged(self, reason: object) -> IntegrityError:
        return IntegrityError(
            f"{self._path} is damaged ({reason}); run embedkit index verify, then build the index again."
        )


def comparable(value: object) -> Scalar | None:
    """A metadata value as it is stored and compared, one form for equal values; None for what counts as absent.

    A date with a time of day becomes one text, however it is written (see `instants.py`). Integers beyond 64 bits become floats,
    infinite ones beyond the range of these: that is what SQLite can hold.
    """
    if isinstance(value, str):
        return instant(value)
    if isinstance(value, int):  # with bool
        return int(value) if -(1 << 63) <= value < 1 << 63 else _as_float(value)
    if isinstance(value, float) and not math.isnan(value):
        return int(value) if value.is_integer() and -(2.0**63) <= value < 2.0**63 else float(value)
    return None


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _is_before(field: str, cut: Cut, key: tuple[str, Value]) -> bool:
    """Whether the cut lies before the key, in the order that SQLite has."""
    value, after = cut
    left, right = _order(field, value), _order(*key)
    return left < right or (left == right and not after)


def _order(field: str, value: Value) -> tuple[str, int, Any]:
    return field, 2 if isinstance(value, bytes) else 1 if isinstance(value, str) else 0, value


def key_check(*values: object) -> int:
    """Checksum of short values, their types with them."""
    return crc32(ascii(values).encode())


def contents_check(number: int, *parts: str) -> int:
    check = number
    for part in parts:
        data = part.encode()
        check = crc32(data, crc32(len(data).to_bytes(8, "little"), check))
    return check


def hash_of(name: str) -> int:
    """63 bits, so that SQLite's integers hold it."""
    return int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1


def bucket_bits(count: int) -> int:
    return (count // PER_BUCKET).bit_length()


def disconnect(connection: sqlite3.Connection) -> None:
    """Closes it, if that can be so while no fork begins; it may be called in the midst of anything, also of `connecting`."""
    alone = connecting.acquire(blocking=False)
    try:
        connection.close()
    finally:
        if alone:
            connecting.release()


class _Patience:
    """With one run of a statement. An object of its own: a connection that called a method of its reader would keep it alive."""

    passed = False  # whether the statement that runs was asked after before

    def is_over(self) -> bool:
        """Asked by SQLite after every STEPS // 2 steps, counted over all runs of a statement: the second time in one run it is."""
        self.passed, again = True, self.passed
        return again


def _connected(path: Path) -> sqlite3.Connection:
    """Read only. That a file cannot be opened is no damage: raises the OSError."""
    for attempt in range(ATTEMPTS):
        try:
            with connecting:
                return sqlite3.connect(
                    f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False
                )
        except sqlite3.Error as error:
            os.close(os.open(path, os.O_RDONLY))
            if attempt == ATTEMPTS - 1:  # it can be opened, and every time it could not just before
                raise OSError(errno.EIO, f"SQLite could not open it ({error})", str(path)) from None
    raise AssertionError


def raise_system_error(error: Exception, path: Path) -> None:
    """The OSError behind what SQLite says of a system that has no descriptors or no space left; else nothing is raised."""
    said = str(error)
    if "unable to open" in said:  # a file for sorting, perhaps; it does not say which, nor why
        os.close(os.open(os.devnull, os.O_RDONLY))
    if "is full" in said:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
