"""Rows on disk and their scores, against numpy."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from embedkit.errors import IntegrityError
from embedkit.index import coarse, fine
from embedkit.index.fine import FineRows, FineWriter, Mask
from embedkit.storage import new_file
from embedkit.vectors import Ranges

from ..conftest import bent_rows

FINES = ["float32", "float16", "int8"]
every_fine = pytest.mark.parametrize("kind", FINES)
every_width = pytest.mark.parametrize("dim", [5, 16, 100])  # faiss has a kernel for each remainder of 16 and of 8


def opened(path: Path, rows: np.ndarray, kind: str, blocks: int = 1) -> FineRows:
    """The rows written, in several blocks, and opened again."""
    ranges = Ranges.of(rows) if kind == "int8" else None
    with new_file(path) as file:
        writer = FineWriter(file, rows.shape[1], kind, ranges)
        for block in np.array_split(rows, blocks):
            writer.append(block)
        writer.finish()
    return FineRows(path, len(rows), rows.shape[1], kind, ranges)


def by_numpy(queries: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    return np.asarray(queries, np.float64) @ np.asarray(decoded, np.float64).T


@every_fine
def test_rows_come_back_as_they_were_stored(tmp_path: Path, kind: str) -> None:
    rows = bent_rows(300, 24)
    held = opened(tmp_path / "a.npy", rows, kind, blocks=7)
    found = held.rows(np.array([7, 0, 299, 7]))
    if kind == "float32":
        np.testing.assert_array_equal(found, rows[[7, 0, 299, 7]])
    elif kind == "float16":
        np.testing.assert_array_equal(found, rows[[7, 0, 299, 7]].astype(np.float16))
    else:
        step = (rows.max(axis=0) - rows.min(axis=0)) / 255
        assert np.all(np.abs(found - rows[[7, 0, 299, 7]]) <= 0.501 * step)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(np.concatenate(list(held.blocks())), held.rows(np.arange(300)))
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy", allow_pickle=False), held.stored)


def test_rows_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fine, "BLOCK", 128)
    held = opened(tmp_path / "a.npy", bent_rows(300), "float16")
    assert [len(block) for block in held.blocks()] == [128, 128, 44]


def test_int8_rows_are_decoded_as_faiss_does(tmp_path: Path) -> None:
    held = opened(tmp_path / "a.npy", bent_rows(200, 24), "int8")
    theirs = np.array([held.kernel.reconstruct(row) for row in range(200)])
    np.testing.assert_allclose(held.rows(np.arange(200)), theirs, atol=1e-6)


def test_int8_values_outside_the_ranges_become_the_nearest_inside() -> None:
    ranges = Ranges.of(np.array([[0, -1], [1, 1]], np.float32))
    stored = fine.encode(np.array([[-5, 0], [7, 9], [0.5, -1]], np.float32), "int8", ranges)
    assert stored.tolist() == [[0, 127], [255, 255], [127, 0]]
    same = Ranges.of(np.array([[3, 0], [3, 1]], np.float32))  # a dimension that never changes
    np.testing.assert_allclose(fine.decode(fine.encode(np.array([[3, 0]], np.float32), "int8", same), same)[0, 0], 3)


@every_fine
@every_width
def test_a_score_is_the_product_with_the_stored_row(tmp_path: Path, kind: str, dim: int) -> None:
    rows = bent_rows(400, dim)
    held = opened(tmp_path / "a.npy", rows, kind)
    scores, found = held.search(rows[:20], 400)
    truth = by_numpy(rows[:20], held.rows(np.arange(400)))
    np.testing.assert_allclose(scores, np.take_along_axis(truth, found, axis=1), atol=1e-5)
    assert np.all(np.diff(scores, axis=1) <= 0) and np.array_equal(np.sort(found, axis=1)[3], np.arange(400))


def test_float16_moves_a_score_by_at_most_5e_4(tmp_path: Path) -> None:
    rows = bent_rows(200, 384)
    held = opened(tmp_path / "a.npy", rows, "float16")
    difference = held.score(rows[:20], np.arange(200)) - by_numpy(rows[:20], rows)
    assert 0 < np.abs(difference).max() < 5e-4


def test_int8_moves_a_score_by_less_than_half_a_step_of_each_dimension(tmp_path: Path) -> None:
    rows = bent_rows(200, 64)
    held = opened(tmp_path / "a.npy", rows, "int8")
    step = (rows.max(axis=0) - rows.min(axis=0)) / 255
    difference = np.abs(held.score(rows[:20], np.arange(200)) - by_numpy(rows[:20], rows))
    assert np.all(difference <= (np.abs(rows[:20]) @ (0.501 * step))[:, None] + 1e-5)


@every_fine
@every_width
def test_a_pair_has_one_score_in_whatever_company(tmp_path: Path, kind: str, dim: int) -> None:
    """Bit for bit, so that ties are ties: alone, in batches, through a mask, through codes."""
    rows, queries = bent_rows(500, dim), bent_rows(64, dim, seed=1)
    held = opened(tmp_path / "a.npy", rows, kind)
    table = np.array([held.score(queries[q : q + 1], np.arange(500))[0] for q in range(64)])

    def same(numbers: np.ndarray, scores: np.ndarray, found: np.ndarray) -> bool:
        return bool(np.all((found < 0) | (scores == np.take_along_axis(table[numbers], found, axis=1))))

    for size in (1, 15, 16, 17, 64):
        assert same(np.arange(size), *held.search(queries[:size], 500))
    few = np.random.default_rng(0).permutation(500) < 40
    assert same(np.arange(64), *held.search(queries, 40, Mask(few)))
    np.testing.assert_array_equal(held.score(queries, np.array([9, 3, 499])), table[:, [9, 3, 499]])
    index = coarse.train("SQ8", dim, held.rows, np.arange(500))
    coarse.fill(index, "SQ8", held.blocks())
    codes = coarse.Codes(index, held.kernel, None)
    for size in (1, 17, 64):
        assert same(np.arange(size), *codes.search(queries[:size], 10, 200))
        assert same(np.arange(size), *codes.search(queries[:size], 10, 200, Mask(few)))


@every_fine
def test_identical_rows_have_identical_scores_wherever_they_stand(tmp_path: Path, kind: str) -> None:
    rows = bent_rows(1000, 24)
    rows[np.arange(0, 1000, 3)] = rows[1]
    held = opened(tmp_path / "a.npy", rows, kind)
    scores = held.score(bent_rows(7, 24, seed=2), np.arange(0, 1000, 3))
    assert np.all(scores == scores[:, :1])


@every_fine
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("gathered", [10, 10_000], ids=["passed over", "gathered"])
def test_a_mask_leaves_only_its_rows(
    tmp_path: Path, kind: str, share: float, gathered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fine, "GATHERED", gathered)
    rows = bent_rows(600, 24)
    held = opened(tmp_path / "a.npy", rows, kind)
    passing = np.random.default_rng(0).random(600) < share
    mask = Mask(passing)
    assert (mask.count, mask.numbers.tolist()) == (int(passing.sum()), np.flatnonzero(passing).tolist())
    scores, found = held.search(rows[:5], 20, mask)
    truth = by_numpy(rows[:5], held.rows(np.arange(600)))
    truth[:, ~passing] = -np.inf
    wanted = min(20, mask.count)
    for q in range(5):
        assert set(found[q][found[q] >= 0]) <= set(mask.numbers)
        assert (found[q] >= 0).sum() == wanted
        np.testing.assert_allclose(scores[q, :wanted], np.sort(truth[q])[::-1][:wanted], atol=1e-5)


@every_fine
def test_the_nearest_of_many_queries_are_found_block_by_block(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fine, "BLOCK", 90)
    held = opened(tmp_path / "a.npy", bent_rows(500, 24), kind)
    queries = bent_rows(40, 24, seed=1)
    truth = by_numpy(queries, held.rows(np.arange(500)))
    for k in (1, 11, 100):
        found = np.take_along_axis(truth, held.nearest(queries, k)[1], axis=1)
        np.testing.assert_allclose(found, -np.sort(-truth, axis=1)[:, :k], atol=1e-5)


def test_more_than_there_is_and_nothing_at_all(tmp_path: Path) -> None:
    held = opened(tmp_path / "a.npy", bent_rows(3), "float16")
    assert held.search(bent_rows(2), 10)[1].shape == (2, 3)
    assert held.search(np.empty((0, 32), np.float32), 10)[1].shape == (0, 3)
    none = opened(tmp_path / "b.npy", np.empty((0, 32), np.float32), "float16")
    assert none.search(bent_rows(2), 10)[0].shape == (2, 0)
    assert none.score(bent_rows(2), np.empty(0, np.int64)).shape == (2, 0)


def test_nearest_rows_of_many_queries_are_those_of_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fine, "BLOCK", 64)
    rows = np.random.default_rng(3).standard_normal((300, 16)).astype(np.float32)
    opened_rows = opened(tmp_path / "x.npy", rows, "float32")
    expected = np.argsort(-(rows[:40] @ rows.T), axis=1)[:, :11]
    assert opened_rows.nearest(rows[:40], 11)[1].tolist() == expected.tolist()


def test_rows_are_copied_as_they_are_stored(tmp_path: Path) -> None:
    held = opened(tmp_path / "a.npy", bent_rows(50), "int8")
    with new_file(tmp_path / "b.npy") as file:
        writer = FineWriter(file, 32, "int8", held.ranges)
        writer.append_stored(held.stored[:20])
        writer.append_stored(held.stored[20:])
        writer.finish()
    assert (tmp_path / "b.npy").read_bytes() == (tmp_path / "a.npy").read_bytes()


def test_what_stood_in_the_file_before_is_gone(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"x" * 100_000)
    assert len(opened(tmp_path / "a.npy", bent_rows(5), "float16").stored) == 5


@pytest.mark.parametrize(
    ("count", "dim", "kind"), [(4, 2, "float16"), (3, 3, "float16"), (3, 2, "float32"), (6, 1, "float16")]
)
def test_rows_of_another_shape_than_recorded_are_refused(tmp_path: Path, count: int, dim: int, kind: str) -> None:
    opened(tmp_path / "a.npy", np.ones((3, 2), np.float32), "float16")
    with pytest.raises(IntegrityError, match=f"a.npy is no array of {count} rows any more"):
        FineRows(tmp_path / "a.npy", count, dim, kind)


@pytest.mark.parametrize("content", [b"", b"no header", bytes(128), bytes(140)])
def test_what_is_no_array_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(IntegrityError, match="is no array of 3 rows any more"):
        FineRows(tmp_path / "a.npy", 3, 2, "float16")


def test_closed_rows_can_be_read_as_long_as_somebody_holds_them(tmp_path: Path) -> None:
    gc.collect()
    before = len(list(Path("/dev/fd").iterdir()))
    held = opened(tmp_path / "a.npy", bent_rows(5), "float32")
    held.expect_shortlists()
    stored = held.stored
    held.close()
    (tmp_path / "a.npy").unlink()
    np.testing.assert_array_equal(stored, bent_rows(5))
    del held, stored
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_rows_in_memory_are_not_asked_for(tmp_path: Path) -> None:
    held = opened(tmp_path / "a.npy", bent_rows(5000, 64), "float32")
    held.stored.sum()
    assert held.ask_for(np.array([[0, 4999, -1], [17, -1, -1]])) is False
    assert held.ask_for(np.full((2, 3), -1)) is False


def test_rows_that_are_not_in_memory_are_asked_for_once_each_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = opened(tmp_path / "a.npy", bent_rows(100, 8), "float32")
    asked: list[tuple[int, int]] = []

    def absent(*_: Any) -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "preadv", absent)
    monkeypatch.setattr(os, "posix_fadvise", lambda _, start, length, advice: asked.append((start, length)))
    assert held.ask_for(np.array([[50, 3, -1], [3, 99, 50]])) is True
    assert asked == [(128 + row * 32, 32) for row in (3, 50, 99)]


@pytest.mark.parametrize("error", [OSError(95, "not supported"), AttributeError("RWF_NOWAIT")])
def test_where_nobody_can_say_what_is_in_memory_nothing_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    held = opened(tmp_path / "a.npy", bent_rows(10), "float16")

    def unknown(*_: Any) -> int:
        raise error

    monkeypatch.setattr(os, "preadv", unknown)
    assert held.ask_for(np.array([[0, 9]])) is False


def test_faiss_keeps_the_rows_that_it_looks_at(tmp_path: Path) -> None:
    stored = bent_rows(50).astype(np.float16)
    kernel = fine.kernel_over(stored, "float16", None)
    expected = fine.search_kernel(kernel, bent_rows(3), 5)
    del stored
    again = fine.search_kernel(kernel, bent_rows(3), 5)
    np.testing.assert_array_equal(again[1], expected[1])
    assert isinstance(kernel, faiss.IndexScalarQuantizer)
