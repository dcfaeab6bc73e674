"""Metrics, against numbers worked out by hand."""

from __future__ import annotations

import sys
from math import log2

import pytest

from embedkit.errors import MissingDependency
from embedkit.eval.metrics import retrieval_scores


def test_grades_worked_out_by_hand() -> None:
    qrels = {"q": {"a": 2, "b": 1, "c": 0, "missing": 1}}
    run = {"q": {"x": 4.0, "a": 3.0, "c": 2.0, "b": 1.0}}
    scores = {metric: values["q"] for metric, values in retrieval_scores(qrels, run).items()}
    ideal = 2 + 1 / log2(3) + 1 / log2(4)
    assert scores == pytest.approx(
        {
            "ndcg@10": (2 / log2(3) + 1 / log2(5)) / ideal,
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
    assert {metric: list(values) for metric, values in scores.items()} == {
        m: ["q"] for m in ("ndcg@10", "recall@100", "map", "mrr@10")
    }


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytrec_eval", None)
    with pytest.raises(MissingDependency, match=r'pip install -e "\.\[eval\]"'):
        retrieval_scores({"q": {"a": 1}}, {"q": {"a": 1.0}})
