"""embedkit demo, on the documentation of a package made for it and with a tiny model."""

from __future__ import annotations

import functools
import itertools
import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from embedkit.cli import demo

from .conftest import Run, listing

WORDS = ("cat", "dog", "fish", "bird", "red", "blue", "one", "two", "run", "swim")
FUNCTIONS, HELD_OUT = 40, 8


def documented(number: int, words: tuple[str, ...]) -> str:
    """A function whose first sentence is its own, and which says enough after it."""
    text = " ".join(words)
    return f'def f{number}(x):\n    """{text}. {" ".join(words[::-1] * 5)}\n\n    >>> f{number}(1)\n    """\n\n'


@pytest.fixture(autouse=True)
def small(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo in an empty folder: one package, the tiny model, and numbers that fit them."""
    import embedkit.encoders
    import embedkit.jobs  # which has taken the real `load` then, before the demo's is replaced
    from embedkit.corpus import docstrings

    package = tmp_path / "site" / "zoo"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('the demo imports nothing that it documents')")
    ordered = itertools.islice(itertools.permutations(WORDS, 5), 0, None, 701)
    (package / "animals.py").write_text(
        "".join(documented(n, w) for n, w in zip(range(FUNCTIONS), ordered, strict=False))
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    only_zoo = functools.partial(docstrings.installed_definitions, packages=("zoo", "not_installed"))
    monkeypatch.setattr(docstrings, "installed_definitions", only_zoo)
    load = embedkit.encoders.load
    monkeypatch.setattr(embedkit.encoders, "load", lambda model=None, **options: load(model or tiny_model, **options))
    monkeypatch.setattr(demo, "HELD_OUT", HELD_OUT)
    monkeypatch.setattr(demo, "DIMS_A_CODE", 2)
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


def test_the_demo_answers_measures_and_says_how_to_go_on(run: Run, small: Path, tiny_model: Path) -> None:
    done = run("demo")
    assert done.code == 0, done
    assert all(f"\n{question}?\n" in done.out for question in demo.QUESTIONS)
    assert done.out.count("zoo.animals.f") == 3 * len(demo.QUESTIONS)
    assert f"{HELD_OUT} first sentences, each to find its docstring among {FUNCTIONS}" in done.out
    head, exact, fine = done.out.partition("Known-item")[2].splitlines()[2:5]
    assert [word for word in ("nDCG@10", "queries/s", "p50 ms", "p99 ms", "RAM", "disk") if word not in head] == []
    assert [line.split()[0] for line in (exact, fine)] == ["exact", "bi-granular"]
    assert all(0 <= float(line.split()[1]) <= 1 for line in (exact, fine))
    assert "Traceback" not in done.err
    assert listing(small) >= {"demo.index", "demo.index/segment-0001.codes.faiss"}
    last = done.out.rstrip().splitlines()[-1].partition("Go on searching:")[2]
    words = shlex.split(last)
    assert words[:2] == ["embedkit", "search"]
    found = run(*words[1:])
    assert found.code == 0, found
    assert "zoo.animals.f" in found.out


def test_the_demo_replaces_its_own_index_and_nothing_else(run: Run, small: Path) -> None:
    (small / "mine.txt").write_text("mine")
    assert run("demo", "-q").code == 0
    manifest = small / "demo.index" / "manifest-000001.json"
    os.utime(manifest, (0, 0))
    done = run("demo", "-q")
    assert (done.code, done.err) == (0, "")
    assert manifest.stat().st_mtime > 0
    assert (small / "mine.txt").read_text() == "mine"
    assert {name for name in listing(small) if "/" not in name} == {"demo.index", "mine.txt"}


@pytest.mark.parametrize(
    "content", [{}, {"thesis.txt": "ten years of work"}, {"manifest.json": "{}"}, {"manifest-000001.json": "{}"}]
)
def test_the_demo_does_not_remove_a_folder_that_is_no_index(run: Run, small: Path, content: dict[str, str]) -> None:
    (small / "demo.index").mkdir()
    for name, text in content.items():
        (small / "demo.index" / name).write_text(text)
    sentence = run("demo").sentence(5 if "manifest-000001.json" in content else 2)
    assert "demo.index" in sentence
    assert {path.name: path.read_text() for path in (small / "demo.index").iterdir()} == content


def test_a_folder_that_is_named_is_not_replaced(run: Run, small: Path) -> None:
    assert run("demo", "-q", "-o", "here.index").code == 0
    assert "here.index is there already" in run("demo", "-o", "here.index").sentence(2)
    assert {name for name in listing(small) if "/" not in name} == {"here.index"}


def test_json_gives_the_measurements_alone(run: Run) -> None:
    done = run("demo", "--json")
    assert set(done.facts) == {"exact", "bi-granular"}
    rows, in_ram = FUNCTIONS * 32 * 2, done.facts["exact"]["bytes_in_ram"]  # of float16
    assert rows < in_ram < rows + 40 * FUNCTIONS  # and the ids
    assert all(facts["ndcg"] >= 0 and len(facts["interval"]) == 2 for facts in done.facts.values())
    assert "Reading" not in done.err


def test_held_out_docstrings_do_not_hold_their_question(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """The first sentence is taken out of the document that it should find; otherwise the task would be no task."""
    from embedkit.eval import serving

    seen: list[tuple[Any, Any]] = []
    measure = serving.measure

    def spy(index: Any, queries: Any, answers: Any) -> Any:
        ids = [next(iter(relevant)) for relevant in answers]
        seen.append(([document.text for document in index.get(ids)], ids))
        return measure(index, queries, answers)

    monkeypatch.setattr(serving, "measure", spy)
    assert run("demo", "-q").code == 0
    assert len(seen) == 2
    for texts, answers in seen:
        assert len(set(answers)) == HELD_OUT
        assert all("." not in text.partition(")")[2] for text in texts)  # only the first sentence ends in a full stop


def test_a_machine_with_less_to_hold_out_says_how_many(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "HELD_OUT", 1000)
    assert f"{FUNCTIONS} first sentences" in run("demo", "-q").out
