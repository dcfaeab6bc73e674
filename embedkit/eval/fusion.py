"""How the legs of an index are best weighed, on judged queries, and whether that pays on queries that were not fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from embedkit.corpus.beir import Qrels
from embedkit.errors import DataError
from embedkit.eval.metrics import retrieval_scores
from embedkit.index import Index
from embedkit.index.fusion import METHODS, Fusion
from embedkit.index.manifest import Method
from embedkit.index.modes import Candidates
from embedkit.statistics import bootstrap_interval, randomisation_test
from embedkit.types import Array

FOLDS, LEAST = 5, 20  # of queries, and how many there must be
WEIGHTS = tuple(round(step / 20, 2) for step in range(21))
GRID = tuple(Fusion(method, weight) for method in METHODS for weight in WEIGHTS)
DENSE, SPARSE, EQUAL = (GRID.index(Fusion("minmax", weight)) for weight in (1.0, 0.0, 0.5))
DEPTH = 100  # hits of a query that are scored
Found = Sequence[tuple[list[str], Candidates]]  # of `Index.candidates`


@dataclass(frozen=True)
class Tuned:
    """The best fusion on all queries, and what such a choice is worth on queries held out."""

    method: Method
    weight: float  # of the dense leg
    queries: int
    dense: float  # nDCG@10 of the legs alone,
    sparse: float
    equal: float  # of the min-max mean,
    fitted: float  # of this fusion on the queries that it was fitted on,
    held_out: float  # and, in five folds, of that which the other queries choose
    difference: float  # of held_out with the leg that the same other queries choose
    interval: tuple[float, float]  # 95 %
    p: float

    @property
    def pays(self) -> bool:
        return self.interval[0] > 0

    def facts(self) -> dict[str, Any]:
        return {**asdict(self), "pays": self.pays}

    def sentence(self) -> str:
        low, high = self.interval
        share = "" if self.method == "minmax" else " of reciprocal ranks"
        said = (
            f"The dense leg weighs {self.weight:g}{share} from now on: nDCG@10 {self.held_out:.4f} on queries held out (dense "
            f"{self.dense:.4f}, sparse {self.sparse:.4f}, equal weights {self.equal:.4f}); against the better leg "
            f"{self.difference:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}, p = {self.p:.3f}, {self.queries} queries."
        )
        leg = "dense" if self.dense >= self.sparse else "sparse"
        return (
            said if self.pays else f"{said}\nFusion does not pay here: the {leg} leg alone (--mode {leg}) is as good."
        )


def tune_fusion(
    index: Index, queries: Mapping[str, str], qrels: Qrels, sparse_queries: Sequence[Mapping[str, float]] | None = None
) -> Tuned:
    """Fits method and weight to the nDCG@10 of judged queries. sparse_queries: as in `Index.search`, in the order of `queries`.

    Raises DataError for fewer than LEAST judged queries."""
    chosen = [place for place, query in enumerate(queries) if any(grade > 0 for grade in qrels.get(query, {}).values())]
    if len(chosen) < LEAST:
        raise DataError(
            f"{len(chosen)} queries have a relevant document; expected at least {LEAST} to fit a weight to."
        )
    names = list(queries)
    asked = [names[place] for place in chosen]
    terms = None if sparse_queries is None else [sparse_queries[place] for place in chosen]
    found = index.candidates([queries[name] for name in asked], DEPTH, sparse_queries=terms)
    return fitted(grid_scores(found, asked, qrels))


def grid_scores(found: Found, queries: Sequence[str], qrels: Qrels) -> Array:
    """(len(GRID), q) nDCG@10 of each query under each fusion."""
    rows = []
    for fusion in GRID:
        run = {query: _best(fusion, ids, some) for query, (ids, some) in zip(queries, found, strict=True)}
        scores = retrieval_scores({query: qrels[query] for query in queries}, run)["ndcg@10"]
        rows.append([scores[query] for query in queries])
    return np.array(rows)


def _best(fusion: Fusion, ids: Sequence[str], some: Candidates) -> dict[str, float]:
    scores = fusion.of(some.dense, some.sparse).tolist()
    hits = zip(scores, ids, some.sparse.tolist(), strict=True)
    if fusion.weight == 0:  # without a common term nothing is a hit of the sparse leg
        hits = (hit for hit in hits if hit[2] > 0)  # type: ignore[assignment]
    return {name: score for score, name, _ in sorted(hits, reverse=True)[:DEPTH]}


def fitted(scores: Array) -> Tuned:
    """The best row of (len(GRID), q) scores, and what the choice is worth on columns that it was not made on."""
    means, count = scores.mean(axis=1), scores.shape[1]
    best = GRID[best_row(scores)]
    held_out, leg = in_folds(scores)
    difference = held_out - leg
    return Tuned(
        method=best.method,
        weight=best.weight,
        queries=count,
        dense=float(means[DENSE]),
        sparse=float(means[SPARSE]),
        equal=float(means[EQUAL]),
        fitted=float(means.max()),
        held_out=float(held_out.mean()),
        difference=float(difference.mean()),
        interval=bootstrap_interval(difference),
        p=randomisation_test(difference),
    )


def in_folds(scores: Array) -> tuple[Array, Array]:
    """(q,) scores of the fusion, and of the leg, that the queries of the other folds choose."""
    count = scores.shape[1]
    folds = np.random.default_rng(0).permutation(count) % FOLDS
    held_out, leg = np.empty(count), np.empty(count)
    for fold in range(FOLDS):
        own, others = folds == fold, scores[:, folds != fold]
        held_out[own] = scores[best_row(others), own]
        leg[own] = scores[better_leg(others), own]
    return held_out, leg


def best_row(scores: Array) -> int:
    return int(scores.mean(axis=1).argmax())


def better_leg(scores: Array) -> int:
    return DENSE if scores[DENSE].mean() >= scores[SPARSE].mean() else SPARSE
