"""Pooling as weights: every pooling but the maximum is a weighted sum of token states, so a backend needs only that sum.

Each function: kept (B, T) bool, the tokens that take part, and positions (T,) from 1 -> weights (B, T) float32 whose products
with the states (B, T, H) sum to the row (B, H). Padding stands on the right.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from embedkit.types import Array


def mean(kept: Array, positions: Array) -> Array:
    return _shares(kept)


def mean_sqrt_len(kept: Array, positions: Array) -> Array:
    """The sum over the square root of the number of tokens."""
    count: Array = np.maximum(kept.sum(axis=1, keepdims=True), 1)
    return np.asarray(kept / np.sqrt(count), dtype=np.float32)


def weighted_mean(kept: Array, positions: Array) -> Array:
    """Later tokens weigh more, in proportion to their position (SGPT, Muennighoff 2022, section 3.1)."""
    return _shares(kept * positions)


def first_token(kept: Array, positions: Array) -> Array:
    return np.asarray(kept & (np.cumsum(kept, axis=1) == 1), dtype=np.float32)


def last_token(kept: Array, positions: Array) -> Array:
    return first_token(kept[:, ::-1], positions)[:, ::-1]


def _shares(weights: Array) -> Array:
    shares: Array = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
    return shares.astype(np.float32)


POOLINGS: dict[str, Callable[[Array, Array], Array]] = {  # by sentence-transformers' names
    "mean": mean,
    "cls": first_token,
    "lasttoken": last_token,
    "weightedmean": weighted_mean,
    "mean_sqrt_len_tokens": mean_sqrt_len,
}
