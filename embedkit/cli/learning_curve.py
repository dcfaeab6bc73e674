"""The picture of a training run, from its log: the loss of each stage, and the scores on the way where there are any."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from embedkit.errors import IntegrityError
from embedkit.limits import open_regular
from embedkit.storage import atomic_file
from embedkit.typed import checked, parsed

POINTS = 200  # of a line; each is a mean over the steps around it
LOSS, SCORES = "loss.svg", "scores.svg"


class _Line(TypedDict, total=False):
    """Of a log, as far as it is read by name."""

    stage: str
    loss: float
    task: str


def draw(folder: Path) -> None:
    """Writes loss.svg and, where the log has scores, scores.svg into the folder of a run."""
    from embedkit.eval.plots import Line, Point, alone, curves

    losses: dict[str, list[float]] = {}  # stage -> of its steps
    scores: dict[str, list[tuple[int, float]]] = {}  # task, metric -> (step of the whole run, score)
    steps = 0
    for row in _rows(folder / "log.jsonl"):
        if "task" in row:
            metric = next((name for name in row if name not in ("stage", "step", "task", "best")), "")
            if checked(row.get(metric), float | None, f"{folder / 'log.jsonl'}: {metric}") is not None:
                scores.setdefault(f"{Path(row['task']).name}, {metric}", []).append((steps, row[metric]))
        elif "loss" in row:
            losses.setdefault(row.get("stage", ""), []).append(row["loss"])
            steps += 1
    shown, start = [], 0
    for series, (stage, values) in enumerate(losses.items()):
        shown.append(Line(stage, [Point(start + x, y, stage, series=series) for x, y in _means(values)]))
        start += len(values)
    pictures = {LOSS: curves(shown, "step", "loss", "The loss of each step")}
    if scores:
        lines = [
            Line(name, [Point(x, y, name, series=series) for x, y in pairs])
            for series, (name, pairs) in enumerate(scores.items())
        ]
        pictures[SCORES] = curves(lines, "step", "score", "Scores on the way")
    for name, picture in pictures.items():
        with atomic_file(folder / name) as stream:
            stream.write(alone(picture).encode())


def _rows(log: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log. Raises IntegrityError for one that no run wrote."""
    with open_regular(log, IntegrityError) as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = parsed(line)
            except ValueError:
                row = None
            yield checked(row, _Line, f"{log}, line {number}")


def _means(values: list[float]) -> list[tuple[float, float]]:
    """At most POINTS (step, mean value) pairs."""
    parts = np.array_split(np.arange(1, len(values) + 1), min(POINTS, len(values)))
    return [(float(part.mean()), float(np.mean([values[step - 1] for step in part]))) for part in parts]
