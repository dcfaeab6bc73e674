"""Several variants of one model side by side: one table, curves over dimensions, and which of them no other one beats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedkit.escapes import as_markdown
from embedkit.eval.pages import main_metric, page, shown_cost
from embedkit.eval.plots import Line, Point, lines, sample, scatter
from embedkit.eval.variants import Variant
from embedkit.types import Report

LATENCY, SIZE = "p50 ms", "bytes per row"


@dataclass(frozen=True)
class Summary:
    """A variant over the tasks that all variants have."""

    variant: Variant
    dim: int | None
    quality: float  # mean of the tasks' main scores
    cost: Mapping[str, float]  # name -> mean over the tasks that have it

    @property
    def name(self) -> str:
        return self.variant.label or "the model as it is"


def summaries(variants: Mapping[Variant, Mapping[str, Report]]) -> list[Summary]:
    """In the order of the variants, over the tasks that all of them have so far; empty where there is none."""
    tasks = shared_tasks(variants)
    return [_summary(variant, [reports[name] for name in tasks]) for variant, reports in variants.items() if tasks]


def shared_tasks(variants: Mapping[Variant, Mapping[str, Report]]) -> list[str]:
    first, *others = variants.values()
    return [name for name in first if all(name in other for other in others) and _is_known(name, variants)]


def _is_known(name: str, variants: Mapping[Variant, Mapping[str, Report]]) -> bool:
    """Whether the score is a number for all variants: it is none where a model tells nothing apart."""
    return all(math.isfinite(_score(reports[name])) for reports in variants.values())


def _summary(variant: Variant, reports: Sequence[Report]) -> Summary:
    names = dict.fromkeys(name for report in reports for name in report.cost)
    cost = {name: float(np.mean([one.cost[name] for one in reports if name in one.cost])) for name in names}
    return Summary(variant, variant.dim, float(np.mean([_score(report) for report in reports])), cost)


def _score(report: Report) -> float:
    return report.scores[main_metric(report)]


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether each (cost, quality) is on the front: no other one is at most as dear and at least as good, and better in one."""
    return [
        not any(x <= cost and y >= quality and (x < cost or y > quality) for x, y in points) for cost, quality in points
    ]


def grid_markdown(variants: Mapping[Variant, Mapping[str, Report]]) -> str:
    """One table: a row a variant, a column a task."""
    tasks, rows = shared_tasks(variants), summaries(variants)
    names = [name for name in (LATENCY, SIZE) if any(name in row.cost for row in rows)]
    lines = ["# Evaluation of variants", "", f"| variant | mean | {' | '.join(map(as_markdown, [*tasks, *names]))} |"]
    lines.append("|---" * (2 + len(tasks) + len(names)) + "|")
    for row in rows:
        scores = [_with_interval(variants[row.variant][task]) for task in tasks]
        figures = [shown_cost(name, row.cost.get(name)) for name in names]
        lines.append(f"| {row.name} | {row.quality:.4f} | {' | '.join([*scores, *figures])} |")
    lines += ["", "The reports of each variant lie in the folder of its name."]
    return "\n".join(lines)


def _with_interval(report: Report) -> str:
    low, high = report.intervals.get(main_metric(report), (None, None))
    return f"{_score(report):.4f}" + ("" if low is None else f" ({low:.4f} to {high:.4f})")


def grid_page(variants: Mapping[Variant, Mapping[str, Report]], command: str = "") -> str:
    """The page of a grid; each variant's own page is linked."""
    tasks, rows = shared_tasks(variants), summaries(variants)
    reports = [report for some in variants.values() for report in some.values()]
    model = next((str(report.context["model"]) for report in reports if report.context.get("model")), "Model")
    pictures = [picture for name in (LATENCY, SIZE) if (picture := _pareto_picture(rows, name))]
    best = {task: max((_score(some[task]) for some in variants.values()), default=0.0) for task in tasks}
    machines = {str(report.context["machine"]) for report in reports if "machine" in report.context}
    names = [name for name in ("p50 ms", "texts/s", "bytes per row") if any(name in row.cost for row in rows)]
    return page(
        "grid.html",
        f"Variants of {model}",
        [
            ("pareto", "Quality and cost"),
            ("table", "All variants"),
            ("curves", "Task by task"),
            ("repeat", "To repeat it"),
        ],
        model=model,
        lead=f"{len(rows)} variants on {len(tasks)} task{'' if len(tasks) == 1 else 's'}.",
        pictures=pictures,
        legend_entries=_legend("layers", _looks([_layered(row.variant) for row in rows])),
        tasks=tasks,
        costs=names,
        rows=[_table_row(row, variants[row.variant], tasks, names, best) for row in rows],
        curves=_curves(variants, tasks),
        command=command,
        machine=" and ".join(sorted(machines)),
    )


