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
from embedkit.index.fine import Mask
from embedkit.types import Array, Rows, Vectors

logger = logging.getLogger(__name__)
HELD_OUT, NEIGHBOURS = 1024, 10  # queries whose exact neighbours the settings must keep
NOWHERE = -2  # a row number; -1 is of a candidate that was not found
ONE_SIDED_95 = 1.645
USUAL_RECALL = 0.97  # where none is asked for; and the margin that `widened` gives then
PROBED_AT_LEAST, PROBED_SHARE, VERIFIED_AT_LEAST = 48, 1 / 8, 100
PROBES = tuple(sorted({round(2 ** (step / 4)) for step in range(8, 53)}))  # 4 to 8192
SHORTLISTS = (20, 25, 30, 35, 40, 50, 60, 70, 85, 100, 120, 140, 170, 200)
# Cost of a query in nanoseconds of one thread, for the choice between settings only: measured with PQ96x4fs over WordNet on
# two cores. Verifying a row is a cache miss or three; scanning is a stream.
SCAN_NS_PER_BYTE, VERIFY_NS = 0.04, 240.0


class Tried(NamedTuple):
    """One way to search codes, and what it found."""

    cost: float  # of a query, in nanoseconds of one thread
    probes: int | None
    shortlist: int
    kept: Array  # (q,) share of the true neighbours in the shortlist


class Settings(NamedTuple):
    """How codes are searched."""

    probes: int | None  # inverted lists that a query visits; None where there are none
    shortlist: int  # candidates that the fine rows verify
    recall: tuple[float, float]  # on rows held out: mean, and lower end of its 95 % interval (one-sided)


def calibrated(codes: Codes, queries: Vectors, own: Rows, truth: Rows, target: float) -> Settings:
    """The cheapest settings whose shortlist keeps `target` of the exact neighbours; else those that keep most.

    queries: (q, dim) rows held out, own: (q,) their numbers, truth: (q, NEIGHBOURS) their neighbours. The lower end of a
    95 % interval over queries must reach the target, as these are a sample."""
    found: list[tuple[float, Settings]] = []
    good: list[tuple[float, Settings]] = []
    for probes in probes_of(codes):
        if good and cost(codes, probes, SHORTLISTS[0]) > min(good)[0]:
            break  # more lists can only cost more
        found += [
            (one.cost, Settings(one.probes, one.shortlist, interval(one.kept)))
            for one in tried(codes, probes, SHORTLISTS, queries, own, truth)
        ]
        good = [entry for entry in found if entry[1].recall[1] >= target]
    if good:
        return min(good)[1]
    best = max(found, key=lambda entry: (entry[1].recall[0], -entry[0]))[1]
    logger.warning(
        "These codes keep %.3f of the exact neighbours at best, %.3f were asked for; give more bytes a vector.",
        best.recall[0],
        target,
    )
    return best


def probes_of(codes: Codes) -> Sequence[int | None]:
    """The numbers of lists that are tried, fewest first."""
    lists = codes.inverted_lists
    return [*(probes for probes in PROBES if probes < lists), lists] if lists else (None,)


def cost(codes: Codes, probes: int | None, shortlist: int) -> float:
    """Of a query, in nanoseconds of one thread."""
    scanned = codes.index.ntotal * codes.code_size * probes / codes.inverted_lists if probes else 0.0
    return SCAN_NS_PER_BYTE * scanned + VERIFY_NS * shortlist


def tried(
    codes: Codes,
    probes: int | None,
    sizes: Sequence[int],
    queries: Vectors,
    own: Rows | None,
    truth: Rows,
    mask: Mask | None = None,
) -> list[Tried]:
    """What shortlists of these sizes, ascending, keep of the true neighbours (q, k), NOWHERE for what is not among these rows.
    own, mask: as in `calibrated` and `Codes.search`."""
    found = codes.coarse_scores(queries, sizes[-1] + (own is not None), probes, mask)[1]
    return [Tried(cost(codes, probes, size), probes, size, kept) for size, kept in _kept(found, own, truth, sizes)]


def widened(codes: Codes, found: Settings, queries: Vectors, own: Rows, truth: Rows) -> Settings:
    """With a margin for questions that look different from documents: their neighbours are spread over many lists.

    On SciFact's training questions 16 of 64 lists lose 0.028 nDCG@10 against all of them, though they keep 0.98 of the neighbours
    of documents; 32 lose 0.004, 48 lose 0.001."""
    probes, shortlist = found.probes, max(found.shortlist, VERIFIED_AT_LEAST)
    if probes is not None:
        lists = codes.inverted_lists
        probes = min(lists, max(probes, PROBED_AT_LEAST, round(lists * PROBED_SHARE)))
    (found_so,) = tried(codes, probes, (shortlist,), queries, own, truth)
    return Settings(probes, shortlist, interval(found_so.kept))


def interval(kept: Array) -> tuple[float, float]:
    """Mean, and lower end of the 95 % interval over queries."""
    mean, error = float(kept.mean()), float(kept.std(ddof=1)) / math.sqrt(len(kept))
    return round(mean, 4), round(mean - ONE_SIDED_95 * error, 4)


def _kept(found: Rows, own: Rows | None, truth: Rows, sizes: Sequence[int] = SHORTLISTS) -> Iterator[tuple[int, Array]]:
    """(size, share (q,) of the true neighbours among the first `size` candidates), a query's own row left out."""
    nowhere = max(found.shape[1], max(sizes)) + 1
    places = places_of(truth, found, nowhere)
    if own is not None:
        places -= (places_of(own[:, None], found, nowhere) < places).astype(np.int64)
    for size in sizes:
        yield size, (places < size).mean(axis=1)


def places_of(sought: Rows, found: Rows, nowhere: int) -> Rows:
    """(q, k) where each of the rows (q, k) stands among those found (q, m); `nowhere` for what is not there."""
    order = np.argsort(found, axis=1)
    apart = (max(int(found.max(initial=0)), int(sought.max(initial=0))) + 3) * np.arange(len(found))[:, None]
    keys = (np.take_along_axis(found, order, axis=1) + apart).ravel()  # ascending, all queries in one array
    at = np.minimum(np.searchsorted(keys, sought + apart), keys.size - 1)
    return np.where(keys[at] == sought + apart, order.ravel()[at], nowhere)
