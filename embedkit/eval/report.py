"""Reports on disk: report.json for programs, report.md for people, mteb's own results beside them."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypedDict

from embedkit.errors import IntegrityError, UsageError
from embedkit.escapes import as_markdown, escaped
from embedkit.eval.grid_page import grid_markdown, grid_page
from embedkit.eval.pages import main_metric, report_page
from embedkit.eval.variants import Variant
from embedkit.limits import MANIFEST, SCORE, read_at_most
from embedkit.storage import atomic_file
from embedkit.typed import checked, parsed
from embedkit.types import Failure, Judged, Report


def write_reports(
    folder: Path, reports: Mapping[str, Report], mteb_results: Mapping[str, Mapping[str, Any]], command: str = ""
) -> None:
    """Replaces report.json, report.md and report.html in the folder, and writes TASK.json for every task that mteb ran.

    command: as it was typed, for the page."""
    tasks = {name: as_json(report) for name, report in reports.items()}
    _write_json(folder / "report.json", {"tasks": tasks})
    write_escaped(folder / "report.md", markdown(reports))
    write_escaped(folder / "report.html", report_page(reports, command))
    for name, result in mteb_results.items():
        _write_json(folder / f"{name}.json", result)


def write_grid(folder: Path, variants: Mapping[Variant, Mapping[str, Report]], command: str = "") -> None:
    """Replaces report.json, report.md and report.html of several variants of one model; each variant's own reports lie in
    `variant.folder` beside."""
    facts = {
        variant.folder: {**asdict(variant), "tasks": {name: _main_facts(one) for name, one in reports.items()}}
        for variant, reports in variants.items()
    }
    _write_json(folder / "report.json", {"variants": facts})
    write_escaped(folder / "report.md", grid_markdown(variants))
    write_escaped(folder / "report.html", grid_page(variants, command))


def _main_facts(report: Report) -> dict[str, Any]:
    main = main_metric(report)
    return {
        "main": main,
        "score": report.scores.get(main),
        "interval": report.intervals.get(main),
        "units": report.units,
        "cost": report.cost,
    }


def _write_json(path: Path, content: Any) -> None:
    write_escaped(path, json.dumps(plain(content), indent=1, ensure_ascii=False))


def plain(content: Any) -> Any:
    """The content as JSON has it: null for NaN and infinite, for which it has no word."""
    return json.loads(json.dumps(content, default=str), parse_constant=lambda _: None)


def write_escaped(path: Path, text: str) -> None:
    """Characters that steer a terminal or the direction of reading are escaped, in JSON to the same value."""
    with atomic_file(path) as stream:
        stream.write(escaped(text).encode() + b"\n")


def as_json(report: Report) -> dict[str, Any]:
    facts = asdict(report)
    order = ("scores", "intervals", "main", "unit", "cost", "context", "per_query", "predictions", "texts", "failures")
    return {"units": report.units, **{name: facts[name] for name in order}}


class JudgedNames(TypedDict):
    id: str
    text: str


class JudgedFacts(JudgedNames, total=False):
    grade: float | None
    rank: int | None
    score: float | None


class FailureFacts(TypedDict):
    unit: str
    text: str
    value: float
    expected: list[JudgedFacts]
    found: list[JudgedFacts]


class DataFacts(TypedDict, total=False):
    name: str
    split: str
    sha256: dict[str, str]


class ContextFacts(TypedDict, total=False):
    data: DataFacts


class ScoreFacts(TypedDict):
    scores: dict[str, float | None]
    intervals: dict[str, tuple[float, float]]
    per_query: dict[str, dict[str, float]]
    context: ContextFacts


class ReportFacts(ScoreFacts, total=False):
    """A Report as `as_json` writes it."""

    main: str
    unit: str
    predictions: dict[str, tuple[float, float]]
    texts: dict[str, str]
    cost: dict[str, float]
    failures: list[FailureFacts]


class ReportFile(TypedDict, total=False):
    tasks: dict[str, ReportFacts]
    variants: dict[str, Any]  # of a grid


def read_reports(folder: Path) -> dict[str, Report]:
    """What `write_reports` wrote. Raises UsageError where there is no report.json, IntegrityError where it cannot be read."""
    path, again = folder / "report.json", "run the evaluation again"
    if not path.is_file():
        raise UsageError(f"{folder} holds no report.json; give the folder that `embedkit eval -o` wrote.")
    try:
        content = parsed(read_at_most(path, MANIFEST, IntegrityError))
    except ValueError as error:
        raise IntegrityError(f"{path} is no report of embedkit ({error}); {again}.") from None
    checked(content, ReportFile, path, step=again)
    if "variants" in content:
        names = ", ".join(content["variants"])
        raise UsageError(f"{folder} holds several variants of a model; give the folder of one, below it: {names}.")
    if not content.get("tasks"):
        raise IntegrityError(f"{path} holds no task; {again}.")
    for name, facts in content["tasks"].items():
        if any(abs(value) > SCORE for value in _values(facts)):
            raise IntegrityError(f"{path} holds a score of {name!r} beyond {SCORE:,}; {again}.")
    return {name: from_json(facts) for name, facts in content["tasks"].items()}


def _values(facts: ReportFacts) -> Iterator[float]:
    """Scores, the ends of their intervals, and those of each query."""
    yield from (value for value in facts["scores"].values() if value is not None)
    yield from itertools.chain.from_iterable(facts["intervals"].values())
    for its in facts["per_query"].values():
        yield from its.values()


def from_json(facts: ReportFacts) -> Report:
    """The report that `as_json` gave; null was a score that is no number."""
    known = _known(Report, facts)
    known["scores"] = {name: math.nan if score is None else score for name, score in known["scores"].items()}
    known["intervals"] = {name: tuple(bounds) for name, bounds in known["intervals"].items()}
    known["predictions"] = {unit: tuple(pair) for unit, pair in known.get("predictions", {}).items()}
    known["failures"] = tuple(_failure(one) for one in known.get("failures", ()))
    return Report(**known)


def _failure(facts: FailureFacts) -> Failure:
    sides = facts["expected"], facts["found"]
    expected, found = (tuple(Judged(**_known(Judged, one)) for one in side) for side in sides)
    return Failure(facts["unit"], facts["text"], facts["value"], expected, found)


def _known(kind: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that this version has a field for."""
    return {one.name: facts[one.name] for one in fields(kind) if one.name in facts}


