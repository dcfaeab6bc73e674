"""report.html: one file that needs nothing else, to be read for an hour.

No script or font is loaded and nothing is sent: the page's own policy (Content-Security-Policy) allows its one script by hash and
no address at all, so that no text of the data can do more. It is readable without the script, which sorts, filters and opens.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from embedkit.errors import MissingDependency
from embedkit.eval.cost import COSTS
from embedkit.eval.failures import cut, furthest_off
from embedkit.eval.plots import MARKS, histogram, interval_bar
from embedkit.types import Failure, Judged, Report
from embedkit.version import __version__

TEMPLATES = Path(__file__).parent / "templates"
ROOM = 1_200_000  # bytes of texts in a page, shared by its tasks
LEAST = 4_000  # of one task
SHORT = 280  # characters of a text
FEW = 3  # documents of each side of a failure
OF_HEAD = ("model", "compute", "embedkit", "mteb", "machine")


@cache
def _environment() -> Any:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError:
        raise MissingDependency(
            'jinja2 is not installed; from the project\'s folder, run pip install -e ".[eval]".'
        ) from None
    loader = FileSystemLoader(TEMPLATES, encoding="utf-8")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def page(template: str, title: str, sections: Sequence[tuple[str, str]], **values: Any) -> str:
    """A whole page. sections: (anchor, name) of its headings; values: what the template names."""
    environment = _environment()
    from markupsafe import Markup

    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8") + MARKS
    shown: str = environment.get_template(template).render(
        title=title,
        sections=sections,
        version=__version__,
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **values,
    )
    return shown


def report_page(reports: Mapping[str, Report], command: str = "") -> str:
    """Scores with intervals, cost, the worst answers and what made them, of one model on some tasks."""
    contexts = {name: dict(_flat(report.context)) for name, report in reports.items()}
    shared = _shared(list(contexts.values()))
    low = scale_low(reports.values())
    room = max(LEAST, ROOM // max(1, len(reports)))
    tasks = [
        {"anchor": f"task-{number}", "name": name, **_task(report, low, room)}
        | {"context": [(key, value) for key, value in contexts[name].items() if key not in shared]}
        for number, (name, report) in enumerate(reports.items(), 1)
    ]
    costs = cost_table(reports)
    model = next((str(report.context["model"]) for report in reports.values() if report.context.get("model")), "Model")
    sections = [("scores", "Scores"), ("cost", "Cost"), ("tasks", "Task by task"), ("repeat", "To repeat it")]
    return page(
        "report.html",
        f"Evaluation of {model}",
        [one for one in sections if one[0] != "cost" or costs["rows"]],
        model=model,
        lead=f"Evaluated on {len(reports)} task{'' if len(reports) == 1 else 's'}.",
        facts=_facts(reports),
        tasks=tasks,
        costs=costs,
        scale_low=low,
        command=command,
        shared=list(shared.items()),
    )


def scale_low(reports: Iterable[Report]) -> float:
    """Where the scale of scores starts: 0, or -1 where a score or an end of an interval is below."""
    values = [value for report in reports for value in report.scores.values() if math.isfinite(value)]
    ends = [low for report in reports for low, _ in report.intervals.values()]
    return -1.0 if min([*values, *ends], default=0.0) < 0 else 0.0


def main_metric(report: Report) -> str:
    """The metric that counts, or the first one where a report does not have it."""
    return report.main if report.main in report.scores else next(iter(report.scores), report.main)


def plural(unit: str) -> str:
    return f"{unit[:-1]}ies" if unit.endswith("y") else f"{unit}s"


def _facts(reports: Mapping[str, Report]) -> list[tuple[str, str]]:
    """What stands at the head of a page, where all tasks agree on it."""
    shared = _shared([dict(_flat(report.context)) for report in reports.values()])
    machine = shared.get("machine.cpu", "") + (
        f", {shared['machine.cores']} cores" if "machine.cores" in shared else ""
    )
    computed = [shared[key] for key in ("compute.backend", "compute.dtype") if key in shared]
    threads = [f"{shared['compute.threads']} threads"] if "compute.threads" in shared else []
    facts = {
        "Computed by": ", ".join([*computed, *threads]),
        "Machine": machine,
        "Space (fingerprint)": shared.get("fingerprint", "")[:16],
        "Versions": ", ".join(f"{name} {shared[name]}" for name in ("embedkit", "mteb") if name in shared),
    }
    return [(name, value) for name, value in facts.items() if value]


def _flat(context: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, str]]:
    """("data.sha256.corpus.jsonl", "ab12...") of nested settings."""
    for name, value in context.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            yield f"{before}{name}", cut(text, 600)


def _shared(contexts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    first = contexts[0] if contexts else {}
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in contexts)}


# --- one task ---------------------------------------------------------------------------------------------------------------


def _task(report: Report, low: float, room: int) -> dict[str, Any]:
    main = main_metric(report)
    names = sorted(report.scores, key=lambda metric: metric != main)  # the one that counts first
    rows = [_metric(report, metric, low) for metric in names]
    values = list(report.per_query.get(main, {}).values()) if report.unit != "repetition" else []
    pairs = _within(map(_Pair(report), furthest_off(report)), room) if not report.failures else []
    failures = _within(map(_brief, report.failures), room)
    return {
        "main": next((row for row in rows if row["metric"] == main), _metric(report, main, low)),
        "metrics": rows,
        "units": report.units,
        "unit": plural(report.unit),
        "histogram": histogram(values, f"{main} of {len(values)} {plural(report.unit)}", low) if values else "",
        "histogram_says": f"How the {main} of single {plural(report.unit)} lies",
        "failures": failures,
        "pairs": pairs,
        "worst_says": f"The {len(failures)} worst, worst first" if failures else f"The {len(pairs)} pairs furthest off",
    }


def _metric(report: Report, metric: str, low: float) -> dict[str, Any]:
    score, interval = report.scores.get(metric, float("nan")), report.intervals.get(metric)
    return {
        "metric": metric,
        "value": f"{score:.6f}",
        "score": f"{score:.4f}",
        "interval": "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}",
        "bar": interval_bar(score, interval, low) if math.isfinite(score) else "",
    }


def _brief(failure: Failure) -> dict[str, Any]:
    def documents(some: Sequence[Judged]) -> list[dict[str, Any]]:
        return [{**asdict(one), "text": cut(one.text, SHORT)} for one in some[:FEW]]

    return {
        "text": cut(failure.text, SHORT),
        "value": failure.value,
        "expected": documents(failure.expected),
        "found": documents(failure.found),
    }


class _Pair:
    """What a page says of a pair that `furthest_off` named."""

    def __init__(self, report: Report) -> None:
        self.texts = report.texts

    def __call__(self, pair: tuple[str, float, float, float, float]) -> dict[str, Any]:
        unit, truth, score, truth_below, score_below = pair
        sides = [cut(side, SHORT) for side in self.texts.get(unit, unit).split(" | ", 1)]
        return {
            "sides": sides,
            "truth": f"{truth:g}",
            "score": f"{score:.3f}",
            "gap": f"judged {truth:g}, cosine {score:.3f}",
            "truth_below": f"{truth_below:.0%}",
            "score_below": f"{score_below:.0%}",
        }


def _within(some: Iterable[dict[str, Any]], room: int) -> list[dict[str, Any]]:
    """The first of these whose texts fit in so many bytes; one at least."""
    kept: list[dict[str, Any]] = []
    for one in some:
        room -= len(json.dumps(one, ensure_ascii=False).encode(errors="surrogatepass"))
        if room < 0 and kept:
            break
        kept.append(one)
    return kept


# --- cost -------------------------------------------------------------------------------------------------------------------


def cost_table(reports: Mapping[str, Report]) -> dict[str, Any]:
    """names: of the columns; rows: (task, cells of (value, what is shown))."""
    known = {name for report in reports.values() for name in report.cost}
    names = [*(name for name in COSTS if name in known), *sorted(known - set(COSTS))]
    rows = [
        (name, [(report.cost.get(one, ""), shown_cost(one, report.cost.get(one))) for one in names])
        for name, report in reports.items()
        if report.cost
    ]
    return {"names": names, "rows": rows, "note": NOTE}


NOTE = (
    "Medians of repeated calls on a sample of each task, on the machine named above; what else ran there moves them. p50 and p99 are of "
    "single queries, from their text to what is found, or to their row where nothing is searched. Peak RSS is the process's so far."
)


def shown_cost(name: str, value: float | None) -> str:
    """A figure with three digits that count; bytes in the unit that suits them."""
    if value is None:
        return ""
    if "bytes" in name or name == "peak RSS":
        unit = next(number for number in (3, 2, 1, 0) if value >= 1000**number or number == 0)
        return f"{value / 1000**unit:.3g} {('B', 'kB', 'MB', 'GB')[unit]}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
