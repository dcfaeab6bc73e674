"""The fine level: exact inner products with rows on disk, for a shortlist or for all of them.

Scores are float32 products with the stored row; a float16 row moves a score by at most 5e-4 of the row's length. A
shortlist costs one gather of its rows from the memory map; an exact search holds all rows in RAM as float32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from embedkit.errors import IntegrityError
from embedkit.types import Array, Rows, Vectors

QUERY_BLOCK = 64  # queries scored at once: bounds the gathered rows, 64 x shortlist x dim float32
ROW_BLOCK = 65_536  # rows scored at once in an exact search: bounds the score matrix


def open_fine(path: Path, count: int, dim: int) -> Array:
    """The rows (count, dim) as a read-only memory map. The file's size has been checked against the manifest."""
    try:
        rows: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy meets a damaged header with ValueError, TokenError, EOFError, ...
        raise IntegrityError(f"{path} is no array any more ({error}); build the index again.") from None
    if rows.shape != (count, dim):
        raise IntegrityError(f"{path} holds {rows.shape}, its manifest says {(count, dim)}; build the index again.")
    return rows


def score_shortlist(queries: Vectors, fine: Array, candidates: Rows) -> Vectors:
    """(q, m) scores of the candidate rows (q, m); -inf where a candidate is -1."""
    scores = np.empty(candidates.shape, dtype=np.float32)
    for start in range(0, len(queries), QUERY_BLOCK):
        block = candidates[start : start + QUERY_BLOCK]
        rows = fine[np.maximum(block, 0)].astype(np.float32)  # (b, m, dim)
        scores[start : start + QUERY_BLOCK] = np.matmul(rows, queries[start : start + QUERY_BLOCK, :, None])[:, :, 0]
    scores[candidates < 0] = -np.inf
    return scores


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
