"""Known-item retrieval: how well, how fast and how small an index finds the one document that a query was taken from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from embedkit.errors import DataError
from embedkit.eval.metrics import retrieval_scores
from embedkit.index import Index
from embedkit.statistics import bootstrap_interval
from embedkit.types import Vectors

K = 10
REPEATS = 5  # of the whole batch; the median counts


@dataclass(frozen=True)
class Measured:
    ndcg: float  # nDCG@10
    interval: tuple[float, float]  # 95 %, bootstrap over queries
    queries_per_second: float  # all queries in one call
    p50_ms: float  # one query a call, from its vector to ids and scores
    p99_ms: float
    bytes_in_ram: int
    bytes_on_disk: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(index: Index, queries: Vectors, answers: Sequence[str]) -> Measured:
    """queries: (q, dim) vectors; answers: the id that each should find. Embedding is not in the times."""
    if len(queries) != len(answers) or not answers:
        raise DataError(f"{len(queries)} queries came with {len(answers)} answers; give one answer a query.")
    hits = index.search(queries, k=K, documents=False)  # also loads what is loaded once
    run = {
        str(q): dict(zip(ids, map(float, scores), strict=False))
        for q, (ids, scores) in enumerate(zip(hits.ids, hits.scores, strict=True))
    }
    ndcg = list(retrieval_scores({str(q): {answer: 1} for q, answer in enumerate(answers)}, run)["ndcg@10"].values())
    whole = [_seconds(index, queries) for _ in range(REPEATS)]
    single = [_seconds(index, queries[q : q + 1]) for q in range(len(queries))]
    return Measured(
        ndcg=float(np.mean(ndcg)),
        interval=bootstrap_interval(ndcg),
        queries_per_second=len(queries) / float(np.median(whole)),
        p50_ms=1e3 * float(np.median(single)),
        p99_ms=1e3 * float(np.quantile(single, 0.99)),
        bytes_in_ram=index.bytes_in_ram(),
        bytes_on_disk=index.bytes_on_disk(),
    )


def _seconds(index: Index, queries: Vectors) -> float:
    start = time.perf_counter()
    index.search(queries, k=K, documents=False)
    return time.perf_counter() - start
