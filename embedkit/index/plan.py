"""Ways to keep so many rows on machines of so much RAM, each with what it takes (`costs.py`), and the best of them."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from embedkit.index.coarse import ROW_NUMBER, automatic_factory
from embedkit.index.costs import Calibration, Prediction, Task, predict
from embedkit.index.fine import STORED

MOST_MACHINES = 10_000
CODE_SHARES = (24, 12, 8, 6)  # a code takes dim / share bytes: the sizes of `auto` that a plan compares


@dataclass(frozen=True)
class Goal:
    """What is to be kept, and on what."""

    rows: int
    dim: int
    ram: int  # bytes of one machine
    threads: int  # of one machine
    recall: float | None = None  # as `Layout.recall`
    text: float = 0.0  # mean bytes of title, text and metadata


@dataclass(frozen=True)
class Option:
    """One way to keep so many rows; each machine holds an equal part and answers every query."""

    coarse: str | None  # of each machine
    bytes_per_vector: int | None  # what `--coarse auto` is given for it; None: exact
    fine: str
    machines: int
    prediction: Prediction  # of one machine
    process: int  # bytes of the process itself, beside what is predicted
    threads: int

    @property
    def queries_per_second(self) -> float | None:
        seconds = self.prediction.query_seconds
        return None if seconds is None else self.threads / seconds

    def facts(self) -> dict[str, Any]:
        """ram, disk and build_peak of one machine; build_peak with the process."""
        predicted = self.prediction
        return {
            "coarse": self.coarse or "none",
            "bytes_per_vector": self.bytes_per_vector,
            "fine": self.fine,
            "machines": self.machines,
            **{name: getattr(predicted, name) for name in ("ram", "disk", "build_seconds")},
            "build_peak": (predicted.build_peak or 0) + self.process,
            "query_seconds": predicted.query_seconds,
            "queries_per_second": self.queries_per_second,
            "probes": predicted.probes,
            "shortlist": None if self.coarse is None else predicted.shortlist,
            "recall_reached": predicted.reached,
        }


def options(goal: Goal, calibration: Calibration) -> list[Option]:
    """Codes of several sizes and none, over rows of every dtype, on as few machines as hold them.

    What fits on no number of machines is left out."""
    sizes = sorted({automatic_bytes(goal.dim, share) for share in CODE_SHARES})
    found = []
    for size in (*sizes, None):
        for fine in STORED:
            option = _on_machines(goal, size, fine, calibration)
            if option is not None and (option.coarse is None) == (size is None):  # few rows have no codes
                found.append(option)
    return found


def _on_machines(goal: Goal, size: int | None, fine: str, calibration: Calibration) -> Option | None:
    def on(machines: int) -> tuple[bool, Option]:
        part = math.ceil(goal.rows / machines)
        factory = None if size is None else automatic_factory(part, goal.dim, size)
        task = Task(part, goal.dim, factory, fine, goal.recall, goal.text)
        said = predict(task, calibration, goal.threads)
        needed = calibration.process + max(said.ram or 0, said.build_peak or 0)
        return needed <= goal.ram, Option(factory, size, fine, machines, said, calibration.process, goal.threads)

    most = min(goal.rows, MOST_MACHINES)
    machines = bisect.bisect_left(range(1, most + 1), True, key=lambda count: on(count)[0]) + 1
    return on(machines)[1] if machines <= most else None


def automatic_bytes(dim: int, share: int) -> int:
    """`bytes_per_vector` for codes of dim / share bytes: a row number stands beside each."""
    return max(1, dim // share) + ROW_NUMBER


def best(found: Sequence[Option]) -> Option | None:
    """The fewest machines that reach the recall, then the most queries/s."""
    reaching = [option for option in found if option.prediction.reached]
    return min(reaching, key=lambda one: (one.machines, one.prediction.query_seconds or math.inf), default=None)
