"""Whether an export answers as its index does: stored rows as queries, the exact nearest rows of both.

A row agrees when it scores, in float64, no less than the last of the index's exact k nearest, but for the rounding of float32:
rows that tie may stand in any order. And it must bear the id that it has in the index.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from embedkit.errors import IntegrityError
from embedkit.export.blocks import Stream
from embedkit.types import Rows, Vectors
from embedkit.vectors import unit_rows

QUERIES, NEIGHBOURS, SEED = 100, 10, 0
ROUNDING = 1e-5  # of the product of lengths; float32 sums of a thousand terms stay below


class Opened(NamedTuple):
    """An export, opened again by the library that it is for, in a block that closes it."""

    rows: int
    search: Callable[[Vectors, int], tuple[Rows, list[list[str]]]]  # exact: row numbers (q, k) and the ids they bear


class Parity(NamedTuple):
    queries: int
    neighbours: int


def check_parity(stream: Stream, opened: Opened, name: str) -> Parity:
    """Raises IntegrityError where the export holds other rows than the index, or finds others."""
    if opened.rows != len(stream):
        raise IntegrityError(
            f"{name} holds {opened.rows:,} rows, the index {len(stream):,}; nothing was kept of it: try again, or choose another format."
        )
    drawn = np.random.default_rng(SEED).choice(len(stream), min(QUERIES, len(stream)), replace=False)
    queries = _stored(stream, np.sort(drawn))
    if stream.snapshot.manifest.metric == "cosine":
        queries = unit_rows(queries)
    k = min(NEIGHBOURS, len(stream))
    rows, ids = opened.search(queries, k)
    _, expected = stream.snapshot.nearest(queries, k)
    agreeing = sum(
        _agreeing(stream, query, found, names, stream.keys.searchsorted(best))
        for query, found, names, best in zip(queries, rows, ids, expected, strict=True)
    )
    if agreeing < len(queries) * k:
        raise IntegrityError(
            f"{name} finds {agreeing / (len(queries) * k):.1%} of what an exact search of the index finds ({k} nearest of "
            f"{len(queries)} stored rows), all of it was expected; nothing was kept of it: try again, or choose another format."
        )
    return Parity(len(queries), k)


def _agreeing(stream: Stream, query: Vectors, found: Rows, names: list[str], best: Rows) -> int:
    """How many of the rows found belong there. query: (dim,); found, best: (k,) row numbers."""
    right = found[(found >= 0) & (found < len(stream))]
    true_names = stream.snapshot.row_ids(stream.keys[right])
    if len(right) < len(found) or names != true_names:
        return 0
    limit, _ = _scores(stream, query, best)
    scores, rounding = _scores(stream, query, np.unique(found))
    return int((scores >= limit.min() - rounding).sum())


def _scores(stream: Stream, query: Vectors, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """float64 (m,) of rows (m,), and what float32 may make of them."""
    vectors = _stored(stream, rows).astype(np.float64)
    wide = query.astype(np.float64)
    return vectors @ wide, ROUNDING * np.linalg.norm(vectors, axis=1) * np.linalg.norm(wide)


def _stored(stream: Stream, rows: Rows) -> Vectors:
    """(m, dim) as they were exported."""
    return stream.snapshot.rows(stream.keys[rows])
