"""Intervals for means. numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DRAWS = 10_000
BLOCK = 1_000_000  # resampled values held at once


def bootstrap_interval(values: Sequence[float], *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron & Tibshirani 1993, chapter 13), over 10,000 resamples.

    The units (usually queries) are resampled with replacement; the same values and seed give the same interval.
    One value alone gives an interval of no width, and no value at all raises ValueError.
    """
    sample = np.asarray(values, dtype=np.float64)
    if not len(sample):
        raise ValueError("An interval needs at least one value.")
    generator = np.random.default_rng(seed)
    means = np.empty(DRAWS)
    step = max(1, BLOCK // len(sample))
    for start in range(0, DRAWS, step):
        size = min(step, DRAWS - start)
        means[start : start + size] = sample[generator.integers(len(sample), size=(size, len(sample)))].mean(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
