"""The picture of a training run, from its log: the loss of each stage, and the scores on the way where there are any."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from embedkit.storage import atomic_file

POINTS = 200  # of a line; each is a mean over the steps around it
LOSS, SCORES = "loss.svg", "scores.svg"


def draw(folder: Path) -> None:
    """Writes loss.svg and, where the log has scores, scores.svg into the folder of a run."""
    from embedkit.eval.plots import Line, Point, alone, curves

    losses: dict[str, list[float]] = {}  # stage -> of its steps
    scores: dict[str, list[tuple[int, float]]] = {}  # task, metric -> (step of the whole run, score)
    steps = 0
    for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "task" in row:
            metric = next(name for name in row if name not in ("stage", "step", "task", "best"))
            if row[metric] is not None:  # a score that is no number
                scores.setdefault(f"{Path(row['task']).name}, {metric}", []).append((steps, row[metric]))
        elif "loss" in row:
            losses.setdefault(row["stage"], []).append(row["loss"])
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


def _means(values: list[float]) -> list[tuple[float, float]]:
    """At most POINTS (step, mean value) pairs."""
    parts = np.array_split(np.arange(1, len(values) + 1), min(POINTS, len(values)))
    return [(float(part.mean()), float(np.mean([values[step - 1] for step in part]))) for part in parts]
