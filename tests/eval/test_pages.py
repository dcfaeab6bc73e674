"""The pages: what stands in them, and, where Chromium is, how they look and behave in it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from embedkit.eval.compare import compare
from embedkit.eval.compare_page import compare_page, difference_picture
from embedkit.eval.grid_page import grid_page
from embedkit.eval.pages import ROOM, report_page, shown_cost
from embedkit.eval.plots import Line, Point, alone, histogram, interval_bar, lines, scatter
from embedkit.eval.variants import grid
from embedkit.types import Failure, Judged, Report

HOSTILE = "</script><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">"
ARABIC, CHINESE = "ما هي عاصمة فرنسا؟", "法国的首都是哪里？"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


def retrieval(name: str, score: float, texts: tuple[str, ...] = ("a question",), failures: int = 6) -> Report:
    found = tuple(
        Failure(
            f"q{n}",
            f"{texts[n % len(texts)]} number {n}",
            0.1 * n,
            (Judged("right", f"{texts[0]} answered", 2, 37, 0.31),),
            (Judged("wrong", f"{texts[-1]} missed", None, 1, 0.52),),
        )
        for n in range(failures)
    )
    values = {f"q{n}": min(1.0, max(0.0, score + 0.1 * (n % 5 - 2))) for n in range(20)}
    context = {
        "model": "maker/model",
        "fingerprint": "f" * 64,
        "data": {"name": name, "sha256": {"corpus.jsonl": name}},
    }
    return Report(
        {"ndcg@10": score, "recall@100": 0.9},
        {"ndcg@10": (score - 0.1, score + 0.1)},
        {"ndcg@10": values},
        {**context, "machine": {"cpu": "a CPU", "cores": 2}},
        texts={query: f"text of {query} {HOSTILE}" for query in values},
        cost={"p50 ms": 10 * score, "bytes per row": 1536.0},
        failures=found,
    )


STS = Report(
    {"spearman": -0.2},
    {"spearman": (-0.4, 0.1)},
    {},
    {"model": "maker/model", "data": {"name": "sts"}},
    "spearman",
    "pair",
    {str(n): (float(n), float(-n)) for n in range(9)},
    {str(n): f"left {n} {HOSTILE} | right {n}" for n in range(9)},
)
REPORTS = {
    "scifact": retrieval("scifact", 0.65),
    f"hostile {HOSTILE}": retrieval("hostile", 0.3, (HOSTILE,)),
    "arabic": retrieval("arabic", 0.1, (ARABIC, CHINESE)),
    "sts": STS,
}


class Parts(HTMLParser):
    """Tags, ids, links and balance of a page."""

    VOID = ("meta", "link", "input", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attributes if name == "id"]
        self.links += [value or "" for name, value in attributes if name in ("href", "src")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def pages() -> dict[str, str]:
    variants = grid([32, 128], [3, 6], ["float32", "int8"])
    several = {one: {"task": retrieval("t", 0.1 * n + 0.1), "sts": STS} for n, one in enumerate(variants)}
    other = {name: replace(report, per_query=moved(report)) for name, report in REPORTS.items()}
    return {
        "report": report_page(REPORTS, f"embedkit eval --data '{HOSTILE}'"),
        "grid": grid_page(several, "embedkit eval --dims 32,128"),
        "compare": compare_page(compare(REPORTS, other), "one", HOSTILE),
    }


def moved(report: Report) -> dict[str, dict[str, float]]:
    return {name: {q: v / 2 if v > 0.5 else v for q, v in some.items()} for name, some in report.per_query.items()}


PAGES = pages()
every_page = pytest.mark.parametrize("name", PAGES)


@every_page
def test_a_page_is_whole_escapes_its_texts_and_names_no_address(name: str) -> None:
    page = PAGES[name]
    parts = Parts(page)
    assert parts.tags.count("script") == 1
    assert "img" not in parts.tags
    assert len(set(parts.ids)) == len(parts.ids)
    anchors = {link[1:] for link in parts.links if link.startswith("#")}
    assert anchors <= set(parts.ids)
    others = [link for link in parts.links if not link.startswith(("#", "data:"))]
    assert all(re.fullmatch(r"dim%3D\d+%2Clayers%3D\d(%2Cint8)?/report\.html", link) for link in others), others
    assert "&lt;script&gt;" in page or name == "grid"


def test_the_report_says_scores_intervals_costs_texts_and_what_made_them() -> None:
    page = PAGES["report"]
    for shown in (
        "0.6500",
        "0.5500 to 0.7500",
        "6.5",
        "1.54 kB",
        "rank 37",
        "relevant, grade 2",
        "not judged",
        ARABIC,
        CHINESE,
    ):
        assert shown in page, shown
    assert "left 8" in page and "judged 8, cosine -8.000" in page
    assert "data.sha256.corpus.jsonl" in page and "a CPU" in page
    assert "embedkit eval --data &#39;&lt;/script&gt;" in page


def test_fifty_tasks_with_long_texts_stay_under_two_megabytes() -> None:
    long = retrieval("long", 0.5, ("長い文" * 300,), failures=25)
    failures = tuple(
        replace(one, expected=one.expected * 5, found=one.found * 5, text=one.text[:400]) for one in long.failures
    )
    page = report_page({f"task {n}": replace(long, failures=failures) for n in range(50)})
    assert ROOM / 2 < len(page.encode()) < 2_000_000
    assert page.count('class="failure"') >= 50


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("p50 ms", 12.345, "12.3"),
        ("tokens/s", 12345.6, "12,346"),
        ("bytes on disk", 1_540_000, "1.54 MB"),
        ("bytes per row", 48, "48 B"),
        ("peak RSS", 2.5e9, "2.5 GB"),
        ("p50 ms", None, ""),
    ],
)
def test_figures_are_short(name: str, value: float | None, shown: str) -> None:
    assert shown_cost(name, value) == shown


def test_pictures_place_marks_by_value() -> None:
    assert 'cx="90"' in interval_bar(0.5, (0.25, 0.75))  # the middle of 180
    assert 'x1="47" x2="133"' in interval_bar(0.5, (0.25, 0.75))
    bars = re.findall(r"<title>(\S+) to \S+ (\d+)</title>", histogram([0.0, 0.04, 0.51, 1.0], "said"))
    assert [(low, count) for low, count in bars if count != "0"] == [("0.00", "2"), ("0.50", "1"), ("0.95", "1")]
    points = [Point(10, 0.5, HOSTILE), Point(100, 0.7, "b", front=False), Point(1000, 0.6, "c", 0.5, 0.7)]
    for picture in (scatter(points, "x", "y", "said"), lines([Line("one", points)], "x", "y", HOSTILE)):
        centres = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', picture)]
        assert centres[1] - centres[0] == pytest.approx(centres[2] - centres[1], abs=0.2)  # logarithmic
        assert "<script" not in picture
    assert "hollow" in scatter(points, "x", "y", "said")


def test_a_picture_alone_is_xml_with_its_styles() -> None:
    import xml.etree.ElementTree as tree

    root = tree.fromstring(alone(difference_picture(compare(REPORTS, REPORTS))))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(root.findall(".//{http://www.w3.org/2000/svg}style")) == 1


# --- in Chromium --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not here (extra 'dev')")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("Chromium and its driver are not here (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The browser with a page; afterwards nothing is in its console and nothing was asked for but the page."""
    path = tmp_path / "page.html"
    path.write_text(PAGES[request.param], encoding="utf-8")
    browser.get("about:blank")  # and not the browser's own page, which loads its parts
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(path.as_uri())
    yield browser
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"}
    assert {url.partition("#")[0] for url in asked} <= {path.as_uri(), "data:,"}
    assert browser.get_log("browser") == []
    assert browser.title != "broken"


