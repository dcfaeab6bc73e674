"""Retrieval metrics, each named by one string, from trec_eval itself (pytrec_eval).

| name                | what it is                                                        | trec_eval's        |
|---------------------|-------------------------------------------------------------------|--------------------|
| ndcg@10, ndcg       | gains are the grades (Jarvelin & Kekalainen 2002)                 | ndcg_cut_10, ndcg  |
| map@100, map        | average precision over the first 100, or over all that was found  | map_cut_100, map   |
| mrr@10, mrr         | one over the rank of the first relevant document                  | recip_rank         |
| recall@100          | share of the relevant documents that is among the first 100       | recall_100         |
| precision@5         | share of the first 5 that is relevant                             | P_5                |
| hit_rate@10         | whether a relevant document is among the first 10                 | success_10         |
| judged@10           | share of the first 10 found that has a judgement, of any grade    |                    |

Any whole number may stand behind the @. Relevant is a grade above 0. Ties are ordered as trec_eval does: the larger document id
first, scores being equal where they are in float32.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedkit.corpus.beir import Qrels
from embedkit.errors import MissingDependency, UsageError

Run = dict[str, dict[str, float]]  # query id -> document id -> score
Values = dict[str, float]  # query id -> value

DEPTH = 100  # documents retrieved a query; "map" is over these, as BEIR's MAP@100
METRICS = ("ndcg@10", "judged@10", "recall@100", "map", "mrr@10")  # what is reported when nothing is asked for
CUT = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P", "hit_rate": "success"}
WHOLE = {"ndcg": "ndcg", "map": "map", "mrr": "recip_rank"}
OWN = ("mrr", "judged")  # with @k: trec_eval cuts no reciprocal rank, so "mrr@10" is that of the run cut to ten


@dataclass(frozen=True)
class Metric:
    """A name taken apart. depth: the number behind the @; None for the whole run."""

    name: str
    family: str
    depth: int | None

    @property
    def trec_eval(self) -> str | None:
        """trec_eval's name of it, "ndcg_cut_10"; None for what trec_eval has not."""
        if self.depth is None:
            return WHOLE[self.family]
        return f"{CUT[self.family]}_{self.depth}" if self.family in CUT else None


def parse_metric(name: str) -> Metric:
    """Raises UsageError for a name that is none."""
    match = re.fullmatch(r"([a-z_]+)(?:@([1-9][0-9]{0,5}))?", name)
    family, depth = (match[1], int(match[2]) if match[2] else None) if match else ("", None)
    if family not in (WHOLE if depth is None else {*CUT, *OWN}):
        raise UsageError(
            f"There is no metric {name!r}; expected ndcg@10, map@100, mrr@10, recall@100, precision@5, hit_rate@10, judged@10, "
            f"with any number behind the @, or ndcg, map, mrr of all that was found."
        )
    return Metric(name, family, depth)


def depth_of(names: Sequence[str]) -> int:
    """How many documents have to be retrieved for each query, so that the metrics mean what they say."""
    return max(DEPTH, *(parse_metric(name).depth or 0 for name in names))


def retrieval_scores(qrels: Qrels, run: Run, names: Sequence[str] = METRICS) -> dict[str, Values]:
    """metric -> query id -> value, for every query with at least one relevant document.

    A query that is missing from the run scores 0. Raises UsageError for a name that is no metric.
    """
    metrics = [parse_metric(name) for name in names]
    judged = {query: grades for query, grades in qrels.items() if max(grades.values(), default=0) > 0}
    found = {query: run.get(query, {}) for query in judged}
    theirs = {metric.trec_eval: metric for metric in metrics if metric.trec_eval}
    values = _trec_eval(judged, found, set(theirs))
    scores: dict[str, Values] = {}
    for metric in metrics:
        if metric.depth is not None and metric.family in OWN:
            scores[metric.name] = _OWN[metric.family](judged, found, metric.depth)
        else:
            scores[metric.name] = {query: values[query].get(str(metric.trec_eval), 0.0) for query in judged}
    return scores


def _reciprocal_rank(qrels: Qrels, run: Run, depth: int) -> Values:
    values = _trec_eval(qrels, {query: by_place(ranked(run[query])[:depth]) for query in qrels}, {"recip_rank"})
    return {query: values[query].get("recip_rank", 0.0) for query in qrels}


def _judged(qrels: Qrels, run: Run, depth: int) -> Values:
    """Over what was found, where that is less than depth; 0 where nothing was."""
    first = {query: ranked(run[query])[:depth] for query in qrels}
    return {query: sum(one in qrels[query] for one in some) / max(len(some), 1) for query, some in first.items()}


_OWN: dict[str, Callable[[Qrels, Run, int], Values]] = {"mrr": _reciprocal_rank, "judged": _judged}


def ranked(scores: dict[str, float]) -> list[str]:
    """Document ids in trec_eval's order: by score in float32, which is what it keeps, then the larger id first."""
    return sorted(scores, key=lambda document: (np.float32(scores[document]), document), reverse=True)


def without_themselves(run: Run, depth: int | None = None) -> Run:
    """The run without documents that have their query's id; of the others the first `depth`."""
    return {
        query: {one: found[one] for one in [one for one in ranked(found) if one != query][:depth]}
        for query, found in run.items()
    }


def by_place(order: Sequence[str]) -> dict[str, float]:
    """Scores that trec_eval ranks in this order."""
    return {document: float(len(order) - place) for place, document in enumerate(order)}


def _trec_eval(qrels: Qrels, run: Run, measures: set[str]) -> dict[str, Values]:
    """query id -> trec_eval's name -> value; nothing for a query that found nothing."""
    if not measures:
        return {query: {} for query in qrels}
    asked = {re.sub(r"_(\d+)$", r".\1", measure) for measure in measures}
    evaluator = trec_eval().RelevanceEvaluator(qrels, asked)
    found = evaluator.evaluate({query: scores for query, scores in run.items() if scores})
    return {query: found.get(query, {}) for query in qrels}


def trec_eval() -> Any:
    """The library; called early, so that its absence is known before hours of embedding."""
    try:
        return importlib.import_module("pytrec_eval")
    except ImportError:
        raise MissingDependency(
            'pytrec_eval is not installed; from the project\'s folder, run pip install -e ".[eval]".'
        ) from None
