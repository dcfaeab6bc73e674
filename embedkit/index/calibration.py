"""How codes are searched: the cheapest settings that keep the wanted share of the exact neighbours, on rows held out.

Cost: one search with the codes for each number of lists, of HELD_OUT queries, and their exact neighbours.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from embedkit.index.coarse import Codes
from embedkit.types import Array, Rows, Vectors

logger = logging.getLogger(__name__)
HELD_OUT, NEIGHBOURS = 1024, 10  # queries whose exact neighbours the settings must keep
ONE_SIDED_95 = 1.645
USUAL_RECALL = 0.97  # where none is asked for; and the margin that `widened` gives then
PROBED_AT_LEAST, PROBED_SHARE, VERIFIED_AT_LEAST = 48, 1 / 8, 100
PROBES = tuple(sorted({round(2 ** (step / 4)) for step in range(8, 53)}))  # 4 to 8192
SHORTLISTS = (20, 25, 30, 35, 40, 50, 60, 70, 85, 100, 120, 140, 170, 200)
# Cost of a query in nanoseconds of one thread, for the choice between settings only: measured with PQ96x4fs over WordNet on
# two cores. Verifying a row is a cache miss or three; scanning is a stream.
SCAN_NS_PER_BYTE, VERIFY_NS = 0.04, 240.0


class Settings(NamedTuple):
    """How codes are searched."""

    probes: int | None  # inverted lists that a query visits; None where there are none
    shortlist: int  # candidates that the fine rows verify
    recall: tuple[float, float]  # on rows held out: mean, and lower end of its 95 % interval (one-sided)


def calibrated(codes: Codes, queries: Vectors, own: Rows, truth: Rows, target: float) -> Settings:
    """The cheapest settings whose shortlist keeps `target` of the exact neighbours; else those that keep most.

    queries: (q, dim) rows held out, own: (q,) their numbers, truth: (q, NEIGHBOURS) their neighbours. The lower end of a
    95 % interval over queries must reach the target, as these are a sample."""
    lists = codes.inverted_lists
    a_list = SCAN_NS_PER_BYTE * codes.index.ntotal * codes.code_size / lists if lists else 0.0
    tried: list[tuple[float, Settings]] = []
    good: list[tuple[float, Settings]] = []
    for probes in [p for p in PROBES if p < lists] + [lists] if lists else (None,):
        scanned = a_list * (probes or 0)
        if good and scanned + VERIFY_NS * SHORTLISTS[0] > min(good)[0]:
            break  # more lists can only cost more
        found = codes.coarse_scores(queries, SHORTLISTS[-1] + 1, probes)[1]
        tried += [
            (scanned + VERIFY_NS * size, Settings(probes, size, _interval(kept)))
            for size, kept in _kept(found, own, truth)
        ]
        good = [entry for entry in tried if entry[1].recall[1] >= target]
    if good:
        return min(good)[1]
    best = max(tried, key=lambda entry: (entry[1].recall[0], -entry[0]))[1]
    logger.warning(
        "These codes keep %.3f of the exact neighbours at best, %.3f were asked for; give more bytes a vector.",
        best.recall[0],
        target,
    )
    return best


def widened(codes: Codes, found: Settings, queries: Vectors, own: Rows, truth: Rows) -> Settings:
    """With a margin for questions that look different from documents: their neighbours are spread over many lists.

    On SciFact's training questions 16 of 64 lists lose 0.028 nDCG@10 against all of them, though they keep 0.98 of the neighbours
    of documents; 32 lose 0.004, 48 lose 0.001."""
    probes, shortlist = found.probes, max(found.shortlist, VERIFIED_AT_LEAST)
    if probes is not None:
        lists = codes.inverted_lists
        probes = min(lists, max(probes, PROBED_AT_LEAST, round(lists * PROBED_SHARE)))
    rows = codes.coarse_scores(queries, shortlist + 1, probes)[1]
    (kept,) = (share for _, share in _kept(rows, own, truth, (shortlist,)))
    return Settings(probes, shortlist, _interval(kept))


def _interval(kept: Array) -> tuple[float, float]:
    """Mean, and lower end of the 95 % interval over queries."""
    mean, error = float(kept.mean()), float(kept.std(ddof=1)) / math.sqrt(len(kept))
    return round(mean, 4), round(mean - ONE_SIDED_95 * error, 4)


def _kept(found: Rows, own: Rows, truth: Rows, sizes: Sequence[int] = SHORTLISTS) -> Iterator[tuple[int, Array]]:
    """(size, share (q,) of the true neighbours among the first `size` candidates), a query's own row left out."""
    equal = found[:, :, None] == truth[:, None, :]  # (q, m, NEIGHBOURS)
    nowhere = max(found.shape[1], max(sizes)) + 1
    places = np.where(equal.any(axis=1), equal.argmax(axis=1), nowhere)
    itself = found == own[:, None]
    places -= (np.where(itself.any(axis=1), itself.argmax(axis=1), nowhere)[:, None] < places).astype(np.int64)
    for size in sizes:
        yield size, (places < size).mean(axis=1)
