"""Costs from times that a clock of the test's own hands out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import pytest

from embedkit.eval import cost
from embedkit.eval.cost import COSTS, Encoding, Searching, costs

from ..conftest import WordCounts


def test_figures_by_hand() -> None:
    encoding = Encoding(texts=50.0, tokens=1000.0, queries=0.5, single=[0.010, 0.020, 0.030])
    searching = Searching(queries=0.25, single=[0.001, 0.001, 0.003], ram=4096, disk=None)
    found = costs(encoding, searching, 384, 12.5)
    assert found["queries/s"] == 4.0  # three in 0.75 s
    assert found["p50 ms"] == pytest.approx(21.0)
    assert found["p99 ms"] == pytest.approx(1e3 * (0.021 + 0.98 * 0.012), rel=1e-3)
    assert (found["bytes per row"], found["bytes in RAM"], found["seconds"]) == (384, 4096, 12.5)
    assert "bytes on disk" not in found
    assert list(found) == [name for name in COSTS if name in found]
    alone = costs(Encoding(50.0, None, 0.5, [0.01, 0.02]), Searching(), 384, None)
    assert alone["p50 ms"] == 15.0
    assert not {"tokens/s", "queries/s", "bytes in RAM", "seconds"} & set(alone)


def test_the_median_counts_the_first_call_does_not_and_a_slow_one_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def lasting(*seconds: float) -> Callable[..., None]:
        left = list(seconds)

        def call(*_: object) -> None:
            nonlocal now
            now += left.pop(0)

        return call

    assert cost.median_seconds(lasting(9, 0.1, 0.3, 0.2, 0.1, 0.2)) == pytest.approx(0.2)
    assert cost.median_seconds(lasting(9, 3)) == pytest.approx(3)
    single = cost.single_seconds(lasting(1, 0.5, 0.75, 4), range(10))  # two seconds are enough
    assert single == pytest.approx([1, 0.5, 0.75])


def test_memory_is_in_bytes_and_the_machine_has_a_name() -> None:
    held = bytearray(50_000_000)
    held[::4096] = b"x" * len(held[::4096])
    assert 50e6 < cost.peak_rss() < 1e12
    assert cost.machine()["cpu"] and cost.machine()["cores"] >= 1


def test_a_sample_says_nothing_of_the_whole(caplog: pytest.LogCaptureFixture) -> None:
    class Warns(WordCounts):
        def encode(self, inputs: Any, **options: Any) -> Any:
            logging.getLogger("embedkit").warning("%d of %d texts were cut.", 1, len(inputs))
            return super().encode(inputs, **options)

    Encoding.of(Warns(), ["cat"], ["dog"])
    assert caplog.records == []
    Warns().encode(["cat"])
    assert len(caplog.records) == 1
