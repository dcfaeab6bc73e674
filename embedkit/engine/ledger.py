"""What a job has done, so that it can go on after any end: an append-only file of records beside its output.

A record is MAGIC, the length of its content, a CRC-32 of the content, a CRC-32 of these twelve bytes, and the content, a
JSON object. The first is the head (what the rows are made with), then comes one a finished window, in order, written
after its vectors are durable, and at last one that says what is renamed to what. Each is fsynced before the job goes on,
so a crash can tear the last record only: that one is cut off. Bytes that are no record and have one behind them are damage.

Reading streams, one record in memory at a time; a window's takes some 16 bytes a row and its ids.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

from embedkit.errors import IntegrityError, UsageError
from embedkit.limits import MANIFEST
from embedkit.storage import PositionalFile, positional_file
from embedkit.typed import checked, parsed

MAGIC = b"\xf5EKL"
FRAME = struct.Struct("<4sIII")  # MAGIC, length, CRC-32 of the content, CRC-32 of what stands before
BLOCK = 1 << 20  # bytes looked through at once for a record behind a damaged one

AFRESH = "start again with --overwrite"  # the way out of every damage

Record = Mapping[str, Any]


class Ledger:
    """The records of one file. Opening reads it once: a torn tail is told from a damaged middle, and left out.

    Raises IntegrityError where the file is damaged, UsageError where it is not a ledger at all.
    """

    def __init__(self, file: PositionalFile) -> None:
        self._file = file
        self.end, size = 0, file.size  # the end of the last whole record
        while (found := _read(self._file, self.end)) is not None:
            self.end = found[1]
        if self.end < size:
            self._refuse_damage(size)

    @classmethod
    def over(cls, file: PositionalFile) -> Ledger:
        """An empty ledger, durably, whatever stood in an older one. Raises UsageError for a file that is no ledger."""
        refuse_others(file)
        file.truncate(0)
        file.sync()
        return cls(file)

    def __iter__(self) -> Iterator[tuple[int, Record]]:
        """(where it begins, content) of every record."""
        position = 0
        while position < self.end and (found := _read(self._file, position)) is not None:
            yield position, found[0]
            position = found[1]

    def append(self, record: Record) -> None:
        """Durable when this returns."""
        content = json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
        start = FRAME.pack(MAGIC, len(content), zlib.crc32(content), 0)[:-4]
        self._file.write(self.end, start + struct.pack("<I", zlib.crc32(start)) + content)
        self._file.sync()
        self.end += FRAME.size + len(content)

    def cut(self, position: int | None = None) -> None:
        """Ends the file there, or behind its last whole record, durably."""
        self.end = self.end if position is None else position
        if self._file.size != self.end:
            self._file.truncate(self.end)
            self._file.sync()

    def _refuse_damage(self, size: int) -> None:
        path = self._file.path
        if self.end == 0:
            refuse_others(self._file)
        position = self.end + 1
        while position < size:
            block = self._file.read(position, BLOCK + len(MAGIC) - 1)
            found = block.find(MAGIC)
            if found < 0:
                position += BLOCK
                continue
            if _read(self._file, position + found) is not None:
                raise IntegrityError(f"{path} is damaged at byte {self.end}, before its last record; {AFRESH}.")
            position += found + 1


def refuse_others(file: PositionalFile) -> None:
    """Raises UsageError for a file that no ledger, torn at whatever byte, can be: it belongs to somebody."""
    beginning = file.read(0, len(MAGIC))
    if any(byte not in (0, ours) for byte, ours in zip(beginning, MAGIC, strict=False)):  # 0: not written when it tore
        raise UsageError(
            f"{file.path} is there and is no ledger of embedkit; move it away, or choose another output name."
        )


class Head(TypedDict):
    """The first record, as far as it is read by name; the rest is compared whole."""

    settings: dict[str, Any]
    compute: dict[str, str]


def head_of(path: Path) -> Record | None:
    """The first record of the ledger at `path`; None where there is no file, or no whole record at its beginning. Raises
    IntegrityError for one that no job wrote."""
    if not path.is_file():
        return None
    with positional_file(path) as file:
        found = _read(file, 0)
    return None if found is None else checked(found[0], Head, path, step=AFRESH)


def _read(file: PositionalFile, position: int) -> tuple[Record, int] | None:
    """The record that begins there, and where it ends; None where there is no whole one. Raises IntegrityError for one whose
    checksums fit and that is no JSON object: another program wrote it."""
    frame = file.read(position, FRAME.size)
    if len(frame) < FRAME.size or frame[:4] != MAGIC or zlib.crc32(frame[:-4]) != FRAME.unpack(frame)[3]:
        return None
    _, length, checksum, _ = FRAME.unpack(frame)
    if length > MANIFEST:
        raise IntegrityError(
            f"{file.path} has a record of {length:,} bytes, and at most {MANIFEST:,} are read; {AFRESH}."
        )
    content = file.read(position + FRAME.size, length)
    if len(content) < length or zlib.crc32(content) != checksum:
        return None
    try:
        record = parsed(content)
        if b"\\u" in content:  # half of a surrogate pair is no text that could be written again
            json.dumps(record, ensure_ascii=False).encode()
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise IntegrityError(f"{file.path} holds what embedkit does not write; {AFRESH}.")
    return record, position + FRAME.size + length
