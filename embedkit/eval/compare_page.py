"""A comparison as a page: differences with their intervals around zero, p-values, and the queries that moved most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from embedkit.eval.compare import Comparison, effect_text, p_text
from embedkit.eval.failures import cut
from embedkit.eval.pages import page, plural
from embedkit.eval.plots import Point, forest

if TYPE_CHECKING:
    from markupsafe import Markup

SURE = 0.05  # adjusted p below which a difference is drawn filled


def difference_picture(comparisons: Sequence[Comparison]) -> Markup:
    """The difference of each task with its 95 % interval; filled where p (Holm) is below SURE."""
    rows = [_row(found) for found in comparisons]
    said = f"Differences of {len(rows)} tasks. " + " ".join(f"{row.name}: {row.label}." for row in rows)
    return forest(rows, "difference of the main score, other less one", said)


def _row(found: Comparison) -> Point:
    low, high = found.interval or (None, None)
    sure = found.p_holm is not None and found.p_holm < SURE
    name = f"{found.task}, {found.metric}"
    return Point(found.difference, 0.0, name, low, high, front=sure, label=_says(found))


def _says(found: Comparison) -> str:
    interval = "" if found.interval is None else f", from {found.interval[0]:+.4f} to {found.interval[1]:+.4f}"
    tested = "" if found.p_holm is None else f", p (Holm) {p_text(found.p_holm)}"
    return f"{found.difference:+.4f}{interval}{tested}"


def compare_page(comparisons: Sequence[Comparison], one: str, other: str) -> str:
    """one, other: what the two evaluations are called, such as their folders."""
    rows = [
        {
            "anchor": f"task-{number}",
            "found": found,
            "interval": "" if found.interval is None else f"{found.interval[0]:+.4f} to {found.interval[1]:+.4f}",
            "p": p_text(found.p),
            "p_holm": p_text(found.p_holm),
            "effect": "" if found.effect is None else effect_text(found.effect),
            "sides": "" if found.wins is None else f"{found.wins} / {found.ties} / {found.losses}",
            "units": plural(found.unit),
            "moved": [(moved, cut(moved.text)) for moved in found.moved],
        }
        for number, found in enumerate(comparisons, 1)
    ]
    return page(
        "compare.html",
        f"{other} against {one}",
        [("differences", "Differences"), ("moved", "What moved most")],
        one=one,
        other=other,
        rows=rows,
        picture=difference_picture(comparisons),
    )
