"""The front of settings, against searches with every setting."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from embedkit.errors import Stopped, UsageError
from embedkit.index import Index, segment, tuning
from embedkit.index.calibration import PROBES, SCAN_NS_PER_BYTE, VERIFY_NS, Settings
from embedkit.index.snapshot import Way
from embedkit.index.tuning import Front, exact_neighbours, lower_ends, recalls, shortlists
from embedkit.index.update import rebuilt
from embedkit.jobs import build_index
from embedkit.types import Array, Rows

from ..conftest import bent_rows

FIRST, SECOND, DIM, LISTS, CODE = 2700, 1300, 32, 32, 5  # bytes of a code, as faiss counts them: with its list
SIZES = [22, 44, 88, 176]
WAYS = [Way(probes, size) for probes in (*(p for p in PROBES if p < LISTS), LISTS) for size in SIZES]
NEAR = 5e-3  # of recall: a longer list may order codes of equal scores otherwise
ROWS, QUERIES = bent_rows(FIRST + SECOND, DIM), bent_rows(150, DIM, seed=1)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    path = tmp_path_factory.mktemp("tuning") / "one"
    with build_index(ROWS[:FIRST], path, coarse=f"IVF{LISTS},PQ8x4fs", fine="float32", recall=0.3) as index:
        yield index


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    """Two segments with codes, of both of which some documents are deleted."""
    path, coarse = tmp_path_factory.mktemp("tuning") / "two", f"IVF{LISTS},PQ8x4fs"
    with (
        pytest.MonkeyPatch.context() as patch,
        build_index(ROWS[:FIRST], path, coarse=coarse, fine="float32", recall=0.3) as index,
    ):
        patch.setattr(segment, "GATHER_COST", math.inf)
        index.add(ROWS[FIRST:], ids=[f"second{n}" for n in range(SECOND)])
        index.delete([*map(str, range(0, FIRST, 7)), *(f"second{n}" for n in range(0, SECOND, 5))])
        assert [held.coarse for held in index.manifest.segments] == [coarse] * 2
        yield index


def by_numpy(rows: Array, alive: Array, k: int = 10) -> Rows:
    return np.argsort(-np.where(alive, QUERIES @ rows.T, -np.inf), axis=1, kind="stable")[:, :k]


def alive_in(index: Index) -> Array:
    alive = np.ones(len(ROWS), bool)
    if len(index.manifest.segments) == 2:
        alive[np.arange(0, FIRST, 7)] = False
        alive[FIRST + np.arange(0, SECOND, 5)] = False
    return alive[: int(index.snapshot.row_bases[-1])]


def kept_by_searches(index: Index, truth: Rows) -> list[Array]:
    """Of each segment (ways, q): the share of the neighbours that a search of it alone finds."""
    found = []
    for held, base in zip(index.snapshot.segments, index.snapshot.row_bases.tolist(), strict=False):
        rows = [held.search(QUERIES, 11, None, way.shortlist, way.probes)[1] + base for way in WAYS]
        shares = [
            [len(set(a) & set(b)) / 10 for a, b in zip(some.tolist(), truth.tolist(), strict=True)] for some in rows
        ]
        found.append(np.array(shares))
    return found


def cost(rows: int, way: Way) -> float:
    assert way.probes is not None and way.shortlist is not None
    return SCAN_NS_PER_BYTE * rows * CODE * way.probes / LISTS + VERIFY_NS * way.shortlist


def lower_end(kept: Array) -> float:
    return float(kept.mean() - 1.645 * kept.std(ddof=1) / math.sqrt(len(kept)))


def between(searched: Sequence[tuple[float, float]], goal: float) -> tuple[float, float]:
    """The cheapest of (cost, lower end) that comes NEAR the goal, and the cheapest that is clear of it."""
    least, most = (min(price for price, lower in searched if lower >= goal + apart) for apart in (-NEAR, NEAR))
    return least, most


def fronted(index: Index, monkeypatch: pytest.MonkeyPatch, sizes: Sequence[int] = SIZES) -> Front:
    monkeypatch.setattr(tuning, "shortlists", lambda k: sizes)
    return Front.of(index.snapshot, QUERIES, exact_neighbours(index.snapshot, QUERIES, 10))


@pytest.mark.parametrize("goal", [0.8, 0.9, 0.95])
def test_the_cheapest_that_reaches_the_goal_is_that_of_all_searches(
    goal: float, one: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kept,) = kept_by_searches(one, by_numpy(ROWS[:FIRST], alive_in(one)))
    searched = [(cost(FIRST, way), lower_end(share)) for way, share in zip(WAYS, kept, strict=True)]
    least, most = between(searched, goal)
    assert min(searched)[0] < least, "all settings reach the goal; the test shows nothing"
    front = fronted(one, monkeypatch)
    chosen = front.cheapest(goal)
    assert chosen is not None and least <= cost(FIRST, chosen[0]) <= most
    place = front.ways.index(chosen)
    assert front.kept[place].mean() == pytest.approx(kept[WAYS.index(chosen[0])].mean(), abs=NEAR)
    assert front.cost[place] == pytest.approx(cost(FIRST, chosen[0]))
    assert front.lower[place] == pytest.approx(lower_end(front.kept[place]), abs=6e-5)
    assert front.cheapest(front.lower[-1] + 1e-4) is None


@pytest.mark.parametrize("goal", [0.8, 0.95])
def test_settings_of_two_segments_with_deletions_are_chosen_together(
    goal: float, two: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against all pairs. The front of the first segment is joined with the second, which may miss a pair by a little."""
    alive = alive_in(two)
    first, second = kept_by_searches(two, by_numpy(ROWS, alive))
    searched = [
        (cost(FIRST, WAYS[a]) + cost(SECOND, WAYS[b]), lower_end(first[a] + second[b]))
        for a, b in itertools.product(range(len(WAYS)), repeat=2)
    ]
    least, most = between(searched, goal)
    front = fronted(two, monkeypatch)
    chosen = front.cheapest(goal)
    assert chosen is not None and least <= cost(FIRST, chosen[0]) + cost(SECOND, chosen[1]) <= 1.02 * most
    assert len({*chosen}) == 2, "the same for both; the test shows nothing"
    truth = exact_neighbours(two.snapshot, QUERIES, 10)
    again = recalls(two.snapshot, QUERIES, truth, chosen).mean()
    assert again == pytest.approx(front.kept[front.ways.index(chosen)].mean(), abs=NEAR)