def markdown(reports: Mapping[str, Report]) -> str:
    """A table of scores with their 95 % intervals, and the context of each task."""
    lines = ["# Evaluation", "", "| task | metric | score | 95 % interval | queries |", "|---|---|---|---|---|"]
    for name, report in reports.items():
        for metric, score in report.scores.items():
            low, high = report.intervals.get(metric, (None, None))
            interval = "" if low is None else f"{low:.4f} to {high:.4f}"
            named = f"{as_markdown(name)} | {as_markdown(metric)}"
            lines.append(f"| {named} | {score:.4f} | {interval} | {report.units or ''} |")
    for name, report in reports.items():
        lines += ["", f"## {as_markdown(name)}", ""]
        lines += [f"- {as_markdown(key)}: {as_markdown(_short(value))}" for key, value in report.context.items()]
    return "\n".join(lines)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 600 else f"{text[:600]}…"


def replace_table(path: Path, name: str, lines: Sequence[str]) -> None:
    """Puts the lines between `<!-- NAME -->` and `<!-- /NAME -->` in a README, which the programs beside it keep true.

    Raises UsageError when the marks are not there.
    """
    text = path.read_text(encoding="utf-8")
    head, start, rest = text.partition(f"<!-- {name} -->\n")
    _, end, tail = rest.partition(f"<!-- /{name} -->")
    if not start or not end:
        raise UsageError(f"{path} has no marks <!-- {name} --> and <!-- /{name} -->; put them around the table.")
    write_escaped(path, (head + start + "\n".join([*lines, ""]) + end + tail).rstrip("\n"))
