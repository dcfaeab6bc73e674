"""Two evaluations side by side, against numbers worked out by hand and scipy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from embedkit.errors import DataError, UsageError
from embedkit.eval.compare import Moved, compare, markdown
from embedkit.statistics import bootstrap_interval, randomisation_test
from embedkit.types import Report

DATA = {"name": "animals", "split": "test"}


def report(values: dict[str, float], **changes: object) -> Report:
    made = Report(
        {"ndcg@10": float(np.mean(list(values.values())))},
        {},
        {"ndcg@10": values},
        {"data": DATA},
        texts={name: f"text of {name}" for name in values},
    )
    return replace(made, **changes)


ONE = report({"a": 0.5, "b": 0.0, "c": 1.0, "d": 0.25})
OTHER = report({"d": 0.25, "c": 0.0, "b": 0.5, "a": 0.75})  # in another order


def test_a_comparison_by_hand() -> None:
    (found,) = compare({"animals": ONE, "only here": ONE}, {"animals": OTHER})
    assert (found.task, found.metric, found.unit, found.units) == ("animals", "ndcg@10", "query", 4)
    assert (found.one, found.other) == (0.4375, 0.375)
    assert found.difference == -0.0625
    assert (found.wins, found.ties, found.losses) == (2, 1, 1)
    assert found.moved == [
        Moved("c", "text of c", 1.0, 0.0),
        Moved("b", "text of b", 0.0, 0.5),
        Moved("a", "text of a", 0.5, 0.75),
    ]
    gaps = [0.25, 0.5, -1.0, 0.0]
    assert found.interval == bootstrap_interval(gaps)
    # of the 8 assignments of signs to 0.25, 0.5 and 1, all have a sum of at least 0.25
    assert found.p == found.p_holm == 1.0
    assert found.effect == pytest.approx(np.mean(gaps) / np.std(gaps, ddof=1))


def test_p_is_adjusted_for_the_number_of_tasks() -> None:
    draw = np.random.default_rng(0)
    names = [f"q{n}" for n in range(40)]
    base = dict(zip(names, draw.random(40), strict=True))
    tasks = {f"t{shift}": {q: v + shift * draw.random() for q, v in base.items()} for shift in (0.05, 0.5, 0.0)}
    found = compare(dict.fromkeys(tasks, report(base)), {name: report(values) for name, values in tasks.items()})
    p = [one.p for one in found]
    assert p == [randomisation_test([values[q] - base[q] for q in base]) for values in tasks.values()]
    assert p[2] == 1.0
    smallest = min(p)
    assert found[p.index(smallest)].p_holm == pytest.approx(3 * smallest)
    assert all(one.p_holm >= one.p for one in found)


def test_correlations_are_compared_by_ranks() -> None:
    draw = np.random.default_rng(1)
    truth = draw.normal(size=200)
    good, bad = truth + 0.3 * draw.normal(size=200), truth + 3 * draw.normal(size=200)

    def sts(scores: np.ndarray) -> Report:
        pairs = {str(n): (float(t), float(s)) for n, (t, s) in enumerate(zip(truth, scores, strict=True))}
        score = float(scipy.stats.spearmanr(truth, scores).statistic)
        return Report({"spearman": score}, {}, {}, {"data": DATA}, "spearman", "pair", pairs)

    (found,) = compare({"sts": sts(bad)}, {"sts": sts(np.exp(good))})
    assert found.interval is not None and found.p is not None
    assert found.interval[0] < found.difference < found.interval[1]
    assert (found.p < 0.001, found.effect, found.wins, found.units) == (True, None, None, 200)
    (same,) = compare({"sts": sts(good)}, {"sts": sts(np.exp(good))})
    assert (same.p, same.interval) == (1.0, (0.0, 0.0))


def test_scores_without_units_are_told_apart_from_tests() -> None:
    bare = Report({"accuracy": 0.5}, {}, {}, {"data": DATA}, "accuracy")
    (found,) = compare({"t": bare}, {"t": replace(bare, scores={"accuracy": 0.6})})
    assert (found.p, found.p_holm, found.interval) == (None, None, None)
    assert "| t | accuracy | 0.5000 | 0.6000 | +0.1000 |  |  |" in markdown([found])


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UsageError, match="No task is in both: a there, b here"):
        compare({"a": ONE}, {"b": OTHER})
    with pytest.raises(DataError, match="animals was of other data"):
        compare({"animals": ONE}, {"animals": replace(OTHER, context={"data": {**DATA, "split": "dev"}})})
    with pytest.raises(DataError, match=r"animals has 2 units in one evaluation only \(d, e\)"):
        compare({"animals": ONE}, {"animals": report({"a": 1.0, "b": 1.0, "c": 1.0, "e": 1.0})})
    with pytest.raises(DataError, match=r"animals has no ndcg@10 that is a number in both"):
        compare({"animals": ONE}, {"animals": replace(OTHER, scores={"ndcg@10": float("nan")})})
    with pytest.raises(DataError, match="was scored by ndcg@10 there and map here"):
        compare({"animals": ONE}, {"animals": replace(OTHER, main="map")})


def test_the_table_names_what_moved() -> None:
    text = markdown(compare({"animals": ONE}, {"animals": OTHER}))
    assert "| animals | ndcg@10 | 0.4375 | 0.3750 | -0.0625 |" in text
    assert "| 1.0000 | 1.0000 | -0.10 | 2/1/1 | 4 query |" in text
    assert "- 1.000 -> 0.000  c: text of c" in text
