"""How far a score depends on the order of tied documents, which trec_eval sets by their ids and the model did not.

The best and the worst order of each group of equal scores are ranked by trec_eval itself; the expected value over all orders has a
closed form (McSherry & Najork 2008, "Computing Information Retrieval Performance Measures Efficiently in the Presence of Tied
Scores", section 3), written with the gains and cuts of trec_eval. Only documents that were found count: of ties that the depth of
the search cut through nothing is known.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from embedkit.corpus.beir import Qrels
from embedkit.eval.metrics import Metric, Run, by_place, parse_metric, ranked, retrieval_scores

Groups = list[list[int]]  # the grades of equal scores, groups from the best score down
SENSITIVE = ("ndcg", "map", "mrr")  # the families that are looked at
MOVES = 1e-9  # less is rounding


@dataclass(frozen=True)
class Ties:
    """Means over the queries."""

    worst: float
    expected: float  # over all orders of tied documents, each as likely
    best: float


def tie_sensitivity(qrels: Qrels, run: Run, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """nDCG, MAP and MRR of these metrics that tied documents move -> worst, expected and best; nothing of the others."""
    judged = {query: grades for query, grades in qrels.items() if max(grades.values(), default=0) > 0}
    tied = {query for query in judged if _has_ties(run.get(query, {}))}
    metrics = [metric for name in names if (metric := parse_metric(name)).family in SENSITIVE]
    if not tied or not metrics:
        return {}
    wanted = [metric.name for metric in metrics]
    low, high = (retrieval_scores(judged, _reordered(judged, run, tied, sign), wanted) for sign in (-1, 1))
    found = {}
    for metric in metrics:
        worst, best = (float(np.mean(list(side[metric.name].values()))) for side in (low, high))
        if best - worst > MOVES:
            values = [
                expected_value(metric, judged[query], run[query]) if query in tied else high[metric.name][query]
                for query in judged
            ]
            found[metric.name] = asdict(Ties(worst, float(np.mean(values)), best))
    return found


def _has_ties(scores: dict[str, float]) -> bool:
    return len({np.float32(score) for score in scores.values()}) < len(scores)


def _reordered(qrels: Qrels, run: Run, tied: set[str], sign: int) -> Run:
    """The run with the higher grades first (sign 1) or last (-1) in each group of ties."""

    def order(query: str) -> list[str]:
        scores, grades = run[query], qrels[query]
        return sorted(
            ranked(scores), key=lambda document: (-np.float32(scores[document]), -sign * grades.get(document, 0))
        )

    return {query: by_place(order(query)) if query in tied else run.get(query, {}) for query in qrels}


def expected_value(metric: Metric, grades: dict[str, int], scores: dict[str, float]) -> float:
    """Of nDCG, MAP or MRR for one query, over all orders of the tied documents."""
    by_score = itertools.groupby(ranked(scores), key=lambda document: np.float32(scores[document]))
    groups = [[max(grades.get(document, 0), 0) for document in group] for _, group in by_score]
    depth = metric.depth or len(scores) + len(grades)  # all
    return _EXPECTED[metric.family](groups, [grade for grade in grades.values() if grade > 0], depth)


def _expected_ndcg(groups: Groups, relevant: Sequence[int], depth: int) -> float:
    """Every place of a group gains the group's mean grade."""
    gain, start = 0.0, 0
    for group in groups:
        gain += np.mean(group) * sum(_discount(rank) for rank in range(start, min(start + len(group), depth)))
        start += len(group)
    ideal = sum(grade * _discount(rank) for rank, grade in enumerate(sorted(relevant, reverse=True)[:depth]))
    return float(gain / ideal)


def _discount(rank: int) -> float:
    return 1 / math.log2(rank + 2)


def _expected_map(groups: Groups, relevant: Sequence[int], depth: int) -> float:
    """A relevant document at place i of its group of n has, besides those before the group, (i - 1)(r - 1)/(n - 1) others of
    the group's r relevant ones above itself."""
    total, start, before = 0.0, 0, 0
    for group in groups:
        size, own = len(group), sum(grade > 0 for grade in group)
        for place in range(1, min(size, depth - start) + 1):
            above = before + 1 + (place - 1) * (own - 1) / max(size - 1, 1)
            total += own / size * above / (start + place)
        start, before = start + size, before + own
    return total / len(relevant)


def _expected_mrr(groups: Groups, _: Sequence[int], depth: int) -> float:
    """The first relevant document is in the first group that has any; with r of n it is at place i with odds
    C(n - i, r - 1) / C(n, r)."""
    start = 0
    for group in groups:
        size, own = len(group), sum(grade > 0 for grade in group)
        if own:
            places = range(1, min(size - own + 1, depth - start) + 1)
            return sum(math.comb(size - place, own - 1) / math.comb(size, own) / (start + place) for place in places)
        start += size
    return 0.0


_EXPECTED: dict[str, Callable[[Groups, Sequence[int], int], float]] = {
    "ndcg": _expected_ndcg,
    "map": _expected_map,
    "mrr": _expected_mrr,
}