def _table_row(
    row: Summary, reports: Mapping[str, Report], tasks: Sequence[str], names: Sequence[str], best: Mapping[str, float]
) -> dict[str, Any]:
    cells = [
        {
            "score": _score(reports[task]),
            "said": _with_interval(reports[task]),
            "best": _score(reports[task]) == best[task],
        }
        for task in tasks
    ]
    figures = [(row.cost.get(name, ""), shown_cost(name, row.cost.get(name))) for name in names]
    return {"name": row.name, "folder": row.variant.folder, "mean": row.quality, "cells": cells, "figures": figures}


# --- pictures -----------------------------------------------------------------------------------------------------------------


def _looks(keys: Sequence[tuple[Any, str]]) -> dict[tuple[Any, str], tuple[int, int]]:
    """(colour, form) of (layers or dim, precision): the precision has the colour and the other the form, and where only one of them
    varies it has both."""
    firsts, precisions = (list(dict.fromkeys(key[side] for key in keys)) for side in (0, 1))
    places = {key: (precisions.index(key[1]), firsts.index(key[0])) for key in keys}
    if len(firsts) == 1:
        return {key: (colour, colour) for key, (colour, _) in places.items()}
    return {key: (form, form) if len(precisions) == 1 else (colour, form) for key, (colour, form) in places.items()}


def _named(axis: str, key: tuple[Any, str]) -> str:
    return key[1] if key[0] is None else f"{axis}={key[0]} {key[1]}"


def _legend(axis: str, looks: Mapping[tuple[Any, str], tuple[int, int]]) -> list[tuple[Any, str]]:
    return [(sample(*look), _named(axis, key)) for key, look in looks.items()]


def _layered(variant: Variant) -> tuple[Any, str]:
    return variant.layers, variant.precision


def _pareto_picture(rows: Sequence[Summary], cost: str) -> dict[str, Any] | None:
    """None where the cost is not known of all rows, or the same for all of them."""
    known = [row for row in rows if row.cost.get(cost, 0) > 0]
    values = [
        float(f"{row.cost[cost]:.2g}") if cost == LATENCY else row.cost[cost] for row in known
    ]  # the rest is noise
    if len(known) < len(rows) or len(set(values)) < 2:
        return None
    front = pareto([(value, row.quality) for value, row in zip(values, known, strict=True)])
    looks = _looks([_layered(row.variant) for row in known])
    points = [
        Point(
            value,
            row.quality,
            f"{row.name}: {row.quality:.4f}, {shown_cost(cost, value)}",
            series=looks[_layered(row.variant)][0],
            form=looks[_layered(row.variant)][1],
            front=on_front,
            label=row.name,
        )
        for value, row, on_front in zip(values, known, front, strict=True)
    ]
    x_label = {LATENCY: "median of one query, ms", SIZE: "bytes of one row"}[cost]
    best = [row.name for row, on_front in zip(known, front, strict=True) if on_front]
    said = f"Quality against {x_label}. On the front: {'; '.join(best)}."
    return {"says": said, "picture": scatter(points, x_label, "mean of main scores", said)}


def _curves(variants: Mapping[Variant, Mapping[str, Report]], tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Of each task its score over dimensions, and over layers, where there are several."""
    axes = [axis for axis in _AXES if len({getattr(variant, axis) for variant in variants}) > 1]
    found = []
    for task in tasks:
        reports = {variant: some[task] for variant, some in variants.items()}
        found.append({"name": task, "pictures": [_curve(task, reports, axis) for axis in axes]})
    return found if axes else []


_AXES = {
    "dim": ("dimensions", "layers"),
    "layers": ("layers", "dim"),
}  # attribute -> its name, what tells the curves apart


def _curve(task: str, reports: Mapping[Variant, Report], axis: str) -> dict[str, Any]:
    name, other = _AXES[axis]
    looks = _looks([(getattr(variant, other), variant.precision) for variant in reports])
    grouped: dict[tuple[Any, str], list[Point]] = {}
    for variant, report in reports.items():
        key = (getattr(variant, other), variant.precision)
        low, high = report.intervals.get(main_metric(report), (None, None))
        said = f"{variant.label}: {_with_interval(report)}"
        point = Point(getattr(variant, axis), _score(report), said, low, high, *looks[key])
        grouped.setdefault(key, []).append(point)
    curves = [Line(_named(other, key), sorted(points)) for key, points in grouped.items()]
    says = f"{main_metric(next(iter(reports.values())))} over {name}, with 95 % intervals"
    picture = lines(curves, name, "score", f"{task}: {says}")
    return {"says": says, "picture": picture, "legend": _legend(other, looks)}
