"""All ways to search the segments of an index for queries like those given, and the front of these: cheapest first, each keeping more.

A way gives each segment a number of lists and a length of shortlist. What a shortlist keeps of the exact neighbours is known without
verifying it, so one search with the codes measures all lengths. Cost: one such search for each number of lists, some 40, and the
exact neighbours of the queries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from embedkit.errors import UsageError
from embedkit.index.calibration import NOWHERE, ONE_SIDED_95, places_of
from embedkit.index.ranking import best_of
from embedkit.index.segment import Segment
from embedkit.index.snapshot import Asked, Snapshot, Way
from embedkit.types import Array, Rows, Vectors

LONGEST = 1000  # a shortlist, or LONGEST_SHARE times the shortest possible one
LONGEST_SHARE = 5
AS_GOOD = 1e-5  # of a score: what lies nearer to the last of the exact neighbours is in their place


class Truth(NamedTuple):
    """The exact neighbours of queries, best first."""

    scores: Vectors  # (q, k)
    rows: Rows  # (q, k) numbered through all segments

    def inside(self, segment: Segment, base: int) -> Rows:
        """As the rows of a segment whose first is number `base`."""
        rows = self.rows - base
        return np.where((rows >= 0) & (rows < segment.record.rows), rows, NOWHERE)


def exact_neighbours(snapshot: Snapshot, queries: Vectors, k: int) -> Truth:
    """Of queries (q, dim), among what is not deleted. Raises UsageError for an index of fewer than k rows."""
    if (there := sum(segment.rows_alive for segment in snapshot.segments)) < k:
        raise UsageError(f"{snapshot.folder} holds {there} rows, {k} neighbours were asked for; give a smaller k.")
    scores, rows = [], []
    for segment, base in zip(snapshot.segments, snapshot.row_bases.tolist(), strict=False):
        some_scores, some_rows = segment.nearest(queries, k)
        scores.append(some_scores)
        rows.append(np.where(some_rows < 0, -1, some_rows + base))
    return Truth(*best_of(scores, rows, k))


def recalls(snapshot: Snapshot, queries: Vectors, truth: Truth, ways: Sequence[Way] | None = None) -> Array:
    """(q,) share of the exact neighbours that a search finds. A row that scores as the last of these is as good."""
    found = snapshot.search(queries, truth.rows.shape[1], Asked(group=None, ways=ways))
    last = truth.scores[:, -1:]
    same = places_of(found.rows, truth.rows, NOWHERE) != NOWHERE
    kept: Array = (same | (found.scores >= last - AS_GOOD * np.abs(last))).mean(axis=1)
    return kept


def stored_ways(snapshot: Snapshot, k: int) -> tuple[Way, ...]:
    """How a search for k goes through each segment as it stands."""
    return tuple(
        Way(None, None)
        if segment.compares_all
        else Way(segment.usual_probes, segment.shortlist_size(k + 1, segment.record.shortlist))
        for segment in snapshot.segments
    )


def shortlists(k: int) -> list[int]:
    """The lengths that are tried, each 1.19 times the one before. A search verifies twice as many rows as it looks at, of which
    one is beyond k."""
    least = 2 * (k + 1)
    steps = int(4 * math.log2(max(LONGEST, LONGEST_SHARE * least) / least))
    return sorted({round(least * 2 ** (step / 4)) for step in range(steps + 1)})


@dataclass(frozen=True)
class Front:
    """Ways to search some segments, cheapest first; each has a higher lower end of recall than all before it."""

    cost: Array  # (n,) nanoseconds of a query, by the model of `calibration`
    lower: Array  # (n,) of recall, one-sided 95 %
    kept: Array  # (n, q) share of the neighbours
    ways: Sequence[tuple[Way, ...]]  # of each segment; Way(None, None) where every row is compared

    @classmethod
    def of(cls, snapshot: Snapshot, queries: Vectors, truth: Truth) -> Front:
        """Of all segments. Exact for one; for several, the fronts of the first ones are joined with each next segment."""
        found = cls(np.zeros(1), np.zeros(1), np.zeros((1, len(queries))), [()])
        for segment, base in zip(snapshot.segments, snapshot.row_bases.tolist(), strict=False):
            here = truth.inside(segment, base)
            if segment.compares_all:
                found = found.joined([0.0], (here >= 0).mean(axis=1)[None], [Way(None, None)])
                continue
            tried = list(segment.tried(queries, here, shortlists(truth.rows.shape[1])))
            ways = [Way(one.probes, one.shortlist) for one in tried]
            found = found.joined([one.cost for one in tried], np.array([one.kept for one in tried]), ways)
        return found

    def joined(self, cost: Sequence[float], kept: Array, ways: Sequence[Way]) -> Front:
        """With one more segment, searched in any of these ways: the front of all pairs. kept: (m, q)"""
        costs = (self.cost[:, None] + np.array(cost)).ravel()
        lower = lower_ends(self.kept, kept).ravel()
        order = np.argsort(costs, kind="stable")
        highest = np.maximum.accumulate(lower[order])
        front = order[np.diff(highest, prepend=-np.inf) > 0]
        first, second = np.divmod(front, len(ways))
        pairs = [(*self.ways[one], ways[other]) for one, other in zip(first.tolist(), second.tolist(), strict=True)]
        return Front(costs[front], lower[front], self.kept[first] + kept[second], pairs)

    def cheapest(self, recall: float) -> tuple[Way, ...] | None:
        """That reaches it with its lower end."""
        place = int(np.searchsorted(self.lower, recall))
        return self.ways[place] if place < len(self.ways) else None


def lower_ends(one: Array, other: Array) -> Array:
    """(n, m) lower end of the 95 % interval (one-sided) of the mean of one[i] + other[j], over the columns (q,)."""
    count = one.shape[1]
    means, others = one.mean(axis=1)[:, None], other.mean(axis=1)[:, None]
    left, right = one - means, other - others
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1) + 2 * left @ right.T
    error = np.sqrt(np.maximum(squares, 0) / (count - 1) / count)
    lower: Array = np.round(means + others.T - ONE_SIDED_95 * error, 4)
    return lower
