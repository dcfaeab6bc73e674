"""`index build --sparse`, `search --mode` and `index tune`, as a person uses them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from ..conftest import bent_rows
from .conftest import ROWS, Run


@pytest.fixture
def terms(run: Run, tmp_path: Path, corpus: Path, tiny_model: Path) -> Path:
    path = tmp_path / "terms.index"
    assert run("index", "build", corpus, "-o", path, "--model", tiny_model, "--sparse", "bm25", "-q").code == 0
    return path


def test_a_question_by_terms_says_which_carried_each_hit(run: Run, terms: Path) -> None:
    done = run("search", terms, "swimming fish", "--mode", "sparse", "--explain")
    assert done.code == 0
    lines = done.out.splitlines()
    assert [line.split()[2] for line in lines if line[:3].strip().isdigit()] == ["d2", "d1", "d4"]
    assert "rank 1" in lines[1] and "swim" in lines[1] and "fish" in lines[1]


def test_both_legs_are_explained(run: Run, terms: Path) -> None:
    done = run("search", terms, "fish", "--mode", "hybrid", "--explain", "--json", "-k", "2", "--weight", "0.25")
    hits = done.facts["hits"]
    assert len(hits) == 2
    for hit in hits:
        assert {"fine", "coarse", "sparse", "segment"} == set(hit["explanation"])


def test_a_run_by_terms_is_written(run: Run, terms: Path, tmp_path: Path) -> None:
    queries = tmp_path / "q.jsonl"
    queries.write_text('{"_id": "q1", "text": "fish"}\n{"_id": "q2", "text": "unknownword"}')
    assert run("search", terms, "--queries", queries, "--mode", "sparse", "-o", tmp_path / "run.trec").code == 0
    lines = (tmp_path / "run.trec").read_text().splitlines()
    assert [line.split()[:3] for line in lines] == [["q1", "Q0", "d4"], ["q1", "Q0", "d2"]]  # a tie


def test_weights_of_documents_and_queries_come_from_files(
    run: Run, tmp_path: Path, corpus: Path, tiny_model: Path
) -> None:
    weights, asked, queries = (tmp_path / name for name in ("w.jsonl", "a.jsonl", "q.jsonl"))
    weights.write_text("\n".join(json.dumps({"id": row["_id"], "weights": {row["_id"]: 2}}) for row in ROWS))
    asked.write_text('{"id": "q", "weights": {"d3": 1.5, "d1": 1}}')
    queries.write_text('{"_id": "q", "text": "cat"}')
    path = tmp_path / "x"
    assert run("index", "build", corpus, "-o", path, "--model", tiny_model, "--sparse", weights, "-q").code == 0
    done = run("search", path, "--queries", queries, "--mode", "sparse", "--sparse-queries", asked)
    assert [line.split()[2:5:2] for line in done.out.splitlines()] == [["d3", "3"], ["d1", "2"]]
    more = tmp_path / "more.jsonl"
    more.write_text('{"_id": "new", "text": "cat"}')
    assert "give the weights of these documents" in run("index", "add", path, more).sentence(2)
    weights.write_text('{"id": "new", "weights": {"d3": 9}}')
    assert run("index", "add", path, more, "--sparse", weights).code == 0
    done = run("search", path, "--queries", queries, "--mode", "hybrid", "--sparse-queries", asked, "-k", "8")
    assert "new" in done.out
    asked.write_text('{"id": "other", "weights": {}}')
    words = ["search", path, "--queries", queries, "--mode", "sparse", "--sparse-queries", asked]
    assert "has no weights of the query 'q'" in run(*words).sentence(3)


def test_tune_stores_a_weight_and_says_what_it_is_worth(run: Run, terms: Path, tmp_path: Path) -> None:
    queries, qrels = tmp_path / "q.jsonl", tmp_path / "qrels.tsv"
    names = [f"q{n}" for n in range(21)]
    queries.write_text("\n".join(json.dumps({"_id": name, "text": "fish"}) for name in names))
    qrels.write_text("query-id\tcorpus-id\tscore\n" + "\n".join(f"{name}\td2\t1" for name in names))
    words = ["index", "tune", terms, "--fusion", "--queries", queries, "--qrels", qrels]
    facts = run(*words, "--json").facts
    assert facts["version"] == 2 and facts["queries"] == 21 and facts["pays"] is False
    stored = run("index", "info", terms, "--json").facts["sparse"]
    assert (stored["fusion"], stored["weight"]) == (facts["method"], facts["weight"])
    assert "Fusion does not pay here" in run(*words).out
    qrels.write_text("query-id\tcorpus-id\tscore\nq1\td2\t1")
    assert "1 queries have a relevant document; expected at least 20" in run(*words).sentence(3)


def test_tune_stores_settings_and_says_what_they_are_worth(run: Run, tmp_path: Path) -> None:
    rows, queries, path = tmp_path / "rows.npy", tmp_path / "queries.npy", tmp_path / "x"
    np.save(rows, bent_rows(2000))
    np.save(queries, bent_rows(120, seed=1))
    assert run("index", "build", rows, "-o", path, "--coarse", "IVF16,SQ8", "-q").code == 0
    words = ["index", "tune", path, "--queries", queries]
    done = run(*words, "--recall", "0.9", "-o", tmp_path / "front.png")
    assert done.code == 0 and "<- chosen" in done.out and "Version 2 of" in done.out.splitlines()[-1]
    picture = (tmp_path / "front.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and int.from_bytes(picture[16:20], "big") == 1050
    facts = run(*words, "--recall", "0.8", "-k", "5", "--json").facts
    assert facts["version"] == 3 and facts["k"] == 5 and facts["chosen"]["interval"][1] >= 0.8
    (stored,) = run("index", "info", path, "--json").facts["segments"]
    assert {name: stored[name] for name in ("probes", "shortlist")} == facts["chosen"]["ways"][0]
    assert "120 different queries came; a recall of 0.99 needs at least 598" in run(
        *words, "--recall", "0.99"
    ).sentence(3)


def test_an_impossible_goal_exits_6_with_the_frontier(run: Run, tmp_path: Path) -> None:
    rows, queries, path = tmp_path / "rows.npy", tmp_path / "queries.npy", tmp_path / "x"
    generator = np.random.default_rng(0)
    np.save(rows, generator.standard_normal((2500, 16)).astype(np.float32))
    np.save(queries, generator.standard_normal((120, 16)).astype(np.float32))
    assert run("index", "build", rows, "-o", path, "--coarse", "PQ1x4fs", "-q").code == 0
    words = ["index", "tune", path, "--queries", queries, "--recall", "0.95"]
    done = run(*words)
    assert done.code == 6 and "A recall of 0.95 is infeasible here: at best" in done.err
    assert len(done.out.splitlines()) > 3 and "<- chosen" not in done.out
    done = run(*words, "--json")
    assert (done.code, done.facts["feasible"], done.facts["chosen"], done.facts["version"]) == (6, False, None, 1)


def test_pictures_need_matplotlib_before_anything_is_measured(
    run: Run, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    words = ["index", "tune", index, "--queries", "x", "--recall", "0.9", "-o", tmp_path / "x.png"]
    assert 'pip install -e ".[plots]"' in run(*words).sentence(2)


def test_wrong_uses_are_one_sentence(
    run: Run, terms: Path, index: Path, corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    def error(*words: object) -> str:
        done = run(*words)
        assert done.code == 2
        return done.err

    assert "has no sparse leg; build it with --sparse" in error("search", index, "cat", "--mode", "sparse")
    assert "--fusion and --weight belong to --mode hybrid" in error("search", terms, "cat", "--weight", "0.5")
    assert "--sparse-queries belongs to" in error("search", terms, "cat", "--mode", "sparse", "--sparse-queries", "x")
    assert "ranks documents" in error("search", terms, "cat", "--mode", "sparse", "--group", "none")
    assert "Give --recall SHARE or --fusion" in error("index", "tune", terms, "--queries", "x", "--qrels", "y")
    fusion, recall = (["index", "tune", terms, "--queries", "x", *kind] for kind in (["--fusion"], ["--recall", "0.9"]))
    assert "Give --qrels FILE" in error(*fusion)
    assert "-k belongs to --recall" in error(*fusion, "--qrels", "y", "-k", "5")
    assert "--bytes-per-vector belongs to --recall" in error(*fusion, "--qrels", "y", "--bytes-per-vector", "24")
    assert "--qrels belongs to --fusion" in error(*recall, "--qrels", "y")
    build = ["index", "build", corpus, "-o", tmp_path / "y", "--model", tiny_model]
    assert "bm25:k1=1.2" in error(*build, "--sparse", "bm25:k=1")
