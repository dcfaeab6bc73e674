"""The ledger after a crash at any byte, and after damage at any bit."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedkit.engine import ledger as module
from embedkit.engine.ledger import FRAME, Ledger, head_of
from embedkit.errors import IntegrityError, UsageError
from embedkit.storage import locked_file

RECORDS = [{"head": 1, "dim": 3}, {"window": 0, "ids": ["a", "ü\n"]}, {"window": 1, "ids": []}, {"window": 2}]


def records(path: Path) -> list[object]:
    with locked_file(path, path) as file:
        return [record for _, record in Ledger(file)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with locked_file(tmp_path / "x.ledger", tmp_path) as file:
        ledger = Ledger(file)
        for record in RECORDS:
            ledger.append(record)
    return tmp_path / "x.ledger"


@pytest.fixture
def starts(path: Path) -> list[int]:
    """Where each record begins, and the end."""
    with locked_file(path, path) as file:
        ledger = Ledger(file)
        return [*(position for position, _ in ledger), ledger.end]


def test_records_come_back_in_order(path: Path) -> None:
    assert records(path) == RECORDS


def test_every_prefix_opens_to_the_records_that_are_whole(path: Path, starts: list[int]) -> None:
    content = path.read_bytes()
    assert starts[-1] == len(content)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        whole = sum(end <= length for end in starts[1:])
        assert records(path) == RECORDS[:whole], length


@pytest.mark.parametrize("filler", [b"\0", b"\xf5", b"E"])
def test_a_tail_whose_blocks_never_reached_the_disk_is_torn(path: Path, starts: list[int], filler: bytes) -> None:
    content = path.read_bytes()
    for length in range(starts[-2], starts[-1]):
        path.write_bytes(content[:length].ljust(len(content), filler))
        assert records(path) == RECORDS[:-1]


def flipped(content: bytes) -> Iterator[tuple[int, bytes]]:
    for position in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            yield position, bytes(damaged)


def test_every_flipped_bit_is_damage_in_the_middle_and_a_torn_tail_at_the_end(path: Path, starts: list[int]) -> None:
    for position, damaged in flipped(path.read_bytes()):
        path.write_bytes(damaged)
        if position >= starts[-2]:
            assert records(path) == RECORDS[:-1]
        else:
            with pytest.raises((IntegrityError, UsageError)) as error:
                records(path)
            assert (error.type is UsageError) == (position < 4)  # then it is not known as a ledger


def test_a_record_behind_a_block_of_damage_is_found(
    path: Path, starts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = path.read_bytes()
    for block in range(1, 40):
        monkeypatch.setattr(module, "BLOCK", block)
        path.write_bytes(content[: starts[1]] + b"\xf5EK" * 11 + content[starts[-2] :])
        with pytest.raises(IntegrityError, match=f"damaged at byte {starts[1]}, before its last record"):
            records(path)


def test_appending_goes_on_where_the_torn_tail_began(path: Path, starts: list[int]) -> None:
    path.write_bytes(path.read_bytes()[:-3])
    with locked_file(path, path) as file:
        ledger = Ledger(file)
        ledger.cut()
        assert file.size == starts[-2]
        ledger.append({"new": True})
    assert records(path) == [*RECORDS[:-1], {"new": True}]


def test_cutting_drops_the_records_behind(path: Path, starts: list[int]) -> None:
    with locked_file(path, path) as file:
        Ledger(file).cut(starts[2])
    assert records(path) == RECORDS[:2]
    assert path.stat().st_size == starts[2]


@pytest.mark.parametrize("content", [b"2026-01-01 Coffee 3.50\n", b"\xf5EKX" + bytes(30), b"X"])
def test_somebody_elses_file_is_not_taken_for_a_ledger(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"x\.ledger is there and is no ledger of embedkit"):
        records(path)


@pytest.mark.parametrize("content", [b"", b"\xf5E", bytes(FRAME.size), b"\xf5EKL\0\0", b"\xf5E\0\0", b"\0EK\0"])
def test_a_ledger_that_was_torn_at_its_head_is_empty(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert records(path) == []


def framed(content: bytes) -> bytes:
    """A record whose checksums fit, whatever it holds."""
    start = FRAME.pack(module.MAGIC, len(content), zlib.crc32(content), 0)[:-4]
    return start + struct.pack("<I", zlib.crc32(start)) + content


FOREIGN = [b"[]", b"{not json", b"\xff", b"7", b"", b"[" * 10_000, b'{"a": ' + b"7" * 5000 + b"}"]


@pytest.mark.parametrize("content", FOREIGN, ids=lambda content: repr(content[:12]))
def test_a_record_that_is_no_json_object_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(framed(content))
    for read in (records, head_of):
        with pytest.raises(IntegrityError, match=r"x\.ledger holds what embedkit does not write; start again"):
            read(path)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ({"settings": {}}, "compute is missing"),
        ({"compute": {}}, "settings is missing"),
        ({"compute": [], "settings": {}}, "compute is \\[\\], not a mapping"),
        ({"compute": {"threads": 4}, "settings": {}}, "compute.threads is 4, not a text"),
    ],
)
def test_a_head_without_its_fields_is_refused(path: Path, head: dict[str, object], reason: str) -> None:
    path.write_bytes(framed(json.dumps(head).encode()))
    with pytest.raises(IntegrityError, match=reason):
        head_of(path)


def test_a_record_longer_than_is_read_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MANIFEST", 8)
    with pytest.raises(IntegrityError, match=r"a record of 21 bytes, and at most 8 are read"):
        records(path)