def on_page(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("opened", [name], indirect=True)


def column(browser: Any, number: int) -> list[str]:
    rows = browser.execute_script(
        "return [...document.querySelector('#score-table').tBodies[0].rows].map(r => r.innerText)"
    )
    return [row.split("\t")[number].strip() for row in rows]


@on_page("report")
def test_a_column_sorts_both_ways_by_mouse_and_by_key(opened: Any) -> None:
    button = opened.find_elements("css selector", "#score-table thead button")[2]
    button.click()
    assert column(opened, 2) == ["0.6500", "0.3000", "0.1000", "-0.2000"]
    button.send_keys("\ue007")
    assert column(opened, 2) == ["-0.2000", "0.1000", "0.3000", "0.6500"]
    heads = opened.find_elements("css selector", "#score-table th[aria-sort]")
    assert [head.get_attribute("aria-sort") for head in heads] == ["ascending"]


@on_page("report")
def test_the_filter_leaves_what_has_the_word(opened: Any) -> None:
    def visible(selector: str) -> int:
        return sum(one.is_displayed() for one in opened.find_elements("css selector", selector))

    box = opened.find_element("id", "filter")
    opened.find_element("tag name", "body").send_keys("/")
    assert opened.switch_to.active_element == box
    box.send_keys("scifact")
    assert (visible("section.task"), visible("#score-table tbody tr")) == (1, 1)
    assert opened.find_element("id", "said").text == "1 of 4 tasks"
    box.clear()
    box.send_keys(CHINESE[:3])
    assert (visible("section.task"), visible(".failure")) == (1, 6)  # each has it, in its question or in what was found
    box.send_keys("zzz")
    assert visible("section.task") == 0
    assert opened.find_element("id", "nothing").is_displayed()
    box.send_keys("\ue00c")  # Escape
    assert visible("section.task") == 4


@on_page("report")
def test_details_open_one_by_one_and_together(opened: Any) -> None:
    closed = opened.find_elements("css selector", "details.failure:not([open])")
    closed[0].find_element("css selector", "summary").click()
    assert closed[0].get_attribute("open") is not None
    assert closed[0].find_element("css selector", ".inside").is_displayed()
    opened.find_element("id", "open-all").click()
    assert opened.find_elements("css selector", "details:not([open])") == []
    opened.find_element("id", "open-all").click()
    assert opened.find_elements("css selector", "details[open]") == []


@pytest.mark.parametrize("opened", list(PAGES), indirect=True)
def test_every_anchor_leads_somewhere_and_nothing_is_wider_than_a_phone(opened: Any) -> None:
    links = opened.find_elements("css selector", "nav a, #score-table a[href^='#']")
    assert len(links) >= 2
    for link in links:
        target = link.get_attribute("href").partition("#")[2]
        opened.execute_script("arguments[0].click()", link)
        top = opened.execute_script("return document.getElementById(arguments[0]).getBoundingClientRect().top", target)
        assert 0 <= top < 1000, target
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wide = opened.execute_script("return document.documentElement.scrollWidth")
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert wide <= 390


@pytest.mark.parametrize("opened", list(PAGES), indirect=True)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_in_light_and_in_dark(opened: Any, scheme: str) -> None:
    """At least 4.5 to 1, as WCAG 2.2 asks for."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    ask = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    paper = luminance(opened.execute_script(ask, "body", "backgroundColor"))
    assert paper > 0.9 if scheme == "light" else paper < 0.05
    for selector, attribute in (("body", "color"), (".note", "color"), ("nav a", "color"), ("svg text, h2", "color")):
        ink = luminance(opened.execute_script(ask, selector, attribute))
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5, selector
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def luminance(colour: str) -> float:
    """Of "rgb(1, 2, 3)", relative, by WCAG."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@on_page("report")
def test_right_to_left_texts_run_so(opened: Any) -> None:
    ask = "return [...document.querySelectorAll('.what')].filter(e => e.textContent.includes(arguments[0]))"
    (first, *_) = opened.execute_script(ask, ARABIC[:5])
    assert opened.execute_script("return getComputedStyle(arguments[0]).direction", first) == "rtl"


@on_page("report")
def test_all_is_there_without_the_script(opened: Any) -> None:
    opened.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    opened.refresh()
    opened.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert not opened.find_element("id", "filter").is_displayed()
    assert len(opened.find_elements("css selector", "section.task")) == 4
    opened.find_elements("css selector", "details.failure:not([open]) summary")[0].click()
