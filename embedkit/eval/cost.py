"""What an evaluation's answers cost: time, memory and bytes, measured beside the scores on the same machine.

Times are medians of repeated calls on a small sample of the task, never of the evaluation itself, whose rows may come from a cache.
Cost: under ten seconds a task, or four calls of the model where it is slow.
"""

from __future__ import annotations

import logging
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedkit.encoder import Encoder
from embedkit.eval.exact import exact_shortlist
from embedkit.index import Index

SAMPLE = 64  # texts, and queries
REPEATS = 5  # of a call; the median counts
BUDGET = 2.0  # seconds, after which a call is not repeated, and no further single query is timed
K = 10

# name -> what it says
COSTS = {
    "seconds": "of the evaluation, with whatever came from a cache",
    "texts/s": "documents encoded in one call",
    "tokens/s": "of these",
    "queries/s": "queries in one call: encoded and searched",
    "p50 ms": "one query a call, from its text to its ten best",
    "p99 ms": "the same",
    "bytes per row": "of a document, as it is kept",
    "bytes in RAM": "of all rows, or of the index",
    "bytes on disk": "of the index",
    "peak RSS": "bytes of the whole process, so far",
}


@dataclass(frozen=True)
class Encoding:
    """How fast a model encodes a sample."""

    texts: float  # a second
    tokens: float | None  # a second; None where the encoder does not count them
    queries: float  # seconds, all in one call
    single: Sequence[float]  # seconds, one query a call

    @classmethod
    def of(cls, encoder: Encoder, texts: Sequence[str], queries: Sequence[str]) -> Encoding:
        """texts: some documents; queries: some queries. Of both the first SAMPLE are taken."""
        texts, queries = list(texts[:SAMPLE]), list(queries[:SAMPLE])
        with _without_warnings():
            seconds = median_seconds(lambda: encoder.encode(texts))
            tokens = _tokens(encoder, texts)
            return cls(
                texts=len(texts) / seconds,
                tokens=None if tokens is None else tokens / seconds,
                queries=median_seconds(lambda: encoder.encode(queries, kind="query")),
                single=single_seconds(lambda query: encoder.encode([query], kind="query"), queries),
            )


@contextmanager
def _without_warnings() -> Iterator[None]:
    """What a sample would say was said of the whole, with its counts."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@dataclass(frozen=True)
class Searching:
    """How fast and how large that is which queries are compared with. Times are without their encoding."""

    queries: float = 0.0  # seconds, all in one call
    single: Sequence[float] = ()  # seconds, one query a call
    ram: int | None = None  # bytes
    disk: int | None = None


def exact_search(rows: int, dim: int, bytes_per_row: int, queries: int) -> Searching:
    """Of comparing with all rows (rows, dim), which are opened to float32. Its time is not of their values, so they are drawn."""
    draw = np.random.default_rng(0)
    matrix = draw.standard_normal((rows, dim), dtype=np.float32)
    asked = draw.standard_normal((min(queries, SAMPLE), dim), dtype=np.float32)
    return Searching(
        queries=median_seconds(lambda: exact_shortlist(asked, matrix, K)),
        single=single_seconds(lambda at: exact_shortlist(asked[at : at + 1], matrix, K), range(len(asked))),
        ram=rows * bytes_per_row,
    )


def index_search(index: Index, queries: Sequence[str]) -> Searching:
    """Of an index as it is served."""
    asked = index.encoder().encode(list(queries[:SAMPLE]), kind="query")
    return Searching(
        queries=median_seconds(lambda: index.search(asked, k=K, documents=False)),
        single=single_seconds(lambda at: index.search(asked[at : at + 1], k=K, documents=False), range(len(asked))),
        ram=index.bytes_in_ram(),
        disk=index.bytes_on_disk(),
    )


def costs(encoding: Encoding, searching: Searching, bytes_per_row: int, seconds: float | None) -> dict[str, float]:
    """The cost of a report: names of COSTS -> value."""
    both = len(encoding.single)
    if searching.single:
        both = min(both, len(searching.single))
    single = np.array(encoding.single[:both])
    if searching.single:
        single = single + np.array(searching.single[:both])
    known = {
        "seconds": seconds,
        "texts/s": encoding.texts,
        "tokens/s": encoding.tokens,
        "queries/s": len(encoding.single) / (encoding.queries + searching.queries) if searching.single else None,
        "p50 ms": 1e3 * float(np.median(single)),
        "p99 ms": 1e3 * float(np.quantile(single, 0.99)),
        "bytes per row": bytes_per_row,
        "bytes in RAM": searching.ram,
        "bytes on disk": searching.disk,
        "peak RSS": peak_rss(),
    }
    return {name: float(f"{value:.4g}") for name, value in known.items() if value is not None}


def median_seconds(call: Callable[[], Any]) -> float:
    """Of a call that was made once before, so that what is set up once is not in it."""
    return medians_in_turn([call])[0]


def medians_in_turn(calls: Sequence[Callable[[], Any]]) -> list[float]:
    """The same of several calls, which take turns: a slow moment of the machine is everyone's."""
    for call in calls:
        call()
    taken: list[list[float]] = [[] for _ in calls]
    while len(taken[0]) < REPEATS and sum(map(sum, taken)) < BUDGET * len(calls):
        for call, seconds in zip(calls, taken, strict=True):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    return [float(np.median(seconds)) for seconds in taken]


def single_seconds(call: Callable[[Any], Any], inputs: Sequence[Any]) -> list[float]:
    """Of one call an input, in their order."""
    seconds: list[float] = []
    for one in inputs:
        start = time.perf_counter()
        call(one)
        seconds.append(time.perf_counter() - start)
        if sum(seconds) >= BUDGET:
            break
    return seconds


def _tokens(encoder: Encoder, texts: Sequence[str]) -> int | None:
    counted = [tokens(text) for text in texts] if (tokens := getattr(encoder, "tokens", None)) else [None]
    return None if any(one is None for one in counted) else sum(len(one) for one in counted if one is not None)


def peak_rss() -> int:
    """Bytes of memory that this process has had at most."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def machine() -> dict[str, Any]:
    """What the times are of."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return {"cpu": names[0] if names else platform.processor() or platform.machine(), "cores": cores}
