"""Settings by real queries: what is chosen on one half, and measured on the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from embedkit.errors import DataError, UsageError
from embedkit.eval.recall import K, distinct, halves, tune_recall
from embedkit.index import Index
from embedkit.jobs import build_index

from ..conftest import bent_rows

ROWS, QUERIES = bent_rows(3000), bent_rows(240, seed=1)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with build_index(ROWS, tmp_path / "x", coarse="IVF32,PQ16x4fs", recall=0.5) as built:
        yield built


@pytest.fixture(autouse=True)
def called_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedkit.eval.cost.REPEATS", 1)


def test_the_reported_recall_is_that_of_searches_on_the_other_half(index: Index) -> None:
    tuned = tune_recall(index, QUERIES, 0.9)
    first, second = halves(np.arange(len(QUERIES)), 0.9, 0)
    assert set(first) | set(second) == set(range(240)) and not set(first) & set(second)
    assert (tuned.chosen_on, tuned.measured_on) == (120, 120)
    assert tuned.chosen is not None
    index.set_settings(tuned.settings([1]))
    found = index.search(QUERIES[second], K, documents=False).ids
    truth = np.argsort(-(QUERIES[second] @ ROWS.T.astype(np.float16).astype(np.float32)), axis=1)[:, :K]
    shares = [len(set(a) & set(map(str, b))) / K for a, b in zip(found, truth.tolist(), strict=True)]
    assert tuned.chosen.recall == pytest.approx(np.mean(shares), abs=1e-3)
    low, high = tuned.chosen.interval
    assert low < tuned.chosen.recall < high and low <= tuned.chosen.lower <= tuned.chosen.recall
    error = np.std(shares, ddof=1) / np.sqrt(120)
    assert (low, high) == pytest.approx(
        (np.mean(shares) - 1.96 * error, np.mean(shares) + 1.96 * error), abs=0.2 * error
    )
    (record,) = index.manifest.segments
    assert (record.probes, record.shortlist) == (tuned.chosen.ways[0].probes, tuned.chosen.ways[0].shortlist)


def test_the_front_is_told_with_what_was_chosen_and_what_was_stored(index: Index) -> None:
    (record,) = index.manifest.segments
    tuned = tune_recall(index, QUERIES, 0.9)
    lines = list(tuned.table())
    assert sum("<- chosen" in line for line in lines) == sum("<- as it was" in line for line in lines) == 1
    before = next(line for line in lines if "<- as it was" in line)
    assert f"{record.probes}/{max(22, record.shortlist)}" in before and f"{tuned.stored.recall:.4f}" in before
    recall = [point.recall for point in tuned.curves[0].points]
    assert recall == sorted(recall) and len(recall) > 4 and recall[-1] > 0.99
    facts = tuned.facts()
    assert facts["feasible"] is True
    assert facts["chosen"]["ways"][0] == {
        "probes": tuned.chosen.ways[0].probes,
        "shortlist": tuned.chosen.ways[0].shortlist,
    }
    assert "on 120 queries that the choice was not made on" in tuned.sentence()


def test_a_goal_that_codes_cannot_meet_is_infeasible(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((3000, 16)).astype(np.float32)
    queries = np.random.default_rng(1).standard_normal((300, 16)).astype(np.float32)
    with build_index(rows, tmp_path / "x", coarse="PQ1x4fs") as built:
        tuned = tune_recall(built, queries, 0.97)
        best = max(tuned.curves[0].points, key=lambda point: point.recall)
        assert tuned.chosen is None and best.interval[1] < 0.97 and tuned.facts()["feasible"] is False
        assert f"A recall of 0.97 is infeasible here: at best {best.recall:.4f}" in tuned.sentence()
        assert "or more queries" not in tuned.sentence()


def test_an_index_without_codes_meets_every_goal_as_it_is(tmp_path: Path) -> None:
    with build_index(ROWS[:500], tmp_path / "x") as built:
        tuned = tune_recall(built, QUERIES, 0.95)
        assert tuned.chosen == tuned.stored and tuned.chosen.recall == 1.0
        assert tuned.chosen.settings == "exact" and tuned.settings([1]) == {}


def test_codes_of_other_sizes_are_measured_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedkit.index.coarse.EXACT_UP_TO", 100)
    with build_index(ROWS, tmp_path / "x", recall=0.8) as built:
        tuned = tune_recall(built, QUERIES, 0.9, bytes_per_vector=[12])
        own, other = tuned.curves
        assert other.coarse == "PCAR16,IVF64,PQ8x4fs" and own.coarse == "IVF64,SQ8"
        assert other.bytes_per_vector < own.bytes_per_vector
        assert max(point.recall for point in other.points) > 0.8
        assert built.manifest.number == 1


@pytest.mark.parametrize(
    ("goal", "least"),
    [(0.5, 20), (0.9, 29), (0.95, 59), (0.99, 299)],  # 20, or ln 0.05 / ln goal
)
def test_too_few_queries_for_the_goal_are_told(goal: float, least: int) -> None:
    first, second = halves(np.arange(2 * least), goal, 0)
    assert len(first) == len(second) == least
    with pytest.raises(DataError, match=f"{2 * least - 1} different queries came; .* needs at least {2 * least}: half"):
        halves(np.arange(2 * least - 1), goal, 0)


def test_halves_are_bounded_and_drawn_by_the_seed() -> None:
    first, second = halves(np.arange(9000), 0.95, 3)
    assert len(first) == len(second) == 2048 and not set(first) & set(second)
    assert halves(np.arange(9000), 0.95, 3)[0].tolist() == first.tolist()
    assert halves(np.arange(9000), 0.95, 4)[0].tolist() != first.tolist()
    assert len(halves(np.arange(9000), 0.999, 3)[0]) == 2995


def test_equal_queries_count_once() -> None:
    assert distinct(["a", "b", "a", "c", "b"]).tolist() == [0, 1, 3]
    rows = np.array([[1, 2], [3, 4], [1, 2]], np.float32)
    assert distinct(rows).tolist() == [0, 1]


def test_goals_that_are_no_share_are_refused(index: Index) -> None:
    for goal in (0.0, 1.0, 95.0):
        with pytest.raises(UsageError, match="expected a share between 0 and 1"):
            tune_recall(index, QUERIES, goal)
    with pytest.raises(UsageError, match="k=0 came"):
        tune_recall(index, QUERIES, 0.9, 0)