def test_exact_neighbours_are_those_of_numpy(two: Index) -> None:
    alive = alive_in(two)
    truth = exact_neighbours(two.snapshot, QUERIES, 10)
    expected = by_numpy(ROWS, alive)
    assert truth.rows.tolist() == expected.tolist()
    np.testing.assert_allclose(truth.scores, np.take_along_axis(QUERIES @ ROWS.T, expected, axis=1), atol=1e-6)
    with pytest.raises(UsageError, match="holds 3354 rows, 4000 neighbours were asked for"):
        exact_neighbours(two.snapshot, QUERIES, 4000)


def test_a_segment_that_is_compared_whole_costs_nothing_and_loses_nothing(one: Index, tmp_path: Path) -> None:
    with build_index(ROWS[:FIRST], tmp_path / "exact", coarse="none") as index:
        truth = exact_neighbours(index.snapshot, QUERIES, 10)
        front = Front.of(index.snapshot, QUERIES, truth)
        assert front.ways == [(Way(None, None),)] and front.lower.tolist() == [1.0]
        assert front.cheapest(0.999) == (Way(None, None),)
        assert recalls(index.snapshot, QUERIES, truth).mean() == 1.0


def test_what_scores_as_the_last_neighbour_is_as_good(tmp_path: Path) -> None:
    """Twenty rows, each five times: which of the equal ones are found is chance."""
    rows = np.repeat(bent_rows(20, DIM), 5, axis=0)
    with build_index(rows, tmp_path / "twins", coarse="none") as index:
        for k in (3, 7):
            truth = exact_neighbours(index.snapshot, QUERIES, k)
            assert recalls(index.snapshot, QUERIES, truth).tolist() == [1.0] * len(QUERIES)


def test_lower_ends_are_those_of_the_sums() -> None:
    generator = np.random.default_rng(0)
    left, right = generator.random((4, 30)), generator.random((5, 30))
    expected = [[lower_end(a + b) for b in right] for a in left]
    np.testing.assert_allclose(lower_ends(left, right), expected, atol=5.1e-5)


@pytest.mark.parametrize(("k", "first", "longest"), [(1, 4, 1000), (10, 22, 1000), (100, 202, 1010), (500, 1002, 5010)])
def test_shortlists_begin_where_a_search_does(k: int, first: int, longest: int) -> None:
    sizes = shortlists(k)
    assert sizes[0] == first and longest / 1.2 < sizes[-1] <= longest
    assert all(1.05 < after / before < 1.5 for before, after in itertools.pairwise(sizes))


def test_stored_settings_are_searched_with_and_survive_other_changes(two: Index, tmp_path: Path) -> None:
    shutil.copytree(two.path, tmp_path / "copy")
    with Index(tmp_path / "copy") as index:
        first, second = (record.number for record in index.manifest.segments)
        index.set_settings({first: Settings(5, 60, (0.9, 0.8)), second: Settings(3, 33, (0.9, 0.8))})
        stored = [(record.probes, record.shortlist, record.recall) for record in index.manifest.segments]
        # 6 of 7 rows and 4 of 5 are there: what is stored is of segments without deletions
        assert stored == [(4, 60, (0.9, 0.8)), (2, 33, (0.9, 0.8))]
        assert [segment.usual_probes for segment in index.snapshot.segments] == [5, 3]
        truth = exact_neighbours(index.snapshot, QUERIES, 10)
        asked = recalls(index.snapshot, QUERIES, truth, [Way(5, 60), Way(3, 33)])
        assert recalls(index.snapshot, QUERIES, truth).tolist() == asked.tolist()
        index.delete(["1"])
        with Index(index.path) as again:
            assert [(record.probes, record.shortlist) for record in again.manifest.segments] == [(4, 60), (2, 33)]


def test_settings_of_a_segment_that_is_gone_are_refused(two: Index) -> None:
    before = two.manifest.number
    with pytest.raises(Stopped, match="has been changed since its settings were measured"):
        two.set_settings({99: Settings(5, 60, (0.9, 0.8))})
    assert two.manifest.number == before


@pytest.mark.parametrize("fine", ["float16", "int8"])
def test_the_same_rows_are_built_with_other_codes(fine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedkit.index.coarse.EXACT_UP_TO", 100)
    with build_index(ROWS[:FIRST], tmp_path / "x", coarse="none", fine=fine, recall=0.3) as index:
        index.delete(list(map(str, range(50))))
        (tmp_path / "other").mkdir()
        rebuilt(index.path, index.manifest, tmp_path / "other", 12)
        assert index.manifest.number == 2
        with Index(tmp_path / "other") as other:
            other.verify()
            (record,) = other.manifest.segments
            assert record.coarse == "PCAR16,IVF64,PQ8x4fs" and record.rows == FIRST - 50
            hits, same = (
                held.search(QUERIES[:5], probes=64, shortlist=3000, documents=False) for held in (index, other)
            )
            assert hits.ids == same.ids
