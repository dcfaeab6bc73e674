"""Bootstrap intervals, against scipy, against one plain draw, and against odds worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from embedkit import statistics
from embedkit.statistics import (
    bootstrap_interval,
    bootstrap_statistic,
    correlation_test,
    effect_size,
    holm,
    randomisation_test,
)

SAMPLES = [
    np.random.default_rng(1).normal(10, 2, size=60).tolist(),
    np.random.default_rng(2).exponential(size=35).tolist(),
    [0.0] * 30 + [1.0] * 10,
]


@pytest.mark.parametrize("values", SAMPLES[:2], ids=["normal", "skewed"])
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_the_interval_is_that_of_scipy(values: list[float], level: float) -> None:
    import scipy.stats

    expected = scipy.stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=level,
        n_resamples=10_000,
        method="percentile",
        rng=np.random.default_rng(5),
    ).confidence_interval
    tolerance = 0.05 * (expected.high - expected.low)  # two draws of 10,000 differ; another definition differs more
    low, high = bootstrap_interval(values, level=level)
    assert low == pytest.approx(expected.low, abs=tolerance)
    assert high == pytest.approx(expected.high, abs=tolerance)


@pytest.mark.parametrize("values", SAMPLES, ids=["normal", "skewed", "two values"])
def test_the_interval_is_that_of_ten_thousand_resamples_drawn_at_once(values: list[float]) -> None:
    generator = np.random.default_rng(0)
    picks = generator.integers(len(values), size=(10_000, len(values)))
    means = np.sort([np.mean([values[i] for i in row]) for row in picks.tolist()])
    expected = (means[249] + 0.975 * (means[250] - means[249]), means[9749] + 0.025 * (means[9750] - means[9749]))
    assert bootstrap_interval(values) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("level", "expected"), [(0.95, (0.0, 1.0)), (0.55, (0.0, 1.0)), (0.45, (0.5, 0.5)), (0.1, (0.5, 0.5))]
)
def test_the_interval_of_zero_and_one_is_known_by_hand(level: float, expected: tuple[float, float]) -> None:
    """The mean of two draws is 0, 1/2, 1 with odds 1:2:1, so the tails turn at a quarter: at level one half."""
    assert bootstrap_interval([0, 1], level=level) == expected


def test_the_same_values_and_seed_give_the_same_interval() -> None:
    first = bootstrap_interval(SAMPLES[0])
    assert bootstrap_interval(SAMPLES[0]) == first == bootstrap_interval(SAMPLES[0], seed=0, level=0.95)
    assert bootstrap_interval(tuple(SAMPLES[0])) == first
    assert bootstrap_interval(SAMPLES[0], seed=1) != first


def test_one_value_alone_gives_no_width() -> None:
    assert bootstrap_interval([0.25]) == (0.25, 0.25)


def test_no_value_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^An interval needs at least one value\.$"):
        bootstrap_interval([])


@pytest.mark.parametrize("block", [1, 34, 35, 36, 35 * 3, 35 * 9_999, 35 * 10_000, 10**9])
def test_the_interval_does_not_depend_on_how_much_is_held_at_once(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = bootstrap_interval(SAMPLES[1])
    monkeypatch.setattr(statistics, "BLOCK", block)
    assert bootstrap_interval(SAMPLES[1]) == expected


@pytest.mark.parametrize(
    ("block", "shapes"),
    [
        (35_034, [(1_000, 35)] * 10),  # not quite room for one resample more
        (35_035, [(1_001, 35)] * 9 + [(991, 35)]),
        (34, [(1, 35)] * 10_000),  # a resample is never cut
        (10**9, [(10_000, 35)]),
    ],
)
def test_no_more_values_are_held_at_once_than_the_block(
    block: int, shapes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[int, int]] = []

    class Watched:
        def __init__(self, seed: int) -> None:
            self.generator = np.random.Generator(np.random.PCG64(seed))

        def integers(self, high: int, size: tuple[int, int]) -> np.ndarray:
            drawn.append(size)
            return self.generator.integers(high, size=size)

    monkeypatch.setattr(statistics, "BLOCK", block)
    monkeypatch.setattr(np.random, "default_rng", Watched)
    bootstrap_interval(SAMPLES[1])
    assert drawn == shapes


def test_values_of_half_the_precision_lose_none_of_theirs() -> None:
    values = np.random.default_rng(4).normal(1e6, 1, size=50).astype(np.float32)
    assert bootstrap_interval(values) == bootstrap_interval(values.tolist())  # type: ignore[arg-type]


def test_a_higher_level_gives_an_interval_that_holds_the_lower_one() -> None:
    intervals = [bootstrap_interval(SAMPLES[1], level=level) for level in (0.99, 0.95, 0.5)]
    lows, highs = zip(*intervals, strict=True)
    assert lows[0] < lows[1] < lows[2] < np.mean(SAMPLES[1]) < highs[2] < highs[1] < highs[0]


def test_the_interval_moves_and_grows_with_the_values() -> None:
    low, high = bootstrap_interval(SAMPLES[0])
    moved = bootstrap_interval([3 + 2 * value for value in SAMPLES[0]])
    assert moved == pytest.approx((3 + 2 * low, 3 + 2 * high), rel=1e-9)
    assert all(type(bound) is float for bound in moved)


# --- statistics that are no means, and tests ------------------------------------------------------------------------------


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    import scipy.stats

    return float(scipy.stats.spearmanr(one, other).statistic)


def test_the_interval_of_any_statistic_is_that_of_scipy() -> None:
    import scipy.stats

    draw = np.random.default_rng(3)
    truth = draw.normal(size=80)
    found = truth + draw.normal(size=80)
    expected = scipy.stats.bootstrap(
        (truth, found), spearman, paired=True, n_resamples=2_000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    low, high = bootstrap_statistic(spearman, truth, found)
    assert (low, high) == pytest.approx(tuple(expected), abs=0.1 * (expected.high - expected.low))


def test_resamples_without_a_value_are_left_out() -> None:
    low, high = bootstrap_statistic(lambda a, b: float("nan") if a[0] == a[1] else 2.0, [0, 1], [0, 1])
    assert (low, high) == (2.0, 2.0)


def differences(seed: int, count: int, shift: float) -> list[float]:
    draw = np.random.default_rng(seed)
    values = draw.choice([0.0, 0.0, 0.3, 1.0, -0.3, -1.0], size=count)
    return list(values + shift * (values != 0))


@pytest.mark.parametrize("shift", [0.0, 0.2])
@pytest.mark.parametrize("count", [9, 40, 100])
def test_p_is_that_of_scipy(count: int, shift: float) -> None:
    import scipy.stats

    values = np.array(differences(count, count, shift))
    expected = scipy.stats.permutation_test(
        (values, np.zeros(count)),
        lambda a, b, axis: (a - b).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=np.random.default_rng(2),
    ).pvalue
    assert randomisation_test(values) == pytest.approx(expected, abs=0.012)  # three deviations of 20,000 draws


def test_p_of_few_differences_is_known_by_hand() -> None:
    """Of the eight assignments of signs to 1, 2 and 4 only two have a sum as far from 0 as 7; and 5 of 8 as 1 + 2 - 4."""
    assert randomisation_test([1, 2, 4]) == 2 / 8
    assert randomisation_test([1, 2, -4]) == 1.0  # 1 is the least that they can add up to
    assert randomisation_test([0.1, 0.2, -0.3, 0]) == 1.0
    assert randomisation_test([0, 0]) == 1.0 == randomisation_test([])


def test_p_does_not_depend_on_who_comes_first() -> None:
    values = differences(5, 60, 0.1)
    assert randomisation_test(values) == pytest.approx(randomisation_test([-value for value in values]), abs=1e-12)


def test_p_of_correlations_is_that_of_scipy() -> None:
    import scipy.stats

    draw = np.random.default_rng(6)
    truth = draw.normal(size=60)
    one, other = np.exp(truth + draw.normal(size=60)), truth + 1.4 * draw.normal(size=60)
    ranks = [scipy.stats.rankdata(column) for column in (one, other)]

    def gap(a: np.ndarray, b: np.ndarray) -> float:
        target = scipy.stats.rankdata(truth)
        return float(np.corrcoef(target, a)[0, 1] - np.corrcoef(target, b)[0, 1])

    expected = scipy.stats.permutation_test(
        ranks, gap, permutation_type="samples", n_resamples=4_000, rng=np.random.default_rng(7)
    ).pvalue
    assert 0.01 < expected < 0.9
    assert correlation_test(truth, one, other) == pytest.approx(expected, abs=0.03)


def test_the_same_ranks_do_not_differ() -> None:
    truth = np.random.default_rng(8).normal(size=30)
    assert correlation_test(truth, truth + 0.1, np.exp(truth)) == 1.0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_the_effect_is_the_mean_in_deviations() -> None:
    assert effect_size([1, 2, 3]) == pytest.approx(2.0)
    assert effect_size([0, 0, 0]) == 0.0 == effect_size([])
    assert effect_size([-0.5, -0.5]) == -np.inf


@pytest.mark.parametrize("seed", range(6))
def test_p_is_within_five_thousandths_of_scipys(seed: int) -> None:
    """A sample of eval/statistics_check.py. scipy is given the size of the sum: its own two-sided p doubles a tail, and its error."""
    import scipy.stats

    draw = np.random.default_rng(seed)
    values = draw.choice([0.0, 0.2, 0.5, -0.3, 1.0, -1.0], 40) + (seed % 2) * draw.normal(0.1, 0.2, 40)
    expected = scipy.stats.permutation_test(
        (values, np.zeros(len(values))),
        lambda one, other, axis: abs((one - other).sum(axis=axis)),
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
        n_resamples=100_000,
        batch=20_000,
        rng=np.random.default_rng(1),
    ).pvalue
    assert randomisation_test(values) == pytest.approx(expected, abs=0.005)


def test_holm_is_that_of_its_steps() -> None:
    """Holm's procedure step by step: the smallest p against a/m, the next against a/(m-1), ..., stopping at the first that fails.
    What it rejects at a level is what has an adjusted p of at most that level."""
    p_values = [0.004, 0.03, 0.011, 0.04, 0.011, 0.8]
    for level in (0.01, 0.02, 0.045, 0.05, 0.1, 0.2):
        rejected = set()
        for step, place in enumerate(sorted(range(6), key=p_values.__getitem__)):
            if p_values[place] > level / (6 - step):
                break
            rejected.add(place)
        assert {place for place, p in enumerate(holm(p_values)) if p <= level} == rejected
