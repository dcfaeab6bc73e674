"""embedkit eval --run: what other systems found, in one table with embedkit's own."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROWS, Run, listing, write_jsonl

QUERIES = {"q1": "red cat", "q2": "blue bird"}
QRELS = {
    "test.tsv": "query-id\tcorpus-id\tscore\nq1\td0\t2\nq1\td4\t1\nq2\td6\t1\nq9\td0\t1\n",
    "judged.trec": "q1 0 d0 2\nq1 0 d4 1\nq2 0 d6 1\n",
}
RUN = "q1 Q0 d4 1 0.9 other\nq1 Q0 d0 2 0.5 other\nq1\tQ0\td1\t3\t0.1\tother\n\nq2 Q0 d6 9 1e-3 other\n"
NDCG = ((1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3)) + 1) / 2


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    write_jsonl(folder / "corpus.jsonl", ROWS)
    write_jsonl(folder / "queries.jsonl", [{"_id": name, "text": text} for name, text in QUERIES.items()])
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text(QRELS["test.tsv"])
    return folder


def report_of(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))["tasks"]


def test_a_run_is_scored_in_the_table_of_the_same_data(run: Run, beir: Path, tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "other.trec").write_text(RUN)
    done = run("eval", "--run", tmp_path / "other.trec", "--qrels", beir / "qrels" / "test.tsv", "-o", tmp_path / "a")
    assert done.code == 0
    assert f"other  ndcg@10     {NDCG:.4f}" in done.out
    assert "1 judged queries are not in queries.jsonl" in done.err
    (task,) = report_of(tmp_path / "a").values()
    assert task["scores"]["ndcg@10"] == pytest.approx(NDCG)
    assert (task["units"], task["texts"], task["context"]["data"]["name"]) == (2, QUERIES, "small")
    assert run("eval", "--data", beir, "--model", tiny_model, "-o", tmp_path / "b").code == 0
    found = run("compare", tmp_path / "a", tmp_path / "b", "--json").facts
    assert [(one["task"], one["units"]) for one in found] == [("small", 2)]
    assert found[0]["one"] == pytest.approx(NDCG)


def test_judgements_of_trec_and_metrics_by_name(run: Run, tmp_path: Path) -> None:
    (tmp_path / "judged.trec").write_text(QRELS["judged.trec"])
    for name in ("one.run", "other.run.gz"):
        text = RUN.encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    options = [
        "--qrels",
        tmp_path / "judged.trec",
        "-o",
        tmp_path / "r",
        "--metrics",
        "precision@2",
        "hit_rate@1",
        "ndcg@10",
    ]
    facts = run("eval", "--run", tmp_path / "one.run", tmp_path / "other.run.gz", *options, "--json").facts["tasks"]
    assert list(facts) == ["one", "other"]
    expected = {"precision@2": 3 / 4, "hit_rate@1": 1.0, "ndcg@10": NDCG}
    assert facts["one"]["scores"] == facts["other"]["scores"] == pytest.approx(expected)
    assert {"one/report.json", "other/report.md"} <= listing(tmp_path / "r")
    assert report_of(tmp_path / "r" / "one")["judged"]["main"] == "precision@2"
    assert "over 2 queries" in run("compare", tmp_path / "r" / "one", tmp_path / "r" / "other").out


def test_a_run_follows_the_folders_task_file(run: Run, beir: Path, tmp_path: Path) -> None:
    """The query's own document is left out, the metric that counts comes first, and the task has the name that it gives itself."""
    (beir / "task.yaml").write_text("name: ours\nmetric: mrr@10\nignore_identical_ids: true\nlicence: none")
    (tmp_path / "own.trec").write_text(RUN + "q1 Q0 q1 1 9 x\n")
    assert (
        run("eval", "--run", tmp_path / "own.trec", "--qrels", beir / "qrels" / "test.tsv", "-o", tmp_path / "r").code
        == 0
    )
    task = report_of(tmp_path / "r")["ours"]
    assert (task["main"], task["scores"]["mrr@10"]) == ("mrr@10", 1.0)
    assert task["scores"]["ndcg@10"] == pytest.approx(NDCG)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("q1 Q0 d4 1 0.9\n", "line 1: 5 columns came; a TREC run has six"),
        (RUN + "q2 Q0 d 4 2 0.1 x\n", "line 6: 7 columns came"),
        (RUN + "q2 Q0 d4 2 nan x\n", "line 6: the score is 'nan'; expected a finite number"),
        (RUN + "q2 Q0 d4 2 -inf x\n", "line 6: the score is '-inf'"),
        (RUN + "q2 Q0 d4 2 high x\n", "line 6: the score is 'high'"),
        (RUN + "q2 Q0 d4 2 1e39 x\n", "line 6: the score is '1e39'; expected a finite number of float32"),
        (RUN + "q2 Q0 d4 2 ٣ x\n", "line 6: the score is '٣'"),
        (RUN + "q2 Q0 d4 0.1 2 x\n", "line 6: the rank is '0.1'; expected a whole number in the fourth column"),
        (RUN + "q2 Q0 d4 first 2 x\n", "line 6: the rank is 'first'"),
        (RUN + "q1 Q0 d0 4 0.05 x\n", "line 6: document 'd0' came before for query 'q1'"),
        ("\n", "is empty; expected a TREC run"),
        ("Q1 Q0 d4 1 0.9 x\n", "No query of"),
    ],
)
def test_a_malformed_run_is_one_sentence(run: Run, beir: Path, tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.trec"
    path.write_text(text)
    sentence = run("eval", "--run", path, "--qrels", beir / "qrels" / "test.tsv", "-o", tmp_path / "r").sentence(3)
    assert str(path) in sentence and said in sentence
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("judged", "trec", "ndcg", "said"),
    [
        ("q1\td1\t1\nq3\td1\t0\n", "q1 Q0 d1 1 9 a\n", 1.0, "1 of 2 judged queries have no relevant document"),
        ("q1\td1\t1\nq3\td1\t1\n", "q1 Q0 d1 1 9 a\n", 0.5, "1 of 2 judged queries are not in it and score 0"),
        ("q1\td1\t1\nq1\td 2\t0\n", "q1 Q0 d1 1 9 a\n", 1.0, "1 judged ids ('d 2') hold white space"),
        # distances: the best has the least
        (
            "q1\td1\t1\n",
            "q1 Q0 d1 1 0.1 a\nq1 Q0 d2 2 0.9 a\n",
            1 / math.log2(3),
            "of 1 of 1 queries the ranks are not",
        ),
        ("q1\td1\t1\n", "q1 Q0 d1 1 9 a\nq1 Q0 d2 1 8 b\n", 1.0, "line 2: a second tag, 'b'"),
        ("q1\td1\t1\n", "q1 Q0 d1 0 9 a\nq1 Q0 d2 0 8 a\n", 1.0, ""),
    ],
)
def test_what_moves_a_score_is_said(run: Run, tmp_path: Path, judged: str, trec: str, ndcg: float, said: str) -> None:
    (tmp_path / "judged.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    (tmp_path / "r.trec").write_text(trec)
    options = ["--qrels", tmp_path / "judged.tsv", "--metrics", "ndcg@10", "-o", tmp_path / "r", "--json"]
    done = run("eval", "--run", tmp_path / "r.trec", *options)
    assert done.facts["tasks"]["r"]["scores"]["ndcg@10"] == pytest.approx(ndcg)
    assert [said in line for line in done.remarks] == ([True] if said else [])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--run", "a.trec"], "--run FILE goes with --qrels FILE"),
        (["--qrels", "a.tsv"], "--run FILE goes with --qrels FILE"),
        (["--run", "a.trec", "--qrels", "a.tsv", "--data", "x"], "with no --data"),
        (["--run", "a.trec", "--qrels", "a.tsv"], "a.tsv is not there"),
        (["--run", "a.trec", "b/a.trec", "--qrels", "a.tsv"], "Two runs have one name"),
        (["--run", "a.trec", "--qrels", "judged.trec"], "a.trec is not there"),
        (["--run", "a.trec", "--qrels", "judged.trec", "--metrics", "ndcg"], "a.trec is not there"),
        (["--run", "a.trec", "--qrels", "judged.trec", "--metrics", "best@3"], "no metric 'best@3'"),
        (["--data", "small", "--metrics", "best@3"], "no metric 'best@3'"),
    ],
)
def test_wrong_uses_are_one_sentence(
    run: Run, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("judged.trec").write_text(QRELS["judged.trec"])
    done = run("eval", *options)
    assert done.code == 2 and said in " ".join(done.err.split())
    assert not Path("results").exists()
