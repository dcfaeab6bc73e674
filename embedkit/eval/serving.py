"""How well, how fast and how small an index answers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from embedkit.errors import DataError
from embedkit.eval.metrics import Run, retrieval_scores
from embedkit.index import Index
from embedkit.statistics import bootstrap_interval
from embedkit.types import Hits, Vectors

K = 10
REPEATS = 5  # of the whole batch; the median counts


@dataclass(frozen=True)
class Served:
    ndcg: float  # nDCG@10
    interval: tuple[float, float]  # 95 %, bootstrap over queries
    queries_per_second: float  # all queries in one call
    p50_ms: float  # one query a call, from its vector to ids and scores
    p99_ms: float
    bytes_in_ram: int
    bytes_on_disk: int


def measure(index: Index, queries: Vectors, relevant: Sequence[Mapping[str, int]]) -> Served:
    """queries: (q, dim) vectors; relevant: document id -> grade, for each. Embedding is not in the times.

    Raises DataError where queries and judgements differ in number, or none has anything relevant.
    """
    if len(queries) != len(relevant):
        raise DataError(f"{len(queries)} queries came with {len(relevant)} judgements; give one mapping a query.")
    names = [str(number) for number in range(len(queries))]
    hits = index.search(queries, k=K, documents=False)  # also loads what is loaded once
    qrels = dict(zip(names, map(dict, relevant), strict=True))
    ndcg = list(retrieval_scores(qrels, as_run(names, hits), ["ndcg@10"])["ndcg@10"].values())
    if not ndcg:
        raise DataError("No query has a relevant document; nothing can be scored.")
    whole = [_seconds(index, queries) for _ in range(REPEATS)]
    single = [_seconds(index, queries[number : number + 1]) for number in range(len(queries))]
    return Served(
        ndcg=float(np.mean(ndcg)),
        interval=bootstrap_interval(ndcg),
        queries_per_second=len(queries) / float(np.median(whole)),
        p50_ms=1e3 * float(np.median(single)),
        p99_ms=1e3 * float(np.quantile(single, 0.99)),
        bytes_in_ram=index.bytes_in_ram(),
        bytes_on_disk=index.bytes_on_disk(),
    )


def as_run(queries: Sequence[str], hits: Hits) -> Run:
    """What was found for each query id, as the metrics take it."""
    found = zip(queries, hits.ids, hits.scores, strict=True)
    return {query: dict(zip(ids, map(float, scores), strict=False)) for query, ids, scores in found}


def _seconds(index: Index, queries: Vectors) -> float:
    start = time.perf_counter()
    index.search(queries, k=K, documents=False)
    return time.perf_counter() - start
