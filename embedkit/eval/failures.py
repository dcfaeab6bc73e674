"""What went worst, with the texts that show why: for reading, so bounded in number and length."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from embedkit.corpus.beir import Qrels
from embedkit.eval.metrics import Run, ranked
from embedkit.types import Failure, Judged, Report

WORST = 25  # failures of a task
SHOWN = 5  # documents of each side
CUT = 400  # characters of a text

Texts = Callable[
    [Collection[str]], Mapping[str, str]
]  # document ids -> their texts; those that are nowhere are left out


def worst_queries(
    values: Mapping[str, float], qrels: Qrels, run: Run, queries: Mapping[str, str], texts: Texts
) -> tuple[Failure, ...]:
    """The queries with the lowest values, of equal ones those whose first relevant document is further down.

    values: query id -> its score; those with 1 are no failures. Documents of equal score are ordered as trec_eval does.
    """
    ranks = {query: _ranks(run.get(query, {})) for query in values}
    poor = [query for query in values if values[query] < 1]
    first = {query: min((ranks[query].get(d, math.inf) for d in _relevant(qrels[query])), default=0) for query in poor}
    worst = sorted(poor, key=lambda query: (values[query], -first[query]))[:WORST]
    expected = {query: _relevant(qrels[query])[:SHOWN] for query in worst}
    found = {query: list(ranks[query])[:SHOWN] for query in worst}
    known = texts({document for side in (expected, found) for some in side.values() for document in some})

    def judged(query: str, document: str) -> Judged:
        rank, score = ranks[query].get(document), run.get(query, {}).get(document)
        return Judged(document, cut(known.get(document, "")), qrels[query].get(document), rank, score)

    return tuple(
        Failure(
            query,
            cut(queries.get(query, query)),
            values[query],
            tuple(judged(query, document) for document in expected[query]),
            tuple(judged(query, document) for document in found[query]),
        )
        for query in worst
    )


def _ranks(scores: dict[str, float]) -> dict[str, int]:
    """Document id -> rank, best first."""
    return {document: rank for rank, document in enumerate(ranked(scores), 1)}


def _relevant(grades: Mapping[str, int]) -> list[str]:
    return sorted((document for document in grades if grades[document] > 0), key=lambda document: -grades[document])


def worst_pairings(
    left: Sequence[str], right: Sequence[str], found: Sequence[Mapping[str, Any]]
) -> tuple[Failure, ...]:
    """Of bitext: the sentences that got another's translation, the surest first.

    right: the translation of each of left; found: what each got, mteb's {"corpus_id", "score"}.
    """
    wrong = [number for number, one in enumerate(found) if one["corpus_id"] != number]
    worst = sorted(wrong, key=lambda number: -found[number]["score"])[:WORST]

    def failure(number: int) -> Failure:
        other = int(found[number]["corpus_id"])
        taken = Judged(str(other), cut(right[other]), None, 1, float(found[number]["score"]))
        own = Judged(str(number), cut(right[number]), 1)
        return Failure(str(number), cut(left[number]), 0.0, (own,), (taken,))

    return tuple(map(failure, worst))


def furthest_off(report: Report) -> list[tuple[str, float, float, float, float]]:
    """Of pairs: (unit, truth, score, share of truths below, share of scores below), the furthest apart of these first.

    Shares are of the other pairs, ties counted half, so that grades and cosines can be set side by side.
    """
    if len(report.predictions) < 2:
        return []
    truth, score = np.array(list(report.predictions.values()), dtype=np.float64).T
    below = [(rankdata(values) - 1) / (len(values) - 1) for values in (truth, score)]
    order = np.argsort(-np.abs(below[0] - below[1]), kind="stable")[:WORST]
    units = list(report.predictions)
    return [(units[at], truth[at], score[at], float(below[0][at]), float(below[1][at])) for at in map(int, order)]


def cut(text: str, length: int = CUT) -> str:
    """The text on one line, shortened to at most so many characters, after a word where one ends near."""
    flat = " ".join(text.split())
    if len(flat) <= length:
        return flat
    kept = flat[: length - 1]
    words = kept.rpartition(" ")[0]
    return f"{(words if len(words) > 0.8 * length else kept).rstrip()}…"
