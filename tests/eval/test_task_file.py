"""task.yaml, DIR:SPLIT, and the real collections as they lie."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import embedkit
from embedkit.errors import DataError, IntegrityError
from embedkit.eval.local_tasks import LocalTask
from embedkit.eval.run import read_tasks
from embedkit.eval.task_file import read_task_file
from embedkit.limits import SETTINGS
from embedkit.storage import file_record

from ..conftest import WordCounts

PAIRS = "sentence1\tsentence2\tscore\tlabel\tsplit\ncat\tcat dog\t5\t1\ttest\nred\tblue\t0\t0\ttest\none\tone two\t3\t1\tdev\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "data.tsv").write_text(PAIRS)
    return tmp_path / "mine"


def test_a_folder_says_what_it_is(folder: Path) -> None:
    digest = file_record(folder / "data.tsv")["sha256"]
    (folder / "task.yaml").write_text(
        f"name: likeness\ntype: pair-classification\nsplit: all\nmetric: accuracy\nlicence: CC BY 4.0\nhash: {{data.tsv: {digest}}}\n"
    )
    (task,) = read_tasks(folder)
    assert isinstance(task, LocalTask)
    assert (task.name, task.type, len(task.rows)) == ("likeness", "pair-classification", 3)
    report = embedkit.evaluate(WordCounts(), folder)
    assert (report.main, report.context["data"]["licence"]) == ("accuracy", "CC BY 4.0")
    (asked,) = read_tasks(folder, "test", "sts")  # what is asked for comes first
    assert isinstance(asked, LocalTask)
    assert (asked.type, len(asked.rows)) == ("sts", 2)


BAD = {
    "naem: x": "has the key 'naem', which says nothing of a task; did you mean name?",
    "zzz: x": "has the key 'zzz', which says nothing of a task; expected name, type, split, metric, licence, ignore_identical_ids, hash.",
    "name: 3": "name is 3; expected a text",
    "name: ''": "name is ''; expected a text",
    "hash: abc": "hash is 'abc'; expected a mapping of file names to SHA-256 sums",
    "hash: {data.tsv: 1}": "expected a mapping of file names",
    "- name": "holds ['name']; expected some of name, type",
    "name: [": "cannot be read as YAML",
    "name: !!int abc": "cannot be read as YAML: 'abc' is no int, line 1.",
    "name: 2024-13-45": "cannot be read as YAML: '2024-13-45' is no timestamp, line 1.",
    "name: 2024-02-03": "name is datetime.date(2024, 2, 3); expected a text",
    "name: x\nname: y": "the key 'name' stands twice, line 2",
    "false": "holds False; expected some of",
    "#" * (SETTINGS + 1): "task.yaml has more than 1,048,576 bytes",
    "a: !!python/object/apply:os.getcwd []": "cannot be read as YAML",
}


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:40])
def test_what_it_cannot_say_is_refused(folder: Path, text: str) -> None:
    (folder / "task.yaml").write_text(text)
    with pytest.raises(DataError) as caught:
        read_task_file(folder)
    assert BAD[text] in str(caught.value)


def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "task.yaml")
    with pytest.raises(DataError, match=r"task\.yaml is a pipe"):
        read_task_file(folder)


def test_files_that_are_not_those_described_are_refused(folder: Path) -> None:
    (folder / "task.yaml").write_text(f"hash: {{data.tsv: {'f' * 64}}}")
    with pytest.raises(IntegrityError, match=r"data\.tsv has SHA-256 .*, task\.yaml says ffffffffffff"):
        read_tasks(folder)


def test_a_metric_that_the_task_has_not_is_refused(folder: Path) -> None:
    (folder / "task.yaml").write_text("type: sts\nmetric: ndcg@10")
    with pytest.raises(DataError, match=r"names the metric 'ndcg@10'; this task has spearman, pearson\."):
        embedkit.evaluate(WordCounts(), folder)


def test_each_folder_may_have_its_split(folder: Path, tiny_model: Path, tmp_path: Path, capsys: Any) -> None:
    from embedkit.cli.main import main

    other = tmp_path / "other.tsv"
    other.write_text(PAIRS)
    for data, counts in (([f"{folder}:all", other], [3, 2]), ([folder, f"{other}:all", "--split", "test"], [2, 3])):
        command = ["eval", "--type", "sts", "--model", tiny_model, "-o", tmp_path / "r", "--json", "--data", *data]
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in command])
        assert ended.value.code == 0
        tasks = json.loads(capsys.readouterr().out)["tasks"]
        assert [task["units"] for task in tasks.values()] == counts


# every folder of judged data: split and, where it has to be told, type -> how many tasks, of which type
COLLECTIONS = {
    "adi": (None, None, 1, "retrieval"),
    "agnews": (None, None, 1, "classification"),
    "banking77": (None, None, 1, "classification"),
    "cacm": (None, None, 1, "retrieval"),
    "climate_fever_evidence": (None, None, 1, "retrieval"),
    "clinc150": (None, None, 1, "classification"),
    "cosqa": (None, None, 1, "retrieval"),
    "cranfield": (None, None, 1, "retrieval"),
    "debian_packages": (None, None, 1, "retrieval"),
    "emoji_images": (None, None, 2, "text-to-image image-to-text"),
    "flickr8k_1k": ("all", None, 2, "text-to-image image-to-text"),
    "medline": (None, None, 1, "retrieval"),
    "medquad": (None, None, 1, "retrieval"),
    "mini_newsgroups": (None, None, 1, "classification"),
    "mrpc": (None, None, 1, "pair-classification"),
    "scifact": (None, None, 1, "retrieval"),
    "search_snippets": (None, None, 1, "clustering"),
    "sick": ("all", None, 1, "sts"),
    "sst5": (None, None, 1, "classification"),
    "sts12": (None, None, 1, "sts"),
    "sts15": (None, None, 1, "sts"),
    "stsb": (None, None, 1, "sts"),
    "tatoeba": (None, None, 112, "bitext"),
    "trec6": (None, None, 1, "classification"),
    "trecqa_rerank": (None, None, 1, "reranking"),
    "wordnet": (None, None, 1, "retrieval"),
    "xquad": (None, None, 12, "retrieval"),
}


@pytest.mark.data
@pytest.mark.parametrize("name", COLLECTIONS)
def test_every_collection_is_a_task_as_it_lies(name: str, data: Path, no_network: None) -> None:
    split, kind, count, expected = COLLECTIONS[name]
    tasks = read_tasks(data / name, split, kind)
    assert len(tasks) == count
    assert {task.type if isinstance(task, LocalTask) else "retrieval" for task in tasks} == set(expected.split())


@pytest.mark.data
@pytest.mark.parametrize("name", ["adi", "stsb", "trecqa_rerank"])
def test_collections_are_evaluated_without_a_network(name: str, data: Path, no_network: None) -> None:
    """With rows of letters, which know a little of likeness."""
    report = embedkit.evaluate(Letters(), data / name)
    assert report.units > 0
    low, high = report.intervals[report.main]
    assert low <= report.scores[report.main] <= high


class Letters(WordCounts):
    """How often each letter stands in a text."""

    dim = 26

    def encode(self, inputs: Any, *, kind: str = "document") -> Any:
        import numpy as np

        counts = [[text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in inputs]
        rows = np.array(counts, dtype=np.float32).reshape(len(counts), 26)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows / np.where(lengths == 0, 1, lengths)
