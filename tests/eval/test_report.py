"""Reports on disk: what is written for programs and for people, and what is read again."""

from __future__ import annotations

import html
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from embedkit.errors import IntegrityError, UsageError
from embedkit.eval.compare import compare
from embedkit.eval.compare import markdown as compared_markdown
from embedkit.eval.grid_page import grid_markdown
from embedkit.eval.report import as_json, markdown, read_reports, replace_table, write_grid, write_reports
from embedkit.eval.variants import Variant
from embedkit.types import Failure, Judged, Report

REPORT = Report(
    {"map": 0.5},
    {"map": (0.25, 0.75)},
    {"map": {"q": 0.5, "r": 0.5}},
    {"model": "m", "data": {"name": "a", "sha256": {"corpus.jsonl": "1"}}},
    main="map",
    texts={"q": "a question"},
    failures=(Failure("q", "a question", 0.5, (Judged("d", "a text", 1, 2, 0.3),), ()),),
)


def test_reports_are_written_for_programs_and_for_people(tmp_path: Path) -> None:
    report = Report(
        {"map": 0.5},
        {"map": (0.25, 0.75)},
        {"map": {"q": 0.5, "r": 0.5}},
        {"model": "m`x`", "data": {"a": "b" * 700}},
        main="map",
        texts={"q": "a question"},
    )
    bare = Report({"spearman": 0.8}, {}, {}, {}, "spearman", "pair", {"0": (1.0, 0.5)})
    write_reports(tmp_path / "out", {"animals": report, "sts": bare}, {"sts": {"task_name": "sts"}})
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["tasks"]["animals"] == {
        "scores": {"map": 0.5},
        "intervals": {"map": [0.25, 0.75]},
        "units": 2,
        "main": "map",
        "unit": "query",
        "cost": {},
        "context": {"model": "m`x`", "data": {"a": "b" * 700}},
        "per_query": {"map": {"q": 0.5, "r": 0.5}},
        "failures": [],
        "predictions": {},
        "texts": {"q": "a question"},
    }
    assert read_reports(tmp_path / "out") == {"animals": report, "sts": bare}
    assert json.loads((tmp_path / "out" / "sts.json").read_text()) == {"task_name": "sts"}
    text = markdown({"animals": report, "sts": bare})
    assert (tmp_path / "out" / "report.md").read_text() == text + "\n"
    assert "| animals | map | 0.5000 | 0.2500 to 0.7500 | 2 |" in text
    assert "| sts | spearman | 0.8000 |  | 1 |" in text
    assert "- model: m\\`x\\`" in text
    assert max(map(len, text.splitlines())) < 620


