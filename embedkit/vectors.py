"""Rows of numbers: unit length and truncation. numpy only."""

from __future__ import annotations

import numpy as np

from embedkit.errors import UsageError
from embedkit.types import Vectors


def unit_rows(vectors: Vectors) -> Vectors:
    """The rows (n, dim) at Euclidean length 1; an all-zero row stays zero. The argument is not changed."""
    # in float64: squares of float32 values beyond 1e19 or under 1e-23 are not numbers any more
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))[:, None]
    with np.errstate(invalid="ignore"):  # an infinite row becomes NaN, which the caller names
        return (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32, copy=False)


def truncate(vectors: Vectors, dim: int, *, unit: bool) -> Vectors:
    """The first `dim` columns, at length 1 again when `unit` (Matryoshka, Kusupati et al. 2022, section 3).

    Raises UsageError when `dim` is not between 1 and the width of the rows.
    """
    check_dim(dim, vectors.shape[1])
    shorter = vectors[:, :dim]
    return unit_rows(shorter) if unit else np.ascontiguousarray(shorter)


def check_dim(dim: int, width: int) -> None:
    if not 1 <= dim <= width:
        raise UsageError(f"dim={dim} was asked for, the model gives {width} dimensions; choose 1 to {width}.")
