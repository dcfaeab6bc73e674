"""Known-item measuring, with answers worked out by hand."""

from __future__ import annotations

import itertools
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedkit
from embedkit.errors import DataError
from embedkit.eval.serving import measure


@pytest.fixture
def index(tmp_path: Path, word_counts: Any) -> embedkit.Index:
    return embedkit.build_index(["cat", "cat dog", "cat dog fish", "bird"], tmp_path / "x", model=word_counts)


def test_the_score_is_the_discounted_rank_of_the_answer(index: embedkit.Index, word_counts: Any) -> None:
    """The query "cat" ranks its documents 0, 1, 2: the answers stand first, second and third."""
    queries = word_counts.encode(["cat", "cat", "cat"])
    measured = measure(index, queries, [{"0": 1}, {"1": 1}, {"2": 1}])
    assert measured.ndcg == pytest.approx((1 + 1 / log2(3) + 1 / log2(4)) / 3)
    assert measured.interval[0] < measured.ndcg < measured.interval[1]
    assert measure(index, queries, [{"3": 1}, {"3": 1}, {"nobody": 1}]).ndcg == pytest.approx(2 / log2(5) / 3)


def test_times_and_sizes_are_those_of_the_index(index: embedkit.Index, word_counts: Any) -> None:
    measured = measure(index, word_counts.encode(["cat"] * 7), [{"0": 1}] * 7)
    searched = [index.path / f"segment-0001.{part}" for part in ("fine.npy", "ids.npy")]
    assert measured.bytes_in_ram == sum(path.stat().st_size for path in searched)
    assert measured.bytes_on_disk == index.bytes_on_disk()
    assert measured.queries_per_second > 0
    assert 0 < measured.p50_ms <= measured.p99_ms


def test_every_query_needs_judgements(index: embedkit.Index) -> None:
    with pytest.raises(DataError, match="2 queries came with 1 judgements"):
        measure(index, np.ones((2, 12), np.float32), [{"0": 1}])
    with pytest.raises(DataError, match="No query has a relevant document"):
        measure(index, np.ones((1, 12), np.float32), [{"0": 0}])


def test_times_are_differences(index: embedkit.Index, word_counts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that ticks one second a look: every search takes one second."""
    ticks = itertools.count()
    monkeypatch.setattr("embedkit.eval.serving.time.perf_counter", lambda: float(next(ticks)))
    measured = measure(index, word_counts.encode(["cat"] * 3), [{"0": 1}] * 3)
    assert (measured.queries_per_second, measured.p50_ms, measured.p99_ms) == (3.0, 1000.0, 1000.0)