def test_a_table_is_replaced_between_its_marks(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("head\n<!-- scores -->\nold\nold\n<!-- /scores -->\ntail\n")
    replace_table(readme, "scores", ["| a |", "| b |"])
    assert readme.read_text() == "head\n<!-- scores -->\n| a |\n| b |\n<!-- /scores -->\ntail\n"
    with pytest.raises(UsageError, match="has no marks <!-- other -->"):
        replace_table(readme, "other", [])


def test_a_folder_without_a_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no report\.json"):
        read_reports(tmp_path)


FACTS: Any = json.loads(json.dumps(as_json(REPORT)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is no report of embedkit"),
        ("[]", "not a mapping"),
        ("{}", "holds no task"),
        ('{"tasks": {}}', "holds no task"),
        ("[" * 50_000, "nested more than 50 levels"),
        ('{"tasks": ' * 60 + "1" + "}" * 60, "nested more than 50 levels"),
        ('{"tasks": 1' + "0" * 5000 + "}", "is no report of embedkit"),
        (b"\xff", "is no report of embedkit"),
        ({}, "tasks.a.scores is missing"),
        ({**FACTS, "per_query": 5}, "tasks.a.per_query is 5, not a mapping"),
        ({**FACTS, "per_query": {"map": {"q": "high"}}}, "tasks.a.per_query.map.q is 'high', not a number"),
        ({**FACTS, "scores": {"map": "0.5"}}, "tasks.a.scores.map is '0.5', not a number"),
        ({**FACTS, "scores": {"map": math.nan}}, "tasks.a.scores.map is nan, not a number"),
        ({**FACTS, "intervals": {"map": [1]}}, r"tasks.a.intervals.map is \[1\], not a list"),
        ({**FACTS, "predictions": {"q": [1, None]}}, "tasks.a.predictions.q.1 is None, not a number"),
        ({**FACTS, "context": {"data": {"sha256": "abc"}}}, "tasks.a.context.data.sha256 is 'abc', not a mapping"),
        ({**FACTS, "texts": ["a"]}, "tasks.a.texts is .*, not a mapping"),
        ({**FACTS, "main": None}, "tasks.a.main is None, not a text"),
        ({**FACTS, "failures": [{"unit": "q"}]}, "tasks.a.failures.0.text is missing"),
    ],
)
def test_a_report_of_somebody_else_is_one_sentence(content: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    text = json.dumps({"tasks": {"a": content}}) if isinstance(content, dict) else content
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(IntegrityError, match=said):
        read_reports(tmp_path)


def test_fields_of_newer_versions_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps({"tasks": {"a": {**FACTS, "newer": [1]}}, "newer": 1}))
    assert read_reports(tmp_path) == {"a": REPORT}


def test_a_score_that_is_no_number_is_null(tmp_path: Path) -> None:
    report = replace(REPORT, scores={"map": math.nan, "ndcg@10": 0.5})
    write_reports(tmp_path, {"a": report}, {"theirs": {"ap": math.nan, "f1": math.inf}})
    for name in ("report", "theirs"):
        content = json.loads((tmp_path / f"{name}.json").read_text(), parse_constant=pytest.fail)
    assert content == {"ap": None, "f1": None}
    scores = read_reports(tmp_path)["a"].scores
    assert math.isnan(scores["map"]) and scores["ndcg@10"] == 0.5
    assert not re.search(r'[xy12]="nan', (tmp_path / "report.html").read_text())


def test_a_task_without_a_number_is_in_no_table_of_variants(tmp_path: Path) -> None:
    """Its place on no axis is known; a warning has named it."""
    none = replace(REPORT, scores={"map": math.nan})
    grid = {Variant(dim=dim): {"good": REPORT, "none": none} for dim in (2, 4)}
    write_grid(tmp_path, grid)
    assert "| variant | mean | good |" in (tmp_path / "report.md").read_text()
    write_grid(tmp_path, {variant: {"none": none} for variant in grid})
    facts = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert facts["variants"]["dim=2"]["tasks"]["none"]["score"] is None


# --- texts of strangers ---------------------------------------------------------------------------------------------------

HOSTILE = "<img src=x onerror=alert(1)> | 9.99 |\n# [a](javascript:b) ![c](d) *e* _f_ `g` \u202eh\x1b[31m\x9b\ud800 ~i~ &lt; \\|"


def hostile(**changes: Any) -> Report:
    values = {HOSTILE: 0.5, "r": 0.25}
    data = {"name": HOSTILE, "sha256": {HOSTILE: HOSTILE}}
    context = {"model": HOSTILE, "data": data, HOSTILE: HOSTILE}
    judged = (Judged(HOSTILE, HOSTILE, 1, 2, 0.3),)
    failures = (Failure(HOSTILE, HOSTILE, 0.5, judged, judged),)
    made = Report({"map": 0.5}, {}, {"map": values}, context, main="map", texts={HOSTILE: HOSTILE}, failures=failures)
    return replace(made, **changes)


@pytest.mark.parametrize("kind", ["report", "grid", "compare"])
def test_markdown_shows_the_texts_of_strangers_and_does_nothing_else(kind: str) -> None:
    other = hostile(per_query={"map": {HOSTILE: 0.25, "r": 0.25}})
    text = {
        "report": lambda: markdown({HOSTILE: hostile()}),
        "grid": lambda: grid_markdown({Variant(): {HOSTILE: hostile()}, Variant(dim=2): {HOSTILE: hostile()}}),
        "compare": lambda: compared_markdown(compare({HOSTILE: hostile()}, {HOSTILE: other})),
    }[kind]()
    renderer = pytest.importorskip("markdown_it")
    rendered = renderer.MarkdownIt("gfm-like", {"linkify": False}).render(text)  # as GitHub shows it
    tags = set(re.findall(r"</?(\w+)[^>]*>", rendered))
    assert tags <= {"h1", "h2", "p", "ul", "li", "code", "table", "thead", "tbody", "tr", "th", "td"}
    rows = [row.count("<td") or row.count("<th>") for row in rendered.split("<tr>")[1:]]
    assert len(set(rows)) == 1, "no cell opens another one"
    assert rendered.count("<h1>") == (0 if kind == "compare" else 1)
    visible = html.unescape(re.sub(r"<[^>]*>", "", rendered))
    assert " ".join(HOSTILE.split()).partition("\u202e")[0] in visible
    assert "\\u202eh\\u001b[31m\\u009b\\ud800" in visible


def test_no_file_holds_a_character_that_steers(tmp_path: Path) -> None:
    """Halves of surrogate pairs have no UTF-8, so that they were a traceback; in JSON the values are the same."""
    write_reports(tmp_path, {HOSTILE: hostile()}, {})
    for name in ("report.md", "report.html", "report.json"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text), name
        assert ("<img" in text) == (name == "report.json"), name
    assert read_reports(tmp_path) == {HOSTILE: hostile()}
