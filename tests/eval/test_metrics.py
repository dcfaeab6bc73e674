"""Metrics, against numbers worked out by hand."""

from __future__ import annotations

import sys
from math import log2

import numpy as np
import pytest

from embedkit.errors import MissingDependency, UsageError
from embedkit.eval.metrics import METRICS, depth_of, retrieval_scores

from . import plain_metrics
from .plain_metrics import example


def test_grades_worked_out_by_hand() -> None:
    qrels = {"q": {"a": 2, "b": 1, "c": 0, "missing": 1}}
    run = {"q": {"x": 4.0, "a": 3.0, "c": 2.0, "b": 1.0}}
    scores = {metric: values["q"] for metric, values in retrieval_scores(qrels, run).items()}
    ideal = 2 + 1 / log2(3) + 1 / log2(4)
    assert scores == pytest.approx(
        {
            "ndcg@10": (2 / log2(3) + 1 / log2(5)) / ideal,
            "judged@10": 3 / 4,
            "recall@100": 2 / 3,
            "map": (1 / 2 + 2 / 4) / 3,
            "mrr@10": 1 / 2,
        }
    )


def test_ties_go_to_the_larger_id() -> None:
    """trec_eval orders equal scores by document id, descending: "b" stands before "a"."""
    run = {"q": {"a": 1.0, "b": 1.0}}
    assert retrieval_scores({"q": {"b": 1}}, run)["mrr@10"] == {"q": 1.0}
    assert retrieval_scores({"q": {"a": 1}}, run)["mrr@10"] == {"q": 0.5}
    eleven = {"q": {f"d{i:02}": 1.0 for i in range(11)}}  # d10 first, d00 the eleventh
    assert retrieval_scores({"q": {"d01": 1}}, eleven)["mrr@10"] == {"q": 0.1}
    assert retrieval_scores({"q": {"d00": 1}}, eleven)["mrr@10"] == {"q": 0.0}
    assert retrieval_scores({"q": {"d01": 1}}, eleven)["ndcg@10"] == {"q": pytest.approx(1 / log2(11))}
    assert retrieval_scores({"q": {"d00": 1}}, eleven)["ndcg@10"] == {"q": 0.0}


def test_recall_is_of_the_first_hundred() -> None:
    run = {"q": {f"d{i:03}": float(-i) for i in range(101)}}
    scores = retrieval_scores({"q": {"d099": 1, "d100": 1}}, run)
    assert scores["recall@100"] == {"q": 0.5}


def test_a_query_that_is_missing_or_found_nothing_scores_zero() -> None:
    scores = retrieval_scores({"q": {"a": 1}, "r": {"a": 1}, "s": {"a": 1}}, {"q": {"a": 1.0}, "r": {}})
    for values in scores.values():
        assert values == {"q": 1.0, "r": 0.0, "s": 0.0}


def test_a_query_without_anything_relevant_is_left_out() -> None:
    scores = retrieval_scores(
        {"q": {"a": 1}, "none": {"a": 0}, "bad": {"a": -1}}, {"q": {"a": 1.0}, "none": {"a": 1.0}}
    )
    assert {metric: list(values) for metric, values in scores.items()} == {m: ["q"] for m in METRICS}


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytrec_eval", None)
    with pytest.raises(MissingDependency, match=r'pip install -e "\.\[eval\]"'):
        retrieval_scores({"q": {"a": 1}}, {"q": {"a": 1.0}})


NAMES = [
    *(
        "ndcg@1",
        "ndcg@3",
        "ndcg@10",
        "ndcg",
        "map@1",
        "map@3",
        "map",
        "mrr@1",
        "mrr@10",
        "mrr",
        "recall@2",
        "recall@100",
    ),
    *("precision@1", "precision@5", "precision@20", "hit_rate@1", "hit_rate@10", "judged@3", "judged@10"),
]


def test_every_metric_is_that_of_its_definition() -> None:
    """On 300 queries with ties, graded, negative and empty judgements, documents that nobody judged, and queries that found
    nothing. Both trec_eval and the lines around it are compared with the definitions."""
    draw = np.random.default_rng(5)
    examples = {f"q{n}": example(draw, documents=25, scores=[2, 5, 500][n % 3]) for n in range(300)}
    qrels = {query: grades if n % 17 else {} for n, (query, (grades, _)) in enumerate(examples.items())}
    run = {query: scores for n, (query, (_, scores)) in enumerate(examples.items()) if n % 11}
    found = retrieval_scores(qrels, run, NAMES)
    expected = {
        name: {
            query: plain_metrics.value(name, grades, plain_metrics.order(run.get(query, {})))
            for query, grades in qrels.items()
            if max(grades.values(), default=0) > 0
        }
        for name in NAMES
    }
    assert found == {name: pytest.approx(values, abs=1e-12) for name, values in expected.items()}
    assert list(found) == NAMES


@pytest.mark.parametrize(
    "name", ["ndcg@0", "ndcg@", "ndcg@x", "precision", "NDCG@10", "", "p@5", "mrr@10 ", "recall@-1"]
)
def test_a_name_that_is_no_metric_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"There is no metric .*; expected ndcg@10"):
        retrieval_scores({"q": {"a": 1}}, {"q": {"a": 1.0}}, [name])


def test_the_depth_is_that_of_the_deepest_metric() -> None:
    assert depth_of(["ndcg@10", "map"]) == 100
    assert depth_of(["ndcg@10", "recall@1000", "mrr@10"]) == 1000
