"""Retrieval metrics, from trec_eval itself (pytrec_eval). Ties are ordered as trec_eval does: the larger document id first."""

from __future__ import annotations

import importlib
from typing import Any

from embedkit.corpus.beir import Qrels
from embedkit.errors import MissingDependency

Run = dict[str, dict[str, float]]  # query id -> document id -> score

DEPTH = 100  # documents retrieved a query; "map" is over these, as BEIR's MAP@100
METRICS = {"ndcg@10": "ndcg_cut_10", "recall@100": "recall_100", "map": "map"}  # ours -> trec_eval's
MRR_DEPTH = 10  # trec_eval cuts no reciprocal rank, so "mrr@10" is that of the run cut to ten


def retrieval_scores(qrels: Qrels, run: Run) -> dict[str, dict[str, float]]:
    """metric -> query id -> value, for every query with at least one relevant document.

    A query that is missing from the run scores 0. Relevant is a grade above 0; nDCG takes the grade as its gain.
    """
    judged = {query: grades for query, grades in qrels.items() if max(grades.values(), default=0) > 0}
    found = {query: run.get(query, {}) for query in judged}
    values = _trec_eval(judged, found, {"ndcg_cut.10", "recall.100", "map"})
    first = _trec_eval(judged, {query: _first(scores, MRR_DEPTH) for query, scores in found.items()}, {"recip_rank"})
    scores = {name: {query: values[query].get(trec, 0.0) for query in judged} for name, trec in METRICS.items()}
    scores["mrr@10"] = {query: first[query].get("recip_rank", 0.0) for query in judged}
    return scores


def _trec_eval(qrels: Qrels, run: Run, measures: set[str]) -> dict[str, dict[str, float]]:
    evaluator = trec_eval().RelevanceEvaluator(qrels, measures)
    found = evaluator.evaluate({query: scores for query, scores in run.items() if scores})
    return {query: found.get(query, {}) for query in qrels}


def _first(scores: dict[str, float], depth: int) -> dict[str, float]:
    ranked = sorted(scores.items(), key=lambda item: (item[1], item[0]), reverse=True)
    return dict(ranked[:depth])


def trec_eval() -> Any:
    """The library; called early, so that its absence is known before hours of embedding."""
    try:
        return importlib.import_module("pytrec_eval")
    except ImportError:
        raise MissingDependency(
            'pytrec_eval is not installed; from the project\'s folder, run pip install -e ".[eval]".'
        ) from None
