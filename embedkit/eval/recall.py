"""The cheapest settings of an index that keep a wanted share of the exact neighbours of real queries, and what that is worth.

Half of the queries choose; what is reported of every way to search, recall and queries/s, is measured by searches with the other
half. Cost: exact neighbours of all queries, and some 40 searches of half of them; with codes of other sizes, a build of each.
"""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedkit.errors import DataError, UsageError
from embedkit.eval.cost import medians_in_turn
from embedkit.index import Index
from embedkit.index.calibration import Settings, interval
from embedkit.index.faiss_import import faiss_threads
from embedkit.index.snapshot import Asked, Way
from embedkit.index.tuning import Front, exact_neighbours, recalls, stored_ways
from embedkit.index.update import rebuilt
from embedkit.statistics import bootstrap_interval
from embedkit.types import Array, Rows, Vectors

LEAST, MOST = 20, 2048  # queries of a half; more than MOST only where the goal needs them
RISK = 0.05  # of a half in which no query shows that the goal is missed
SHOWN = (0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995)  # recalls whose cheapest settings are measured
K = 10


@dataclass(frozen=True)
class Point:
    """One way to search, measured on queries that chose nothing."""

    ways: tuple[Way, ...]  # of each segment
    recall: float
    interval: tuple[float, float]  # 95 %, bootstrap over queries
    queries_per_second: float  # all in one call, from vectors to row numbers
    lower: float  # of recall, one-sided 95 %

    @property
    def settings(self) -> str:
        return " + ".join(_shown(way) for way in self.ways)


@dataclass(frozen=True)
class Curve:
    """Ways to search the same rows by codes of one size."""

    bytes_per_vector: float  # that a search holds in RAM
    coarse: str  # of the largest segment
    points: tuple[Point, ...]  # ascending recall


@dataclass(frozen=True)
class TunedRecall:
    goal: float
    k: int
    chosen_on: int  # queries, and
    measured_on: int
    chosen: Point | None  # None where nothing reaches the goal
    stored: Point  # as the index was searched before
    curves: tuple[Curve, ...]  # of the index itself, then of other sizes of codes

    def facts(self) -> dict[str, Any]:
        return {"feasible": self.chosen is not None, **asdict(self)}

    def settings(self, numbers: Sequence[int]) -> dict[int, Settings]:
        """What was chosen for the segments of these numbers that have codes, as `Index.set_settings` takes it."""
        assert self.chosen is not None
        recall = (round(self.chosen.recall, 4), round(self.chosen.lower, 4))
        pairs = zip(numbers, self.chosen.ways, strict=True)
        return {
            number: Settings(way.probes, way.shortlist, recall) for number, way in pairs if way.shortlist is not None
        }

    def table(self) -> Iterator[str]:
        """The lines of the frontier, and where the index stood and stands."""
        yield f"{'bytes in RAM':>12}  {f'recall@{self.k}':>10}  {'95 % interval':>16}  {'queries/s':>9}  lists visited/rows verified"
        for curve in self.curves:
            for point in curve.points:
                low, high = point.interval
                mark = "  <- chosen" if point == self.chosen else "  <- as it was" if point == self.stored else ""
                yield (
                    f"{curve.bytes_per_vector:12.0f}  {point.recall:10.4f}  {low:.4f} to {high:.4f}  "
                    f"{point.queries_per_second:9,.0f}  {point.settings}{mark}"
                )

    def sentence(self) -> str:
        """What was chosen, or why nothing was."""
        best = self.chosen or max(self.curves[0].points, key=lambda point: point.recall)
        low, high = best.interval
        said = f"{best.recall:.4f} of the {self.k} nearest ({low:.4f} to {high:.4f}, 95 %)"
        if self.chosen is not None:
            return (
                f"Searches keep {said} on {self.measured_on:,} queries that the choice was not made on, at {best.queries_per_second:,.0f} "
                f"queries/s; {self.stored.recall:.4f} at {self.stored.queries_per_second:,.0f} before."
            )
        more = " or more queries, which narrow the interval," if high >= self.goal else ""
        return (
            f"A recall of {self.goal:g} is infeasible here: at best {said} are kept; give{more} larger codes at the build "
            f"(--bytes-per-vector, --coarse SQ8), or ask for less."
        )


