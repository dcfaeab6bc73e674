"""Exact search in memory, against a slow loop."""

from __future__ import annotations

import numpy as np
import pytest

from embedkit.eval import exact


def rows_and_queries(seed: int, n: int = 300, dim: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Small whole numbers, whose products are exact in float32, so that ties are true ties."""
    generator = np.random.default_rng(seed)
    rows = generator.integers(-3, 4, size=(n, dim)).astype(np.float32)
    return rows, generator.integers(-3, 4, size=(5, dim)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 10, 299, 300, 301])
@pytest.mark.parametrize("block", [7, 300, 65_536])
def test_every_row_at_or_above_the_kth_score_is_found(k: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "ROW_BLOCK", block)
    monkeypatch.setattr(exact, "QUERY_BLOCK", 2)
    rows, queries = rows_and_queries(k)
    candidates, scores = exact.exact_shortlist(queries, rows, k)
    for q in range(len(queries)):
        truth = {
            row: sum(float(a) * float(b) for a, b in zip(rows[row], queries[q], strict=True))
            for row in range(len(rows))
        }
        threshold = sorted(truth.values(), reverse=True)[min(k, len(rows)) - 1]
        expected = {row: score for row, score in truth.items() if score >= threshold}
        real = candidates[q] >= 0
        assert dict(zip(candidates[q][real].tolist(), scores[q][real].tolist(), strict=True)) == expected
        assert np.all(scores[q][~real] == -np.inf)


def test_no_queries_have_no_candidates() -> None:
    rows, _ = rows_and_queries(0)
    candidates, scores = exact.exact_shortlist(np.empty((0, 8), np.float32), rows, 10)
    assert candidates.shape == scores.shape == (0, 0)
