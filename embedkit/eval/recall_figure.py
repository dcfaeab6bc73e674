"""Recall against queries/s, a line for each size of codes, as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from embedkit.errors import MissingDependency
from embedkit.eval.recall import TunedRecall
from embedkit.storage import atomic_file, writable


def import_figure() -> Any:
    """matplotlib's Figure: a canvas without a window. Raises MissingDependency."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependency(
            'matplotlib is not installed; from the project\'s folder, run pip install -e ".[plots]"; or leave -o out.'
        ) from None
    return Figure


def draw(tuned: TunedRecall, path: Path) -> None:
    figure = import_figure()(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for curve in tuned.curves:
        recall = [point.recall for point in curve.points]
        ends = [[abs(point.interval[end] - point.recall) for point in curve.points] for end in (0, 1)]
        speed = [point.queries_per_second for point in curve.points]
        axes.errorbar(
            speed, recall, ends, fmt="o-", capsize=2, label=f"{curve.bytes_per_vector:.0f} bytes, {curve.coarse}"
        )
    axes.axhline(tuned.goal, color="gray", linestyle="--", linewidth=1)
    for point, mark in ((tuned.stored, "as it was"), (tuned.chosen, "chosen")):
        if point is not None:
            axes.annotate(mark, (point.queries_per_second, point.recall), xytext=(6, 8), textcoords="offset points")
    axes.set_xscale("log")
    axes.set_xlabel("queries/s")
    axes.set_ylabel(f"recall@{tuned.k} of {tuned.measured_on:,} queries")
    axes.grid(alpha=0.3)
    axes.legend(title="RAM of a vector", loc="lower left")
    with atomic_file(writable(path)) as stream:
        figure.savefig(stream, format="png", dpi=150)
