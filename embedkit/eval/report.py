"""Reports on disk: report.json for programs, report.md for people, mteb's own results beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from embedkit.errors import IntegrityError, UsageError
from embedkit.eval.grid_page import grid_markdown, grid_page
from embedkit.eval.pages import main_metric, report_page
from embedkit.eval.variants import Variant
from embedkit.storage import atomic_file
from embedkit.types import Failure, Judged, Report


def write_reports(
    folder: Path, reports: Mapping[str, Report], mteb_results: Mapping[str, Mapping[str, Any]], command: str = ""
) -> None:
    """Replaces report.json, report.md and report.html in the folder, and writes TASK.json for every task that mteb ran.

    command: as it was typed, for the page."""
    tasks = {name: as_json(report) for name, report in reports.items()}
    _write(folder / "report.json", json.dumps({"tasks": tasks}, indent=1, ensure_ascii=False, default=str))
    _write(folder / "report.md", markdown(reports))
    _write(folder / "report.html", report_page(reports, command))
    for name, result in mteb_results.items():
        _write(folder / f"{name}.json", json.dumps(result, indent=1, ensure_ascii=False, default=str))


def write_grid(folder: Path, variants: Mapping[Variant, Mapping[str, Report]], command: str = "") -> None:
    """Replaces report.json, report.md and report.html of several variants of one model; each variant's own reports lie in
    `variant.folder` beside."""
    facts = {
        variant.folder: {**asdict(variant), "tasks": {name: _main_facts(one) for name, one in reports.items()}}
        for variant, reports in variants.items()
    }
    _write(folder / "report.json", json.dumps({"variants": facts}, indent=1, ensure_ascii=False, default=str))
    _write(folder / "report.md", grid_markdown(variants))
    _write(folder / "report.html", grid_page(variants, command))


def _main_facts(report: Report) -> dict[str, Any]:
    main = main_metric(report)
    return {
        "main": main,
        "score": report.scores.get(main),
        "interval": report.intervals.get(main),
        "units": report.units,
        "cost": report.cost,
    }


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as stream:
        stream.write(text.encode() + b"\n")


def as_json(report: Report) -> dict[str, Any]:
    facts = asdict(report)
    order = ("scores", "intervals", "main", "unit", "cost", "context", "per_query", "predictions", "texts", "failures")
    return {"units": report.units, **{name: facts[name] for name in order}}


def read_reports(folder: Path) -> dict[str, Report]:
    """What `write_reports` wrote. Raises UsageError where there is no report.json, IntegrityError where it cannot be read."""
    path = folder / "report.json"
    if not path.is_file():
        raise UsageError(f"{folder} holds no report.json; give the folder that `embedkit eval -o` wrote.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if "variants" in content:
            names = ", ".join(content["variants"])
            raise UsageError(f"{folder} holds several variants of a model; give the folder of one, below it: {names}.")
        tasks = content["tasks"]
        return {name: from_json(facts) for name, facts in tasks.items()}
    except UsageError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path} is no report of embedkit ({error}); run the evaluation again.") from None


def from_json(facts: dict[str, Any]) -> Report:
    known = {name: facts[name] for name in facts if name != "units"}
    known["intervals"] = {name: tuple(bounds) for name, bounds in known["intervals"].items()}
    known["predictions"] = {unit: tuple(pair) for unit, pair in known.get("predictions", {}).items()}
    known["failures"] = tuple(_failure(one) for one in known.get("failures", ()))
    return Report(**known)


def _failure(facts: dict[str, Any]) -> Failure:
    sides = {side: tuple(Judged(**one) for one in facts[side]) for side in ("expected", "found")}
    return Failure(**{**facts, **sides})


def markdown(reports: Mapping[str, Report]) -> str:
    """A table of scores with their 95 % intervals, and the context of each task."""
    lines = ["# Evaluation", "", "| task | metric | score | 95 % interval | queries |", "|---|---|---|---|---|"]
    for name, report in reports.items():
        for metric, score in report.scores.items():
            low, high = report.intervals.get(metric, (None, None))
            interval = "" if low is None else f"{low:.4f} to {high:.4f}"
            lines.append(f"| {name} | {metric} | {score:.4f} | {interval} | {report.units or ''} |")
    for name, report in reports.items():
        lines += ["", f"## {name}", ""]
        lines += [f"- {key}: `{_short(value)}`" for key, value in report.context.items()]
    return "\n".join(lines)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    flat = " ".join(text.split()).replace("`", "'")
    return flat if len(flat) <= 600 else f"{flat[:600]}…"


def replace_table(path: Path, name: str, lines: Sequence[str]) -> None:
    """Puts the lines between `<!-- NAME -->` and `<!-- /NAME -->` in a README, which the programs beside it keep true.

    Raises UsageError when the marks are not there.
    """
    text = path.read_text(encoding="utf-8")
    head, start, rest = text.partition(f"<!-- {name} -->\n")
    _, end, tail = rest.partition(f"<!-- /{name} -->")
    if not start or not end:
        raise UsageError(f"{path} has no marks <!-- {name} --> and <!-- /{name} -->; put them around the table.")
    _write(path, (head + start + "\n".join([*lines, ""]) + end + tail).rstrip("\n"))
