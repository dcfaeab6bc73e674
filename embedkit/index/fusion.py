"""How the scores of two legs become one: each leg's scores are made comparable, then weighed.

Both legs have scored all candidates, so that nothing is filled in. Equal weights are a baseline: over 29 BEIR sets the min-max mean of BM25
and a strong dense model beats both on nine, reciprocal ranks on eight; `embedkit index tune` finds a weight and says whether it pays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from embedkit.errors import UsageError
from embedkit.index.manifest import Method
from embedkit.types import Array

RANK_CONSTANT = 60  # Cormack, Clarke & Buettcher 2009
EQUAL_WITHIN = 1e-6  # of the largest score: rounding would become all there is


class Fusion(NamedTuple):
    method: Method = "minmax"
    weight: float = 0.5  # of the dense leg, from 0 to 1

    def check(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"fusion={self.method!r} came; expected {' or '.join(METHODS)}.")
        if not 0 <= self.weight <= 1:
            raise UsageError(f"weight={self.weight} came; expected the dense leg's share, from 0 to 1.")

    def of(self, dense: Array, sparse: Array) -> Array:
        """float32 (m,) of the candidates of one query. dense, sparse: (m,) their scores; 0 in sparse where no term is common."""
        comparable = METHODS[self.method]
        found: Array = self.weight * comparable(dense, -np.inf) + (1 - self.weight) * comparable(sparse, 0.0)
        return found.astype(np.float32)


def minmax(scores: Array, nothing: float) -> Array:
    """From 0 for the worst candidate to 1 for the best; 0 for all where they are equal."""
    if not len(scores):
        return np.zeros(0)
    values = scores.astype(np.float64)
    lowest, highest = values.min(), values.max()
    equal = highest - lowest <= EQUAL_WITHIN * max(abs(highest), abs(lowest))
    found: Array = np.zeros(len(values)) if equal else (values - lowest) / (highest - lowest)
    return found


def reciprocal_ranks(scores: Array, nothing: float) -> Array:
    """1 / (60 + rank); 0 for a candidate that its leg would not find."""
    found: Array = np.where(scores > nothing, 1 / (RANK_CONSTANT + ranks(scores)), 0.0)
    return found


def ranks(scores: Array) -> Array:
    """1 for the best; equal scores have the same rank."""
    found: Array = len(scores) - np.searchsorted(np.sort(scores), scores, side="right") + 1
    return found


METHODS: dict[Method, Callable[[Array, float], Array]] = {"minmax": minmax, "rrf": reciprocal_ranks}
