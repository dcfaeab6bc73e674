"""The order of ties: every order of small examples, tried."""

from __future__ import annotations

import numpy as np
import pytest

from embedkit.eval.metrics import parse_metric
from embedkit.eval.ties import expected_value, tie_sensitivity

from .plain_metrics import example, orders, value

NAMES = ["ndcg@3", "ndcg@10", "ndcg", "map@3", "map", "mrr@2", "mrr@10", "mrr"]


def judged_examples(count: int) -> dict[str, tuple[dict[str, int], dict[str, float]]]:
    draw = np.random.default_rng(0)
    made = (example(draw, documents=7, scores=3) for _ in range(4 * count))
    kept = [(grades, scores) for grades, scores in made if max(grades.values(), default=0) > 0][:count]
    return {f"q{number}": one for number, one in enumerate(kept)}


EXAMPLES = judged_examples(25)


@pytest.mark.parametrize("name", NAMES)
def test_worst_expected_and_best_are_those_of_all_orders(name: str) -> None:
    all_values = {
        query: [value(name, grades, order) for order in orders(scores)] for query, (grades, scores) in EXAMPLES.items()
    }
    for query, (grades, scores) in EXAMPLES.items():
        mean = float(np.mean(all_values[query]))
        assert expected_value(parse_metric(name), grades, scores) == pytest.approx(mean, abs=1e-12), query
    qrels = {query: grades for query, (grades, _) in EXAMPLES.items()} | {"missing": {"d0": 1}}
    run = {query: scores for query, (_, scores) in EXAMPLES.items()}
    sides = [[*map(side, all_values.values()), 0.0] for side in (min, np.mean, max)]
    worst, expected, best = (float(np.mean(side)) for side in sides)
    found = tie_sensitivity(qrels, run, [name, "recall@3"])
    assert found == {name: pytest.approx({"worst": worst, "expected": expected, "best": best}, abs=1e-12)}


def test_ties_that_move_nothing_are_not_mentioned() -> None:
    qrels = {"q": {"a": 1, "b": 1, "c": 0}}
    assert tie_sensitivity(qrels, {"q": {"a": 1.0, "b": 1.0, "x": 0.5, "y": 0.5}}, ["ndcg@10", "mrr@10", "map"]) == {}
    assert tie_sensitivity(qrels, {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}, ["ndcg@10"]) == {}
    moved = tie_sensitivity(qrels, {"q": {"a": 3.0, "b": 2.0, "c": 2.0}}, ["ndcg@10", "mrr@10"])
    assert set(moved) == {"ndcg@10"}
