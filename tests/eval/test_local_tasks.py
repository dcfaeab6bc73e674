"""Files and folders as tasks: what they are told to be, and scores against plain computations over the same rows."""

from __future__ import annotations

import gzip
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.linear_model
import sklearn.metrics

import embedkit
from embedkit.errors import DataError, UsageError
from embedkit.eval.local_tasks import read_local
from embedkit.eval.mteb_model import MtebModel
from embedkit.eval.mteb_tasks import evaluate_mteb
from embedkit.eval.run import Plan, evaluate_cuts, metric_names, run

pytestmark = pytest.mark.filterwarnings("ignore:To copy construct")  # mteb's, of what torch models give it
WORDS = ["cat", "dog", "fish", "bird", "red", "blue", "run", "swim", "one", "two"]
DRAW = random.Random(0)


def texts(count: int) -> list[str]:
    return [" ".join(DRAW.choices(WORDS, k=3)) for _ in range(count)]


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if ".jsonl" in path.name:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        text = "".join(
            "\t".join(map(str, row)) + "\n" for row in [list(rows[0]), *(list(row.values()) for row in rows)]
        )
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def pairs(count: int, **columns: Callable[[int], Any]) -> list[dict[str, Any]]:
    return [
        {"sentence1": one, "sentence2": other, **{name: make(n) for name, make in columns.items()}}
        for n, (one, other) in enumerate(zip(texts(count), texts(count), strict=True))
    ]


def labelled(count: int, split: Callable[[int], str]) -> list[dict[str, Any]]:
    return [
        {"text": f"{WORDS[n % 2]} {text}", "label": WORDS[n % 2], "split": split(n)}
        for n, text in enumerate(texts(count))
    ]


def reranked(count: int) -> list[dict[str, Any]]:
    return [{"query": text, "positive": texts(n % 3), "negative": texts(2)} for n, text in enumerate(texts(count))]


FILES = {
    "sts": ("data.tsv.gz", pairs(20, score=lambda n: n % 6, split=lambda n: "test" if n % 2 else "dev"), 10),
    "pair-classification": ("data.jsonl", pairs(20, label=lambda n: n % 2), 20),
    "bitext": ("data.jsonl.gz", pairs(8), 8),
    "classification": ("data.jsonl", labelled(60, lambda n: "train" if n % 3 else "test"), 20),
    "clustering": ("data.jsonl", labelled(20, lambda n: "all"), 20),
    "reranking": ("test.jsonl", reranked(9), 9),
}


@pytest.mark.parametrize("kind", FILES)
def test_columns_tell_the_type(kind: str, tmp_path: Path) -> None:
    name, rows, count = FILES[kind]
    file = table(tmp_path / "mine" / name, rows)
    for path in (tmp_path / "mine", file):
        (task,) = read_local(path)
        assert (task.type, len(task.rows), task.data["split"]) == (kind, count, "test")
        assert task.name == ("mine" if path.is_dir() else name.split(".")[0])
        assert list(task.data["sha256"]) == [name]


def test_a_type_may_be_asked_for(tmp_path: Path) -> None:
    table(tmp_path / "data.jsonl", FILES["classification"][1])
    assert read_local(tmp_path, "test", "clustering")[0].type == "clustering"
    with pytest.raises(
        UsageError, match=r"has the columns label, split, text; sts needs score, sentence1, sentence2\."
    ):
        read_local(tmp_path, "test", "sts")
    with pytest.raises(UsageError, match="type='poetry' came; expected reranking, sts"):
        read_local(tmp_path, "test", "poetry")


def test_all_joins_the_splits(tmp_path: Path) -> None:
    table(tmp_path / "data.tsv", FILES["sts"][1])
    assert [len(read_local(tmp_path, split)[0].rows) for split in ("test", "dev", "all")] == [10, 10, 20]
    with pytest.raises(UsageError, match=r"has no split 'train'; it has dev, test: choose with --split, or all\."):
        read_local(tmp_path, "train")


