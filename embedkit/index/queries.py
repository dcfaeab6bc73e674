"""Vectors that ask: how they become what the rows of an index are compared with."""

from __future__ import annotations

import numpy as np

from embedkit.errors import UsageError
from embedkit.index.manifest import Metric
from embedkit.types import Array, Vectors
from embedkit.vectors import unit_rows

UNIT_WITHIN = 1e-6  # of the squared length: the rounding of float32


def compared(vectors: Vectors, metric: Metric) -> Vectors:
    """The rows as they are compared: for cosine of length 1. Raises UsageError for one that is not finite."""
    if len(vectors) == 1:  # it has a hundred microseconds in all
        deviation = abs(float(vectors[0] @ vectors[0]) - 1)
    else:
        deviation = np.abs(np.einsum("ij,ij->i", vectors, vectors) - 1).max(initial=0)
    if deviation < UNIT_WITHIN:  # NaN is not less than anything
        return vectors
    if not np.isfinite(vectors).all():
        raise UsageError("A query vector holds NaN or infinity; expected finite numbers.")
    return unit_rows(vectors) if metric == "cosine" else vectors


def narrowed(vectors: Array, metric: Metric) -> Vectors:
    """float32 of queries in another dtype. Raises UsageError for what are no numbers, or too small for float32."""
    if vectors.dtype.kind not in "fiub":
        raise UsageError(f"Queries of {vectors.dtype} came; expected numbers.")
    if metric == "cosine":
        return unit_rows(vectors)
    with np.errstate(over="ignore"):
        narrow = vectors.astype(np.float32)
    if (vectors.any(axis=1) & ~narrow.any(axis=1)).any():
        raise UsageError("A query vector is so small that it is zero in float32; scale it.")
    return narrow
