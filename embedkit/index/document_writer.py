"""Writes the file of a segment's documents; what stands in it is said in `documents.py`, which reads it.

The same documents make the same bytes, whatever the sizes of the batches. Cost: a metadata value stands in the file
three times, in its document, in its posting and in the index over these. The writer holds a few megabytes of entries,
the numbers of one value while it writes them, and two page caches of 32 MiB; SQLite sorts the rest in a side file and in
its folder for temporary files. 200,000 documents with 4 small fields: 4 s to append, 0.6 s to close, 85 MB.
"""

from __future__ import annotations

import errno
import json
import sqlite3
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from embedkit.errors import DataError
from embedkit.index.documents import (
    BY_VALUE,
    DEEPEST,
    ENTRY,
    PRESENT,
    SCHEMA,
    Scalar,
    Value,
    bucket_bits,
    comparable,
    contents_check,
    disconnect,
    hash_of,
    key_check,
    raise_system_error,
)
from embedkit.index.lifetimes import at_the_end, connecting, forkable_lock
from embedkit.types import Document

HELD = 1 << 20  # characters of metadata whose entries wait in memory to be written together
SIDE_SCHEMA = (
    "CREATE TABLE ids (hash INTEGER NOT NULL, number INTEGER NOT NULL)",
    "CREATE TABLE runs (field TEXT NOT NULL, value NOT NULL, first INTEGER NOT NULL, numbers BLOB NOT NULL)",
)
_to_json = json.JSONEncoder(ensure_ascii=False).encode