def test_languages_are_tasks_of_their_own(tmp_path: Path) -> None:
    rows = pairs(9, lang=lambda n: ("deu", "fra", "ita")[n % 3])
    tasks = read_local(table(tmp_path / "many" / "data.jsonl", rows).parent)
    assert [(task.name, len(task.rows)) for task in tasks] == [("many/deu", 3), ("many/fra", 3), ("many/ita", 3)]


LABELLED = [
    {"text": f"{split} {label}", "label": label, "split": split} for split in ("train", "test") for label in "xy"
]
BAD = {
    "nothing": ("data.jsonl", [], "holds no rows"),
    "other columns": ("data.jsonl", [{"a": 1}], "has the columns a, which no task has"),
    "no number": ("data.tsv", pairs(3, score=lambda n: "high"), "line 2: score is 'high'; expected a finite number"),
    "constant": ("data.tsv", pairs(3, score=lambda n: 2), "all scores are the same"),
    "three labels": ("data.tsv", pairs(3, label=lambda n: n), "line 4: label is '2'; expected 0 or 1"),
    "one class of pairs": ("data.tsv", pairs(3, label=lambda n: 1), "all labels are 1, expected 0 and 1"),
    "a share for a label": ("data.jsonl", pairs(3, label=lambda n: 0.9), "line 1: label is 0.9; expected 0 or 1"),
    "NaN": ("data.jsonl", pairs(3, score=lambda n: float("nan")), "line 1: score is nan; expected a finite number"),
    "infinite": (
        "data.tsv",
        pairs(3, score=lambda n: "inf" if n == 2 else n),
        "line 4: score is 'inf'; expected a finite",
    ),
    "too large": ("data.jsonl", pairs(3, score=lambda n: n * 10**9), "line 2: score is 1000000000; expected a finite"),
    "null label": ("data.jsonl", [*LABELLED, {"text": "a", "label": None, "split": "train"}], "line 5: label is None"),
    "NaN label": (
        "data.jsonl",
        [*LABELLED, {"text": "a", "label": float("nan"), "split": "test"}],
        "line 5: label is nan",
    ),
    "no label": ("data.jsonl", [*LABELLED, {"text": "a", "split": "test"}], "line 5: label is None"),
    "a label of lists": (
        "data.jsonl",
        [*LABELLED, {"text": "a", "label": [1], "split": "test"}],
        r"line 5: label is \[1\]",
    ),
    "no split": ("data.jsonl", [*LABELLED, {"text": "a", "label": "x", "split": None}], "line 5: split is None"),
    "a split in some rows": ("data.jsonl", [{"text": "a", "label": "x"}, *LABELLED], "line 1: split is None"),
    "no language": ("data.jsonl", pairs(3, lang=lambda n: n or None), "line 1: lang is None; expected a text"),
    "one class": (
        "data.jsonl",
        [{**row, "label": "x"} for row in LABELLED],
        "all labels of the split 'train' are the same, there is nothing to tell apart",
    ),
    "unknown label": (
        "data.jsonl",
        [*LABELLED, {"text": "b", "label": "z", "split": "test"}],
        "the labels z are not in the split 'train'",
    ),
    "one label": ("data.jsonl", [{"text": "a", "label": "x"}] * 3, "all labels are the same"),
    "no text": (
        "data.jsonl",
        [{"text": None, "label": "x"}, {"text": "b", "label": "y"}],
        "line 1: text is None; expected a text",
    ),
    "nothing positive": ("test.jsonl", [{"query": "a", "positive": [], "negative": ["b"]}], "no query has something"),
    "half of a character": (
        "data.jsonl",
        [*pairs(2), {"sentence1": "a", "sentence2": "\ud800"}],
        "line 3: sentence2 is",
    ),
    "null in a list": ("test.jsonl", [{"query": "a", "positive": ["b", None], "negative": []}], "positive is None"),
    "no list": (
        "test.jsonl",
        [{"query": "a", "positive": "b", "negative": ["b"]}],
        "line 1: positive is 'b'; expected a list",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_scored_is_said(name: str, tmp_path: Path) -> None:
    file, rows, sentence = BAD[name]
    table(tmp_path / file, rows)
    with pytest.raises((DataError, UsageError), match=sentence):
        read_local(tmp_path)


def test_rows_of_other_splits_are_not_asked_for_labels(tmp_path: Path) -> None:
    """Public test sets hide theirs behind -1 or null."""
    rows = pairs(6, label=lambda n: n % 2 if n < 4 else None, split=lambda n: "dev" if n < 4 else "test")
    (task,) = read_local(table(tmp_path / "data.jsonl", rows), "dev")
    assert [row["label"] for row in task.rows] == [0, 1, 0, 1]
    with pytest.raises(DataError, match="line 5: label is None; expected 0 or 1"):
        read_local(tmp_path / "data.jsonl", "test")


@pytest.mark.parametrize("written", [("1.0", "0.0"), ("1", "0"), (True, False), (1.0, 0)])
def test_labels_of_pairs_are_0_and_1_however_a_table_writes_them(written: tuple[Any, Any], tmp_path: Path) -> None:
    (task,) = read_local(table(tmp_path / "data.jsonl", pairs(4, label=lambda n: written[n % 2])))
    assert [row["label"] for row in task.rows] == [1, 0, 1, 0]
    assert list(task.task.dataset["test"]["labels"]) == [1, 0, 1, 0]


def test_a_split_divides_reranking_as_all_others(tmp_path: Path) -> None:
    rows = [{**row, "split": "test" if n % 2 else "train"} for n, row in enumerate(reranked(9))]
    path = table(tmp_path / "data.jsonl", rows)
    (task,) = read_local(path)
    assert [row["query"] for row in task.rows] == [row["query"] for row in rows if row["split"] == "test"]
    with pytest.raises(UsageError, match="has no split 'validation'; it has test, train"):
        read_local(path, "validation")


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no task; expected corpus\.jsonl \(a BEIR folder\), data\.tsv"):
        read_local(tmp_path)


# --- scores ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> Any:
    return embedkit.load(tiny_model, dtype="float32")


def scored(kind: str, folder: Path, encoder: Any) -> Any:
    name, rows, _ = FILES[kind]
    (task,) = read_local(table(folder / name, rows).parent)
    measured = evaluate_mteb(task.task, MtebModel(encoder))
    (report,) = measured.reports.values()
    assert report.main in report.scores and report.units > 0
    assert set(metric_names(task)) == set(report.scores)  # told before anything is scored
    assert [own.task_name for own in measured.results] == [folder.name]
    return report


def cosines(encoder: Any, rows: list[dict[str, Any]]) -> np.ndarray:
    one, other = (encoder.encode([row[name] for row in rows]) for name in ("sentence1", "sentence2"))
    return (one * other).sum(axis=1)


def test_sts_by_scipy(tmp_path: Path, encoder: Any) -> None:
    report = scored("sts", tmp_path, encoder)
    rows = [row for row in FILES["sts"][1] if row["split"] == "test"]
    expected = scipy.stats.spearmanr([row["score"] for row in rows], cosines(encoder, rows)).statistic
    assert report.scores["spearman"] == pytest.approx(expected, abs=1e-6)
    low, high = report.intervals["spearman"]
    assert low < expected < high
    assert (report.unit, report.units, report.predictions["3"][0]) == ("pair", 10, rows[3]["score"])
    assert report.texts["3"] == f"{rows[3]['sentence1']} | {rows[3]['sentence2']}"


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_a_score_that_is_no_number_is_told(tmp_path: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"sentence1": f"cat {n}", "sentence2": f"cat {n}", "score": n} for n in range(4)]
    tasks = read_local(table(tmp_path / "alike.jsonl", rows))
    (report,) = run(Plan(tasks, tmp_path / "out", {"model": tiny_model, "dtype": "float32"})).reports.values()
    assert math.isnan(report.scores["spearman"])
    assert "alike: spearman, pearson is no number; texts or scores that are all alike have none." in caplog.messages


def test_pairs_by_sklearn(tmp_path: Path, encoder: Any) -> None:
    report = scored("pair-classification", tmp_path, encoder)
    rows = FILES["pair-classification"][1]
    expected = sklearn.metrics.average_precision_score([row["label"] for row in rows], cosines(encoder, rows))
    assert report.scores["ap"] == pytest.approx(expected, abs=1e-6)
    assert report.intervals["ap"][0] <= expected <= report.intervals["ap"][1]


def test_bitext_by_a_loop(tmp_path: Path, encoder: Any) -> None:
    report = scored("bitext", tmp_path, encoder)
    rows = FILES["bitext"][1]
    one, other = (encoder.encode([row[name] for row in rows]) for name in ("sentence1", "sentence2"))
    nearest = [max(range(len(rows)), key=lambda place, row=row: float(row @ other[place])) for row in one]
    assert report.scores["accuracy"] == np.mean([place == n for n, place in enumerate(nearest)])
    assert report.per_query["accuracy"] == {str(n): float(place == n) for n, place in enumerate(nearest)}
    assert np.mean(list(report.per_query["f1"].values())) == pytest.approx(report.scores["f1"], abs=1e-9)


def test_classification_has_an_interval_over_its_repetitions(tmp_path: Path, encoder: Any) -> None:
    report = scored("classification", tmp_path, encoder)
    assert (report.unit, report.units, report.main) == ("repetition", 10, "accuracy")
    assert np.mean(list(report.per_query["accuracy"].values())) == pytest.approx(report.scores["accuracy"])
    rows = FILES["classification"][1]
    known, asked = ([row for row in rows if row["split"] == split] for split in ("train", "test"))
    plain = sklearn.linear_model.LogisticRegression(max_iter=100).fit(
        encoder.encode([row["text"] for row in known]), [row["label"] for row in known]
    )
    right = plain.score(encoder.encode([row["text"] for row in asked]), [row["label"] for row in asked])
    assert report.scores["accuracy"] == pytest.approx(right, abs=0.25)  # with 8 of 20 examples a label


def test_three_labels_have_no_average_precision(tmp_path: Path, encoder: Any) -> None:
    plain = labelled(90, lambda n: "train" if n % 5 else "test")
    words = [WORDS[n % 3] for n in range(90)]
    rows = [{**row, "text": f"{word} {row['text']}", "label": word} for row, word in zip(plain, words, strict=True)]
    (task,) = read_local(table(tmp_path / "three" / "data.jsonl", rows))
    (report,) = evaluate_mteb(task.task, MtebModel(encoder)).reports.values()
    assert set(report.scores) == {"accuracy", "f1"} == set(metric_names(task))


def test_clustering_has_an_interval_over_its_repetitions(tmp_path: Path, encoder: Any) -> None:
    report = scored("clustering", tmp_path, encoder)
    assert (report.unit, report.units) == ("repetition", 10)
    assert 0 < report.intervals["v_measure"][0] <= report.scores["v_measure"] <= report.intervals["v_measure"][1] <= 1


def test_reranking_by_a_loop(tmp_path: Path, encoder: Any) -> None:
    report = scored("reranking", tmp_path, encoder)
    found = {}
    for number, row in enumerate(FILES["reranking"][1]):
        if row["positive"]:
            answers = [(text, 1) for text in row["positive"]] + [(text, 0) for text in row["negative"]]
            rows, query = encoder.encode([text for text, _ in answers]), encoder.encode_query(row["query"])[0]
            order = sorted(range(len(answers)), key=lambda place: (rows[place] @ query, place), reverse=True)
            ranks = [rank for rank, place in enumerate(order, 1) if answers[place][1]]
            found[f"q{number}"] = np.mean([(n + 1) / rank for n, rank in enumerate(ranks)])
    assert report.per_query["map"] == pytest.approx(found, abs=1e-6)
    assert report.texts["q1"] == FILES["reranking"][1][1]["query"]


def test_cuts_of_a_model_score_as_models_that_are_cut(tmp_path: Path, tiny_model: Path) -> None:
    data = table(tmp_path / "sts" / FILES["sts"][0], FILES["sts"][1])
    cuts = [(None, None), (1, 8), (1, None), (None, 8)]
    found = evaluate_cuts(tiny_model, data, cuts)
    for report, (layers, dim) in zip(found, cuts, strict=True):
        alone = embedkit.evaluate(embedkit.load(tiny_model, layers=layers, dim=dim), data)
        assert report.scores == pytest.approx(alone.scores, abs=1e-6)
    assert len({round(report.scores["pearson"], 5) for report in found}) == 4  # the cuts were made
