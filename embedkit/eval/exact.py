"""Exact search over rows in memory, by matrix products: the reference that indexes are measured against."""

from __future__ import annotations

import numpy as np

from embedkit.types import Rows, Vectors

QUERY_BLOCK = 64  # queries scored at once
ROW_BLOCK = 65_536  # rows scored at once: bounds the score matrix


def exact_shortlist(queries: Vectors, rows: Vectors, k: int) -> tuple[Rows, Vectors]:
    """The best rows of each query and their scores, both (q, m) with m >= min(k, n), in no order.

    Every row whose score equals the k-th best is in, so that ties can be ordered by id afterwards; rows are -1 and
    scores -inf where a query has fewer than m of them.
    """
    k = min(k, len(rows))
    found = [_best(queries[start : start + QUERY_BLOCK], rows, k) for start in range(0, len(queries), QUERY_BLOCK)]
    width = max((len(row) for block in found for row, _ in block), default=0)
    candidates = np.full((len(queries), width), -1, dtype=np.int64)
    scores = np.full((len(queries), width), -np.inf, dtype=np.float32)
    for position, (row, score) in enumerate(pair for block in found for pair in block):
        candidates[position, : len(row)], scores[position, : len(row)] = row, score
    return candidates, scores


def _best(queries: Vectors, rows: Vectors, k: int) -> list[tuple[Rows, Vectors]]:
    """Per query: rows and scores at or above the k-th best score."""
    best: list[tuple[Rows, Vectors]] = [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries)
    for start in range(0, len(rows), ROW_BLOCK):
        scores = queries @ rows[start : start + ROW_BLOCK].T  # (b, rows)
        for position, score in enumerate(scores):
            kept, known = best[position]
            if len(known) >= k:  # only what reaches the k-th best so far can stay
                block = np.flatnonzero(score >= known.min())
            else:
                block = np.arange(len(score))
            row = np.concatenate([kept, block + start])
            score = np.concatenate([known, score[block]])
            if len(score) > k:
                reached = score >= np.partition(score, len(score) - k)[len(score) - k]
                row, score = row[reached], score[reached]
            best[position] = row, score
    return best