class DocumentWriter:
    """Fills a new file at `path`, in place of what is there. Durability is the caller's.

    count: documents so far; text_bytes, id_bytes: of their titles, texts and metadata, and of their ids; seconds: what all this took.
    Used by one thread at a time, not always the same.
    A full disk is an OSError (ENOSPC), which SQLite says in its own way.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._side_path = path, path.with_name(path.name + ".sorting")
        self.count = self.text_bytes = self.id_bytes = 0
        self.seconds = 0.0
        self._runs: dict[tuple[str, Value], list[int]] = {}
        self._hashes: list[tuple[int, int]] = []
        self._held = 0
        self._working = forkable_lock(statements=True)
        for leftover in (self._path, self._side_path):
            for suffix in ("", "-journal", "-wal", "-shm"):
                leftover.with_name(leftover.name + suffix).unlink(missing_ok=True)
        with _full_disk(path), connecting:
            self._connection = _new_file(path, SCHEMA)
            at_the_end(self, disconnect, self._connection)  # where it is left without `close`
            self._side = _new_file(self._side_path, SIDE_SCHEMA)
            at_the_end(self, disconnect, self._side)

    def append(self, documents: Iterable[Document], *, texts: bool) -> None:
        """The next documents. texts=False stores ids and metadata, no title and no text.

        Raises DataError for what cannot be stored: half of a surrogate pair, metadata that JSON cannot hold.
        """
        rows = (self._row(document, texts) for document in documents)
        with _full_disk(self._path), self._clock():
            self._connection.executemany("INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def close(self) -> None:
        """Makes the table of ids and the postings; the file is complete then. Raises DataError for an id that came twice."""
        try:
            with _full_disk(self._path), self._clock():
                self._flush()
                self._connection.executemany("INSERT INTO ids VALUES (?, ?, ?)", self._buckets())
                self._connection.executemany("INSERT INTO postings VALUES (?, ?, ?, ?, ?, ?)", self._postings())
                self._connection.execute(BY_VALUE)
                (postings,) = self._connection.execute("SELECT coalesce(max(rank) + 1, 0) FROM postings").fetchone()
                sizes = (self.count, postings)
                self._connection.execute("INSERT INTO sizes VALUES (?, ?, ?)", (*sizes, key_check(*sizes)))
                self._connection.execute("COMMIT")
        finally:
            disconnect(self._connection)
            disconnect(self._side)
            self._side_path.unlink(missing_ok=True)

    @contextmanager
    def _clock(self) -> Iterator[None]:
        started = time.perf_counter()
        with self._working:
            yield
        self.seconds += time.perf_counter() - started

    def _row(self, document: Document, texts: bool) -> tuple[object, ...]:
        number, title, text = self.count, *((document.title, document.text) if texts else ("", ""))
        try:
            metadata = _to_json(dict(document.metadata)) if document.metadata else "{}"
            content_check = contents_check(number, document.id, title, text, metadata)
            hashed = hash_of(document.id)
            # as a reader will see it: names are strings, tuples are lists
            pairs = set(_pairs(json.loads(metadata))) if document.metadata else set()
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(
                f"Document {number} ({document.id!r}) cannot be stored ({error}); give it Unicode text "
                f"and metadata as JSON has it, at most {DEEPEST} levels deep."
            ) from None
        for key in pairs | {(field, PRESENT) for field, _ in pairs}:
            self._runs.setdefault(key, []).append(number)
        self._hashes.append((hashed, number))
        self._held += len(metadata) + 64  # for the entry of the id
        self.text_bytes += sum(len(part.encode()) for part in (title, text, metadata))
        self.id_bytes += len(document.id.encode())
        self.count += 1
        if self._held >= HELD:
            self._flush()
        return number, document.id, key_check(number, document.id), content_check, title, text, metadata

    def _flush(self) -> None:
        """What waits in memory goes to the side file. When this happens does not show in the result."""
        runs = ((*key, numbers[0], struct.pack(f"<{len(numbers)}I", *numbers)) for key, numbers in self._runs.items())
        with _full_disk(self._path):
            self._side.executemany("INSERT INTO runs VALUES (?, ?, ?, ?)", runs)
            self._side.executemany("INSERT INTO ids VALUES (?, ?)", self._hashes)
        self._runs, self._hashes, self._held = {}, [], 0

    def _buckets(self) -> Iterator[tuple[int, int, bytes]]:
        """A row for every bucket, empty ones too: a reader must be able to tell them from lost ones."""
        shift = 63 - bucket_bits(self.count)
        expected = 0
        for bucket, entries in groupby(self._hashed(), lambda entry: entry[0] >> shift):
            yield from ((empty, crc32(b"", empty), b"") for empty in range(expected, bucket))
            blob = np.array(list(entries), ENTRY).tobytes()
            yield bucket, crc32(blob, bucket), blob
            expected = bucket + 1
        yield from ((empty, crc32(b"", empty), b"") for empty in range(expected, 1 << bucket_bits(self.count)))

    def _hashed(self) -> Iterator[tuple[int, int]]:
        """(hash, number) in order; ids whose hashes are the same are compared."""
        ordered = self._side.execute("SELECT hash, number FROM ids ORDER BY hash, number")
        for _, same in groupby(ordered, itemgetter(0)):
            entries = list(same)
            if len(entries) > 1:
                self._refuse_repeated([number for _, number in entries])
            yield from entries

    def _refuse_repeated(self, numbers: Iterable[int]) -> None:
        before: dict[str, int] = {}
        for number in numbers:
            (name,) = self._connection.execute("SELECT id FROM documents WHERE number = ?", (number,)).fetchone()
            if name in before:
                raise DataError(
                    f"Document {number}: the id {name!r} came before, at document {before[name]}; "
                    "give each document an id of its own."
                )
            before[name] = number

    def _postings(self) -> Iterator[tuple[object, ...]]:
        runs = self._side.execute("SELECT field, value, numbers FROM runs ORDER BY field, value, first")
        for rank, ((field, value), same) in enumerate(groupby(runs, itemgetter(0, 1))):
            numbers = b"".join(run[2] for run in same)
            yield rank, field, value, key_check(rank, field, value), crc32(numbers, rank), numbers


def _pairs(metadata: Mapping[str, Any]) -> Iterator[tuple[str, Scalar]]:
    """(field, value) of all values in it. Lists have several, mappings have fields of their own: "author.name"."""
    waiting: list[tuple[str, Any, int]] = [(name, value, 1) for name, value in metadata.items()]
    while waiting:
        name, value, depth = waiting.pop()
        if depth > DEEPEST:
            raise ValueError("its metadata is nested too deep")
        if isinstance(value, dict):
            waiting += [(f"{name}.{inner}", item, depth + 1) for inner, item in value.items()]
        elif isinstance(value, list):
            waiting += [(name, item, depth + 1) for item in value]
        elif (scalar := comparable(value)) is not None:
            yield name, scalar


def _new_file(path: Path, schema: Sequence[str]) -> sqlite3.Connection:
    """With a transaction open. Nothing in it depends on the time or on the defaults of this build of SQLite."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        for pragma in ("page_size=4096", "auto_vacuum=0", "encoding='UTF-8'", "journal_mode=OFF", "synchronous=OFF"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("PRAGMA temp_store=FILE")
        connection.execute("PRAGMA cache_size=-32768")  # KiB; also what a sort holds in memory
        connection.execute("BEGIN")
        for statement in schema:
            connection.execute(statement)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def _full_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise_system_error(error, path)
        if not any(said in str(error) for said in ("I/O", "unable to open")):
            raise
        raise OSError(errno.EIO, str(error), str(path)) from None
