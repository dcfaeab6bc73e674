"""Which of several ways is the quickest here, found by trying; and so, whether bfloat16 pays."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

TRIALS = 16
BFLOAT16_GAIN = 1.2  # how much faster it must be to be the default


def quickest(ways: Mapping[str, Callable[[], Any]], *, handicap: float) -> str:
    """The name of the way that is faster than the first by more than `handicap`, else the first.

    They take turns and the best time of each counts, so that a busy machine does not decide.
    """
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(TRIALS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            best[name] = min(best[name], time.perf_counter() - start)
    first = next(iter(ways))
    winner = min(best, key=best.__getitem__)
    return winner if handicap * best[winner] < best[first] else first


def bfloat16_wins(multiplication: Callable[[str], Callable[[], Any]]) -> bool:
    """multiplication: dtype -> a matrix product in it. To be done on one thread and within a millisecond, so that other
    programs that keep the cores busy do not decide: two runs of a job must come to the same answer."""
    ways = {dtype: multiplication(dtype) for dtype in ("float32", "bfloat16")}
    return quickest(ways, handicap=BFLOAT16_GAIN) == "bfloat16"
