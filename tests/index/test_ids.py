"""Ids by number, written and read back."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from embedkit.errors import IntegrityError
from embedkit.index import ids as ids_module
from embedkit.index.ids import Ids, open_array, write_ids, write_numbers
from embedkit.index.manifest import ID_TEXTS, IDS


@pytest.fixture
def path(tmp_path: Path) -> Callable[[str], Path]:
    return lambda part: tmp_path / f"segment-0001.{part}"


FORMS: dict[
    str, tuple[list[str], str, bool]
] = {  # ids -> the dtype of the numbers beside them, and whether there are texts
    "numbers": (["0", "7", "4294967295", "10"], "<u4", False),
    "large numbers": (["0", "4294967296", "999999999999999999"], "<u8", False),
    "none": ([], "<u4", False),
    "led by zeros": (["007", "7"], "<u4", True),
    "too large for a number": (["1000000000000000000", "1"], "<u4", True),
    "far too large": (["9" * 400], "<u4", True),
    "signs": (["-1", "+1", "1.0", "1e3", " 1", "1_000"], "<u4", True),
    "digits of other scripts": (["٣", "²", "３"], "<u4", True),
    "texts": (["a", "b c", "d\te", "é", "日本語", "🦊", "a" * 5000, "\u0000"], "<u4", True),
    "an empty one": (["", "a", ""], "<u4", True),
    "empty ones alone": (["", ""], "<u4", True),
    "numbers, then a text": (["1", "2", "three"], "<u4", True),
    "a text, then numbers": (["one", "2", "3"], "<u4", True),
}


@pytest.mark.parametrize("form", FORMS)
def test_ids_come_back_as_they_were(path: Callable[[str], Path], form: str) -> None:
    names, dtype, texts = FORMS[form]
    parts = write_ids(path, iter(names))
    assert parts == ([IDS, ID_TEXTS] if texts else [IDS])
    assert {entry.name for entry in path(IDS).parent.iterdir()} == {f"segment-0001.{part}" for part in parts}
    ids = Ids(path, len(names), texts=texts)
    assert list(ids) == names
    assert ids.of(np.arange(len(names))[::-1]) == names[::-1]
    assert ids.of(np.array([], dtype=np.int64)) == []
    stored = np.load(path(IDS), allow_pickle=False)
    assert stored.dtype.str == dtype
    expected = np.cumsum([0, *(len(name.encode()) for name in names)]) if texts else [int(name) for name in names]
    assert stored.tolist() == list(expected)


def test_numbers_take_four_bytes_and_eight_where_they_must(path: Callable[[str], Path]) -> None:
    write_ids(path, map(str, range(1000)))
    assert path(IDS).stat().st_size == 128 + 4 * 1000
    write_ids(path, map(str, range(2**40, 2**40 + 1000)))
    assert path(IDS).stat().st_size == 128 + 8 * 1000


def test_places_of_texts_beyond_four_gibibytes_take_eight_bytes(path: Callable[[str], Path]) -> None:
    write_numbers(path(IDS), np.array([0, 2**32 - 1]))
    assert np.load(path(IDS), allow_pickle=False).dtype == np.uint32
    write_numbers(path(IDS), np.array([0, 2**32]))
    assert np.load(path(IDS), allow_pickle=False).tolist() == [0, 2**32]


def test_many_ids_pass_block_by_block(path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids_module, "BLOCK", 7)
    names = [f"d{number}" for number in range(100)]
    write_ids(path, iter(names))
    assert list(Ids(path, 100, texts=True)) == names


def test_the_files_of_an_earlier_try_are_replaced(path: Callable[[str], Path]) -> None:
    write_ids(path, ["a longer text", "b"])
    assert write_ids(path, ["1", "2"]) == [IDS]
    assert not path(ID_TEXTS).exists()
    assert list(Ids(path, 2, texts=False)) == ["1", "2"]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("names", [["1", "2"], ["a", "b"]])
def test_another_count_than_recorded_is_refused(path: Callable[[str], Path], names: list[str], count: int) -> None:
    texts = names == ["a", "b"]
    write_ids(path, names)
    with pytest.raises(IntegrityError, match=r"ids\.npy is no array of .*, as its manifest says"):
        Ids(path, count, texts=texts)


def test_texts_that_are_no_utf8_any_more_are_refused(path: Callable[[str], Path]) -> None:
    write_ids(path, ["é", "b"])
    path(ID_TEXTS).write_bytes(b"\xff\xffb")
    with pytest.raises(IntegrityError, match=r"ids\.txt is damaged"):
        Ids(path, 2, texts=True).of(np.array([0]))


@pytest.mark.parametrize(
    "content", [b"", b"x", b"\x93NUMPY\x01\x00\x76\x00{'descr': '<u4'", b"\x93NUMPY\x01\x00\x76\x00" + b"(" * 118]
)
def test_what_is_no_array_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"a\.npy is no array of <u4 \(1,\)"):
        open_array(tmp_path / "a.npy", (1,), ("<u4",))


def test_an_array_of_another_dtype_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3, np.float32))
    with pytest.raises(IntegrityError, match=r"a\.npy is no array of <u4 or <u8 \(3,\)"):
        open_array(tmp_path / "a.npy", (3,), ("<u4", "<u8"))
    np.save(tmp_path / "b.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(IntegrityError, match="is no array of"):  # and nothing is unpickled
        open_array(tmp_path / "b.npy", (1,), ("|O",))


def test_arrays_are_opened_from_many_threads_at_once(tmp_path: Path) -> None:
    """numpy parses a header as Python, which fails now and then in several threads of Python 3.11."""
    write_numbers(tmp_path / "a.npy", np.arange(5))
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: open_array(tmp_path / "a.npy", None, ("<u4",)).sum(), range(2000)))
    assert set(found) == {10}
    write_numbers(tmp_path / "empty.npy", np.arange(0))
    assert open_array(tmp_path / "empty.npy", (0,), ("<u4",)).shape == (0,)