def tune_recall(
    index: Index,
    queries: Sequence[str] | Vectors,
    goal: float,
    k: int = K,
    *,
    bytes_per_vector: Sequence[int] = (),
    seed: int = 0,
) -> TunedRecall:
    """Finds the cheapest settings whose recall@k has a lower end (95 %, one-sided) of at least `goal` on half of the queries.

    queries: texts, or vectors (q, dim); they should be like those that will be asked, and no documents. Cheapest is by the cost
    model of `calibration`. bytes_per_vector: sizes of codes, with which the same rows are built in a scratch folder, for comparison
    alone. seed: of the halves. Nothing is stored. Raises DataError for fewer queries than can show the goal, UsageError for a
    goal that is no share or more neighbours than there are rows."""
    if not 0 < goal < 1 or k < 1:
        raise UsageError(f"recall={goal:g}, k={k} came; expected a share between 0 and 1, such as 0.95, and k from 1.")
    first, second = halves(distinct(queries), goal, seed)
    drawn = np.concatenate([first, second])
    vectors = index.vectors(queries[drawn] if isinstance(queries, np.ndarray) else [queries[n] for n in drawn.tolist()])
    parts = vectors[: len(first)], vectors[len(first) :]
    with faiss_threads(index.threads):
        own, chosen = _curve(index, *parts, goal, k)
        others = tuple(_rebuilt_curve(index, size, *parts, goal, k) for size in bytes_per_vector)
    stored = stored_ways(index.snapshot, k)
    by_ways = {point.ways: point for point in own.points}
    return TunedRecall(
        goal=goal,
        k=k,
        chosen_on=len(first),
        measured_on=len(second),
        chosen=None if chosen is None else by_ways[chosen],
        stored=by_ways[stored],
        curves=(own, *others),
    )


def distinct(queries: Sequence[str] | Vectors) -> Rows:
    """The places of the queries that differ: one that stands in both halves would be measured where it chose."""
    keys = (query.tobytes() if isinstance(query, np.ndarray) else query for query in queries)
    first: dict[Any, int] = {}
    for place, key in enumerate(keys):
        first.setdefault(key, place)
    return np.fromiter(first.values(), np.int64)


def halves(places: Rows, goal: float, seed: int) -> tuple[Rows, Rows]:
    """Two halves, drawn by the seed, of at most MOST. Raises DataError for fewer than can show the goal.

    Were a share 1 - goal of all queries answered by nothing, n of them would show none of these with probability goal^n."""
    least = max(LEAST, math.ceil(math.log(RISK) / math.log(goal)))
    if len(places) < 2 * least:
        raise DataError(
            f"{len(places)} different queries came; a recall of {goal:g} needs at least {2 * least:,}: half of them choose, half measure."
        )
    size = min(len(places) // 2, max(MOST, least))
    drawn = places[np.random.default_rng(seed).permutation(len(places))]
    return drawn[:size], drawn[size : 2 * size]


def _curve(
    index: Index, choosing: Vectors, measuring: Vectors, goal: float, k: int
) -> tuple[Curve, tuple[Way, ...] | None]:
    """The measured front, and what is chosen from it."""
    snapshot = index.snapshot
    front = Front.of(snapshot, choosing, exact_neighbours(snapshot, choosing, k))
    chosen = front.cheapest(goal)
    shown = [front.cheapest(level) for level in SHOWN]
    wanted = dict.fromkeys(way for way in (*shown, chosen, front.ways[-1], stored_ways(snapshot, k)) if way is not None)
    truth = exact_neighbours(snapshot, measuring, k)
    searches = [functools.partial(snapshot.search, measuring, k, Asked(group=None, ways=ways)) for ways in wanted]
    points = [
        _point(ways, recalls(snapshot, measuring, truth, ways), len(measuring) / seconds)
        for ways, seconds in zip(wanted, medians_in_turn(searches), strict=True)
    ]
    ram = index.bytes_in_ram() / int(snapshot.row_bases[-1])
    largest = max(snapshot.segments, key=lambda segment: segment.record.rows)
    points.sort(key=lambda point: (point.recall, -point.queries_per_second))
    return Curve(round(ram, 1), largest.record.coarse or "none", tuple(points)), chosen


def _point(ways: tuple[Way, ...], kept: Array, queries_per_second: float) -> Point:
    speed = float(f"{queries_per_second:.4g}")
    return Point(ways, float(kept.mean()), bootstrap_interval(kept), speed, interval(kept)[1])


def _rebuilt_curve(index: Index, size: int, choosing: Vectors, measuring: Vectors, goal: float, k: int) -> Curve:
    """Of the same rows by codes of so many bytes."""
    with tempfile.TemporaryDirectory(prefix="embedkit-") as scratch:
        rebuilt(index.path, index.manifest, Path(scratch), size)
        with Index(scratch) as other:
            points, _ = _curve(other, choosing, measuring, goal, k)
    return points


def _shown(way: Way) -> str:
    return "exact" if way.shortlist is None else f"{'all' if way.probes is None else way.probes}/{way.shortlist}"
