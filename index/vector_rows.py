"""The rows that a program of this folder is given, and queries among them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from embedkit.errors import EmbedkitError
from embedkit.jobs import RowSource
from embedkit.vectors import unit_rows

LEAST = 200  # rows, and queries that are timed one by one


def rows_and_queries(path: Path, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, dim) rows and (q, dim) queries of length 1, float32: the last of a fixed shuffle are the queries. Ends the program with a
    sentence for a file that holds no vectors, or too few."""
    try:
        vectors = unit_rows(np.asarray(RowSource.of(path).rows))
    except EmbedkitError as error:
        raise SystemExit(str(error)) from None
    if not LEAST <= queries <= len(vectors) - LEAST:
        raise SystemExit(
            f"{path} holds {len(vectors):,} rows, {queries:,} of them were to be queries; {LEAST} of each are needed at least."
        )
    shuffled = np.random.default_rng(0).permutation(len(vectors))
    return vectors[shuffled[:-queries]], vectors[shuffled[-queries:]]
