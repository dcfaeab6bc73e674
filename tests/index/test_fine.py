"""Exact scores, against a slow loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedkit.errors import IntegrityError
from embedkit.index import fine


def rows_and_queries(seed: int, n: int = 300, dim: int = 8, distinct: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Small whole numbers, whose products are exact in float32, so that ties are true ties."""
    generator = np.random.default_rng(seed)
    rows = generator.integers(-3, 4, size=(n, dim)).astype(np.float32)
    rows[distinct:] = rows[: max(0, n - distinct)]
    return rows, generator.integers(-3, 4, size=(5, dim)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 10, 299, 300, 301])
@pytest.mark.parametrize("block", [7, 300, 65_536])
def test_every_row_at_or_above_the_kth_score_is_found(k: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fine, "ROW_BLOCK", block)
    monkeypatch.setattr(fine, "QUERY_BLOCK", 2)
    rows, queries = rows_and_queries(k)
    candidates, scores = fine.exact_shortlist(queries, rows, k)
    for q in range(len(queries)):
        exact = {
            row: sum(float(a) * float(b) for a, b in zip(rows[row], queries[q], strict=True))
            for row in range(len(rows))
        }
        threshold = sorted(exact.values(), reverse=True)[min(k, len(rows)) - 1]
        expected = {row: score for row, score in exact.items() if score >= threshold}
        real = candidates[q] >= 0
        assert dict(zip(candidates[q][real].tolist(), scores[q][real].tolist(), strict=True)) == expected
        assert np.all(scores[q][~real] == -np.inf)


def test_a_shortlist_is_scored_by_the_stored_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fine, "QUERY_BLOCK", 2)
    rows, queries = rows_and_queries(3)
    candidates = np.array([[0, 5, -1], [299, -1, -1], [1, 2, 3], [7, 7, 7], [-1, -1, -1]])
    scores = fine.score_shortlist(queries, rows.astype(np.float16), candidates)
    for q, shortlist in enumerate(candidates):
        for position, row in enumerate(shortlist):
            expected = -np.inf if row < 0 else float(np.dot(rows[row], queries[q]))
            assert scores[q, position] == expected


def test_float16_moves_a_score_by_at_most_5e_4() -> None:
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((200, 384)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    everything = np.tile(np.arange(200), (20, 1))
    difference = fine.score_shortlist(rows[:20], rows.astype(np.float16), everything) - rows[:20] @ rows.T
    assert 0 < np.abs(difference).max() < 5e-4


def test_rows_of_another_shape_than_recorded_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 2), np.float16))
    assert fine.open_fine(tmp_path / "a.npy", 3, 2).shape == (3, 2)
    for count, dim in ((4, 2), (3, 3)):
        with pytest.raises(IntegrityError, match=r"holds \(3, 2\), its manifest says"):
            fine.open_fine(tmp_path / "a.npy", count, dim)
    (tmp_path / "b.npy").write_bytes(b"no header")
    with pytest.raises(IntegrityError, match="is no array any more"):
        fine.open_fine(tmp_path / "b.npy", 3, 2)
