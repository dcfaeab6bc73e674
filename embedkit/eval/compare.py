"""Two evaluations side by side: how far they differ, and whether chance could have done it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from embedkit.errors import DataError, UsageError
from embedkit.escapes import as_markdown
from embedkit.statistics import (
    bootstrap_interval,
    bootstrap_statistic,
    correlation_test,
    effect_size,
    holm,
    randomisation_test,
    spearman,
)
from embedkit.types import Report

MOVED = 5  # units that are shown for each task


@dataclass(frozen=True)
class Moved:
    """A query, or what else is scored one by one, and what it got."""

    unit: str
    text: str
    one: float
    other: float


@dataclass(frozen=True)
class Comparison:
    """One task: `other` against `one` by the task's main metric. None stands where the reports hold no values by unit."""

    task: str
    metric: str
    unit: str
    units: int
    one: float
    other: float
    interval: tuple[float, float] | None = None  # 95 % of the difference, bootstrap over the units
    p: float | None = None  # two-sided, paired randomisation
    p_holm: float | None = None  # adjusted for the number of tasks
    effect: float | None = None  # Cohen's d of the paired differences; of correlations there is none
    wins: int | None = None  # units where `other` is better
    ties: int | None = None
    losses: int | None = None
    moved: Sequence[Moved] = ()  # furthest first

    @property
    def difference(self) -> float:
        return self.other - self.one


def compare(one: Mapping[str, Report], other: Mapping[str, Report]) -> list[Comparison]:
    """The tasks that both have. p by Fisher's randomisation test over the units, adjusted by Holm over the tasks.

    Raises UsageError where they have no task in common, DataError where one of these had other data or other units.
    """
    shared = [name for name in one if name in other]
    if not shared:
        raise UsageError(f"No task is in both: {', '.join(one)} there, {', '.join(other)} here.")
    found = [_compared(name, one[name], other[name]) for name in shared]
    tested = [comparison.p for comparison in found if comparison.p is not None]
    adjusted = iter(holm(tested))
    return [found if found.p is None else replace(found, p_holm=next(adjusted)) for found in found]


def _compared(task: str, one: Report, other: Report) -> Comparison:
    if not _same_data(ours := one.context.get("data"), theirs := other.context.get("data")):
        raise DataError(f"{task} was of other data: {ours} there, {theirs} here; evaluate both on the same.")
    if one.main != other.main or one.main not in one.scores or one.main not in other.scores:
        raise DataError(f"{task} was scored by {one.main} there and {other.main} here; evaluate both alike.")
    if not (math.isfinite(one.scores[one.main]) and math.isfinite(other.scores[one.main])):
        raise DataError(f"{task} has no {one.main} that is a number in both; compare what tells its texts apart.")
    bare = Comparison(task, one.main, one.unit, one.units, one.scores[one.main], other.scores[one.main])
    if one.per_query.get(one.main) and other.per_query.get(one.main):
        return _by_means(bare, one, other)
    if one.main == "spearman" and one.predictions and other.predictions:
        return _by_ranks(bare, one, other)
    return bare


def _same_data(ours: Any, theirs: Any) -> bool:
    """Of a run of another system only the judgements are known: they have to be the same file."""
    if not (isinstance(ours, dict) and isinstance(theirs, dict) and "sha256" in ours and "sha256" in theirs):
        return bool(ours == theirs)
    few, many = sorted((dict(ours["sha256"]), dict(theirs["sha256"])), key=len)
    same_name = all(ours.get(key) == theirs.get(key) for key in ("name", "split"))
    return same_name and few == {name: many[name] for name in few if name in many}


def _by_means(bare: Comparison, one: Report, other: Report) -> Comparison:
    left, right = one.per_query[bare.metric], other.per_query[bare.metric]
    _check_same(bare.task, left, right)
    gaps = {unit: right[unit] - left[unit] for unit in left}
    values = list(gaps.values())
    furthest = sorted((unit for unit in gaps if gaps[unit]), key=lambda unit: -abs(gaps[unit]))[:MOVED]
    texts = {**one.texts, **other.texts}
    return replace(
        bare,
        interval=bootstrap_interval(values),
        p=randomisation_test(values),
        effect=effect_size(values),
        wins=sum(value > 0 for value in values),
        ties=sum(value == 0 for value in values),
        losses=sum(value < 0 for value in values),
        moved=[Moved(unit, texts.get(unit, ""), left[unit], right[unit]) for unit in furthest],
    )


def _by_ranks(bare: Comparison, one: Report, other: Report) -> Comparison:
    _check_same(bare.task, one.predictions, other.predictions)
    truth, left = np.array(list(one.predictions.values())).T
    right = np.array([other.predictions[unit][1] for unit in one.predictions])
    return replace(
        bare,
        interval=bootstrap_statistic(lambda t, a, b: spearman(t, b) - spearman(t, a), truth, left, right),
        p=correlation_test(truth, left, right),
    )


def _check_same(task: str, one: Mapping[str, object], other: Mapping[str, object]) -> None:
    if (apart := set(one) ^ set(other)) and apart:
        raise DataError(
            f"{task} has {len(apart)} units in one evaluation only ({', '.join(sorted(apart)[:3])}); evaluate both on the same."
        )


def markdown(comparisons: Sequence[Comparison]) -> str:
    """A table, and under it what moved most."""
    lines = [
        "| task | metric | one | other | difference | 95 % interval | p | p (Holm) | effect | wins/ties/losses | units |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for found in comparisons:
        interval = "" if found.interval is None else f"{found.interval[0]:+.4f} to {found.interval[1]:+.4f}"
        sides = "" if found.wins is None else f"{found.wins}/{found.ties}/{found.losses}"
        cells = [
            as_markdown(found.task),
            as_markdown(found.metric),
            f"{found.one:.4f}",
            f"{found.other:.4f}",
            f"{found.difference:+.4f}",
            interval,
        ]
        cells += [
            p_text(found.p),
            p_text(found.p_holm),
            "" if found.effect is None else effect_text(found.effect),
            sides,
        ]
        lines.append(f"| {' | '.join(cells)} | {found.units} {as_markdown(found.unit)} |")
    lines += ["", *_tests(comparisons)]
    for found in comparisons:
        if found.moved:
            lines += ["", f"{as_markdown(found.task)}, moved most ({as_markdown(found.metric)}):", ""]
            lines += [
                f"- {moved.one:.3f} -> {moved.other:.3f}  {as_markdown(moved.unit)}: {as_markdown(moved.text)}"
                for moved in found.moved
            ]
    return "\n".join(lines)


def _tests(comparisons: Sequence[Comparison]) -> list[str]:
    """What p is of, for each task."""
    lines = []
    for found in comparisons:
        units = "queries" if found.unit == "query" else f"{as_markdown(found.unit)}s"
        over = f"over {found.units} {units}"
        if found.p is None:
            said = "not tested; the reports hold no values by query or pair."
        elif found.wins is None:
            said = f"p swaps the ranks of the two systems {over}."
        elif found.unit == "repetition":
            said = f"p swaps signs {over} of the protocol on the same test items, which says nothing about other items."
        else:
            said = f"p swaps signs of paired differences {over}."
        lines.append(f"- {as_markdown(found.task)}: {said}")
    return lines


def p_text(value: float | None) -> str:
    return "" if value is None else "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def effect_text(value: float) -> str:
    return f"{value:+.2f}" if math.isfinite(value) else f"{value:+}"
