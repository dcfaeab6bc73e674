"""Intervals and tests for scores: bootstrap, paired randomisation, Holm. numpy only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from embedkit.types import Array

Values = Sequence[float] | Array
DRAWS = 10_000
SLOW_DRAWS = 2_000  # of a statistic that is computed one resample after the other
SWAPS = 100_000
BLOCK = 1_000_000  # resampled values held at once
TIE = 1e-12  # differences of sums below this are rounding


def bootstrap_interval(values: Values, *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
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
    return _between(means, level)


def bootstrap_statistic(
    statistic: Callable[..., float], *columns: Values, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of any statistic of columns of equal length, whose rows are resampled together; over
    2,000 resamples. One on which the statistic is no number (a correlation of constants) is left out."""
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    generator, size = np.random.default_rng(seed), len(arrays[0])
    draws = (generator.integers(size, size=size) for _ in range(SLOW_DRAWS))
    found = np.array([statistic(*(array[rows] for array in arrays)) for rows in draws])
    return _between(found[np.isfinite(found)], level)


def _between(draws: Array, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def randomisation_test(differences: Values, *, seed: int = 0) -> float:
    """Two-sided p of paired differences (n,) having mean 0: Fisher's randomisation test, each sign drawn anew 100,000 times
    (Smucker, Allan & Carterette 2007); all 2^n assignments where these are fewer. 1 where nothing differs.
    """
    values = np.asarray(differences, dtype=np.float64)
    values = values[values != 0]  # a sign more or less of nothing
    if not len(values):
        return 1.0
    observed, count = abs(values.sum()), len(values)
    if count <= np.log2(SWAPS):
        bits = np.arange(2**count)[:, None] >> np.arange(count) & 1
        sums = np.abs((1 - 2 * bits) @ values)
        return float(np.mean(sums >= observed - TIE))
    reached = sum(
        int(np.count_nonzero(np.abs(signs @ values) >= observed - TIE)) for signs in _signs(SWAPS, count, seed)
    )
    return (reached + 1) / (SWAPS + 1)


def _signs(draws: int, count: int, seed: int) -> Any:
    """Blocks of rows (m, count) of -1 and 1, so many rows in all."""
    generator = np.random.default_rng(seed)
    step = max(1, BLOCK // count)
    for start in range(0, draws, step):
        size = min(step, draws - start)
        yield 1.0 - 2.0 * generator.integers(2, size=(size, count), dtype=np.int8)


def correlation_test(truth: Values, one: Values, other: Values, *, seed: int = 0) -> float:
    """Two-sided p of two systems' predictions (n,) having the same Spearman correlation with the truth: their ranks for a pair
    are swapped or not, 100,000 times. Ranks, because the scales of two systems' scores have nothing to do with each other.
    """
    target, left, right = (_standard(_ranks(np.asarray(column, dtype=np.float64))) for column in (truth, one, other))
    both, half = (left + right) / 2, (left - right) / 2

    def differences(signs: Array) -> Array:
        gap: Array = _correlations(target, both + signs * half) - _correlations(target, both - signs * half)
        return np.abs(gap)

    observed = differences(np.ones((1, len(target))))[0]
    reached = sum(
        int(np.count_nonzero(differences(signs) >= observed - TIE)) for signs in _signs(SWAPS, len(target), seed)
    )
    return (reached + 1) / (SWAPS + 1)


def _correlations(target: Array, columns: Array) -> Array:
    """(m,) Pearson correlations of the standardised target (n,) with each of the columns (m, n)."""
    found: Array = columns @ target / len(target) / np.maximum(columns.std(axis=1), TIE)
    return found


def spearman(one: Values, other: Values) -> float:
    """Rank correlation; NaN where one of the two is constant."""
    left, right = (_ranks(np.asarray(column, dtype=np.float64)) for column in (one, other))
    if left.std() == 0 or right.std() == 0:
        return float("nan")
    return float(np.mean(_standard(left) * _standard(right)))


def _ranks(values: Array) -> Array:
    """Ranks, the mean of theirs for equal values."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Array = (ends - (counts - 1) / 2)[places]
    return ranks


def _standard(values: Array) -> Array:
    """Mean 0 and deviation 1; zeros of constants."""
    deviation = values.std()
    standard: Array = (values - values.mean()) / (deviation if deviation > 0 else 1.0)
    return standard


def holm(p_values: Values) -> list[float]:
    """Adjusted for their number, so that the chance of any false finding among them stays what was asked (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def effect_size(differences: Values) -> float:
    """Cohen's d of paired differences: their mean in units of their standard deviation; 0 where nothing differs."""
    values = np.asarray(differences, dtype=np.float64)
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    mean = float(values.mean()) if len(values) else 0.0
    return mean / deviation if deviation > 0 else float(np.copysign(np.inf, mean)) if mean else 0.0
