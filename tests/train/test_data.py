"""The dialects, and what they say of each example; leaks."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from embedkit.errors import DataError, UsageError
from embedkit.train.data import (
    Example,
    Task,
    data_digest,
    example_pairs,
    known_positives,
    read_task,
    read_tasks,
    with_positives_alone,
    without_known,
)
from embedkit.train.leaks import Leaks, evaluation_texts, plain, without_leaks
from embedkit.train.settings import Data


def read(folder: Path, *rows: dict[str, Any], **settings: Any) -> Task:
    path = folder / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return read_task(Data(path=str(path), **settings))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"anchor": "a", "positive": "p"}, [Example("a", "p")]),
        ({"query": "a", "answer": "p"}, [Example("a", "p")]),
        ({"anchor": "a", "positive": "p", "negative_1": "n", "negative_2": "m"}, [Example("a", "p", ("n", "m"))]),
        ({"sentence1": "a", "sentence2": "p", "score": "0.5"}, [Example("a", "p", score=0.5)]),
        ({"query": "a", "pos": ["p", "q"], "neg": ["n"]}, [Example("a", "p", ("n",)), Example("a", "q", ("n",))]),
        (
            {"query": "a", "pos": ["p"], "neg": ["n", "m"], "pos_scores": [3], "neg_scores": [1, 2]},
            [Example("a", "p", ("n", "m"), teacher=(3.0, 1.0, 2.0))],
        ),
        ({"query": "a", "pos": "hello", "neg": "bad"}, [Example("a", "hello", ("bad",))]),
        ({"query": "a", "pos": ["p"], "neg": None, "pos_scores": None}, [Example("a", "p")]),
        (
            {"query": "a", "pos": ["p"], "neg": ["n", None, ""], "pos_scores": [3], "neg_scores": [1, 2, 4]},
            [Example("a", "p", ("n",), teacher=(3.0, 1.0))],
        ),
        ({"anchor": "a", "positive": "p", "negative": None, "negative_2": "n"}, [Example("a", "p", ("n",))]),
        ({"anchor": "a", "positive": "p", "label": 1}, [Example("a", "p", score=1.0)]),
        ({"sentence1": "a", "sentence2": "p", "label": False}, [Example("a", "p", score=0.0)]),
        (
            {
                "query_id": "1",
                "query_text": "a",
                "positive_passages": [{"docid": "7", "title": "T", "text": "p"}],
                "negative_passages": [{"docid": "8", "text": "n"}],
            },
            [Example("a", "T p", ("n",))],
        ),
    ],
)
def test_each_dialect(tmp_path: Path, row: dict[str, Any], expected: list[Example]) -> None:
    assert list(read(tmp_path, row).examples) == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a"}, "line 1: the keys question are of no dialect"),
        ({"anchor": "a", "positive": " "}, "line 1: positive is ' '; expected a text"),
        ({"query": "a", "pos": ["p"], "neg": ["n"], "pos_scores": [1]}, "1 pos_scores and 0 neg_scores"),
        ({"query": "a", "positive_passages": ["p"]}, "no list of passages"),
        ({"sentence1": "a", "sentence2": "b", "score": "high"}, "score is 'high'; expected a finite number"),
        ({"sentence1": "a", "sentence2": "b", "score": float("nan")}, "line 1: score is nan; expected a finite number"),
        ({"anchor": "a", "positive": "b", "score": "-inf"}, "line 1: score is '-inf'; expected a finite number"),
        ({"anchor": "a", "positive": "b", "score": 10**400}, "line 1: score is 1000"),
        ({"query": "a", "pos": ["p"], "pos_scores": [float("inf")]}, "line 1: pos_scores, neg_scores is inf"),
        ({"query": "a", "pos": None}, "line 1: pos is None; expected a list"),
        ({"sentence1": "a", "sentence2": "b", "score": None}, "line 1: score is None; expected a finite number"),
        ({"sentence1": "a", "sentence2": "b", "label": 1e300}, r"line 1: label is 1e\+300; .* at most 1,000,000"),
        ({"anchor": "a", "positive": "b", "label": "cats"}, "line 1: label is 'cats'; expected a finite number"),
        ({"text": "a", "label": None}, "line 1: label is None; expected a text or a whole number"),
        ({"text": "a", "label": float("nan")}, "line 1: label is nan; expected a text or a whole number"),
        ({"text": "a", "label": ""}, "line 1: label is ''; expected a text or a whole number"),
        ({"text": "a", "label": 0.5}, "line 1: label is 0.5; expected a text or a whole number"),
        ({"anchor": "a", "positive": "x" * 10, "negative": ["n"]}, r"line 1: negative is \['n'\]; expected a text"),
        ({"query": "a", "pos": {"p": 1}}, "line 1: pos is {'p': 1}; expected a list"),
        ({"query": "a", "pos": ["p"], "neg": 7}, "line 1: neg is 7; expected a list"),
        ({"query": "a", "pos": ["p"], "pos_scores": 0.5}, "line 1: pos_scores is 0.5; expected a list"),
        ({"query": "a", "positive_passages": None}, "line 1: positive_passages is None; expected a list"),
        ({"anchor": "a", "positive": "\ud800"}, "line 1: positive holds half of a character"),
        ({"text": "a\udfff", "label": 1}, "line 1: text holds half of a character"),
        (
            {"query": "a", "positive_passages": [{"docid": "7", "title": "\ud800", "text": "p"}]},
            "line 1: positive_passages holds half of a character",
        ),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, row)


def test_a_table_holds_one_text_a_field(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("query,pos,neg,pos_scores,neg_scores\na,hello,bad,0.9,0.1\nb,there,,0.8,\n")
    expected = [Example("a", "hello", ("bad",), teacher=(0.9, 0.1)), Example("b", "there", teacher=(0.8,))]
    assert list(read_task(Data(str(tmp_path / "data.csv"))).examples) == expected


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_an_empty_cell_is_no_negative(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"data.{ending}"
    rows = {"anchor": ["a", "b"], "positive": ["p", "q"], "negative_1": ["n", "m"], "negative_2": [None, "o"]}
    if ending == "csv":
        path.write_text("anchor,positive,negative_1,negative_2\na,p,n,\nb,q,m,o\n")
    else:
        pyarrow.parquet.write_table(pyarrow.table(rows), path)
    assert list(read_task(Data(str(path))).examples) == [Example("a", "p", ("n",)), Example("b", "q", ("m", "o"))]


def beir(folder: Path) -> str:
    """Four judgements above 0, of which two can be used."""
    (folder / "qrels").mkdir()
    (folder / "corpus.jsonl").write_text('{"_id": "1", "text": "p"}\n{"_id": "2", "text": "n"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "a"}\n')
    rows = ["q\t1\t2", "q\t2\t1", "q\t3\t1", "r\t1\t1", "q\t4\t0"]
    (folder / "qrels" / "train.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows, ""]))
    return str(folder)


LABELLED = [{"text": text, "label": text[0]} for text in ("x1", "x2", "y1", "y2", "z1")]


@pytest.mark.parametrize(
    ("rows", "settings", "count", "lost"),
    [
        ([{"query": "a", "pos": []}, {"query": "b", "pos": ["p"]}], {}, 1, {"rows without a positive": 1}),
        (
            [{"query": "a", "positive_passages": []}, {"query": "b", "pos": ["p"]}],
            {},
            1,
            {"rows without a positive": 1},
        ),
        (LABELLED, {}, 4, {"texts whose label no other text has": 1}),
        (
            [*LABELLED[:4], {"text": "x1", "label": "y"}, {"text": "x3", "label": "x"}, {"text": "y2", "label": "y"}],
            {},
            5,
            {"texts that came again with another label, of which the last counts": 1, "texts that came before": 1},
        ),
        ([{"c": ["a", "b", "a"]}, {"c": ["b"]}], {"texts": ("c",)}, 2, {"texts that came before": 2}),
        (
            [{"c": ["a", "b", "c"]}, {"c": ["d"]}],
            {"texts": ("c",), "paired": True},
            1,
            {"texts without a second one in their row": 2},
        ),
        (
            [{"query": "a", "pos": ["p"], "neg": ["q"]}, {"query": "a", "pos": ["q"], "neg": ["n"]}],
            {},
            2,
            {"negatives that are positives of the same anchor elsewhere": 1},
        ),
    ],
)
def test_what_is_left_out_is_counted(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    rows: list[dict[str, Any]],
    settings: dict[str, Any],
    count: int,
    lost: dict[str, int],
) -> None:
    with caplog.at_level(logging.INFO, "embedkit"):
        task = read(tmp_path, *rows, **settings)
    assert (len(task.examples), task.lost) == (count, lost)
    for reason, number in lost.items():
        assert f"data.jsonl: {number} {reason}; left out." in caplog.text


def test_judgements_of_what_is_not_there_are_counted(tmp_path: Path) -> None:
    task = read_task(Data(beir(tmp_path)))
    assert [one.positive for one in task.examples] == ["p", "n"]
    assert task.lost == {"judgements of a query or document that the folder does not hold, or without a text": 2}


def test_where_nothing_is_left_it_is_said_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gives no example \(1 rows without a positive were left out\)"):
        read(tmp_path, {"query": "a", "pos": []})


def test_pairs_that_are_no_positives_are_not_taken_for_some(tmp_path: Path) -> None:
    rows = [{"sentence1": f"a{label}", "sentence2": "p", "label": label} for label in (1, 0, -1, 0.5)]
    task = with_positives_alone(read(tmp_path, *rows, {"sentence1": "a", "sentence2": "p"}))
    assert [one.anchor for one in task.examples] == ["a1", "a0.5", "a"]
    assert task.lost == {"pairs with a score or label of 0 or less, which are no positives": 2}
    with pytest.raises(DataError, match="All 2 pairs of data have a score or label of 0 or less"):
        with_positives_alone(read(tmp_path, *rows[1:3]))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pairs.jsonl")
    with pytest.raises(UsageError, match=r"pairs\.jsonl is a pipe; expected a regular file"):
        read_task(Data(str(tmp_path / "pairs.jsonl")))


def test_the_value_of_a_variable_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where the file is not there nor of a line of it."""
    monkeypatch.setenv("SOME_SECRET", str(tmp_path))
    (tmp_path / "bad.jsonl").write_text('{"anchor": 3}\n')
    for name in ("none", "bad"):
        with pytest.raises((OSError, DataError)) as caught:
            read_task(Data(f"$SOME_SECRET/{name}.jsonl"))
        assert tmp_path.name not in str(caught.value)
        assert f"$SOME_SECRET/{name}.jsonl" in str(caught.value)


def test_negatives_that_are_positives_elsewhere_are_left_out(tmp_path: Path) -> None:
    task = read(
        tmp_path,
        {"query": "a", "pos": ["p"], "neg": ["q", "n", "a"], "pos_scores": [9], "neg_scores": [8, 1, 7]},
        {"query": "a", "pos": ["q"], "neg": ["m"], "pos_scores": [8], "neg_scores": [2]},
    )
    assert task.examples[0] == Example("a", "p", ("n",), teacher=(9.0, 1.0))
    assert task.known == {"a": {"p", "q"}}


def test_labelled_texts_give_pairs_of_a_label(tmp_path: Path) -> None:
    task = read(tmp_path, *({"text": f"{label}{i}", "label": label} for label in "xyz" for i in range(5)))
    assert len(task.examples) == 15
    for example in task.examples:
        assert example.positive[0] == example.anchor[0]
        assert example.positive != example.anchor
        assert {text[0] for text in example.negatives} == set("xyz") - {example.anchor[0]}
        assert task.known[example.anchor] == {f"{example.anchor[0]}{i}" for i in range(5)}
    again = list(example_pairs([("a", "1"), ("b", "1"), ("c", "2")], np.random.default_rng(0)))
    assert [(one.anchor, one.positive, one.negatives) for one in again] == [("a", "b", ("c",)), ("b", "a", ("c",))]
    with pytest.raises(DataError, match="at least two"):
        read(tmp_path, {"text": "a", "label": "x"})


def test_splits_texts_limits_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"captions": ["a", "b"], "split": "train"}, {"captions": ["b", "c"], "split": "train"}, {"captions": ["d"]}]
    task = read(tmp_path, *rows, split="train", texts=("captions",))
    assert [example.anchor for example in task.examples] == ["a", "b", "c"]
    monkeypatch.setenv("SOME_DATA", str(tmp_path))
    assert len(read_task(Data("$SOME_DATA/data.jsonl", texts=("captions",), limit=2)).examples) == 2
    with pytest.raises(UsageError, match=r"\$NO_DATA is not set"):
        read_task(Data("$NO_DATA/data.jsonl"))
    with pytest.raises(DataError, match="no example of the split 'dev'"):
        read(tmp_path, *rows, split="dev", texts=("captions",))


def test_texts_of_a_row_are_pairs_and_no_negatives_of_each_other(tmp_path: Path) -> None:
    rows = [{"captions": ["a", "b", "c", "d", "e"]}, {"captions": ["f", "g"]}, {"captions": ["h"]}]
    task = read(tmp_path, *rows, texts=("captions",), paired=True)
    assert [one.texts for one in task.examples] == [("a", "b"), ("c", "d"), ("f", "g")]
    assert task.known == {"a": {*"abcde"}, "c": {*"abcde"}, "f": {*"fg"}}


def test_all_rows_and_dialects_add_to_what_is_known(tmp_path: Path) -> None:
    task = read(tmp_path, {"c": ["a", "b"]}, {"c": ["a", "z", "y"]}, texts=("c",), paired=True)
    assert task.known == {"a": {*"abyz"}}
    rows = [{"text": text, "label": text[0]} for text in ("x1", "x2", "y1", "y2", "y3")]
    task = read(tmp_path, *rows, {"anchor": "x1", "positive": "other"}, {"query": "x1", "pos": ["more"]})
    assert task.known["x1"] == {"x1", "x2", "other", "more"}
    assert task.known["x2"] == {"x1", "x2"}


def test_known_positives_are_those_of_a_slow_loop() -> None:
    generator = np.random.default_rng(0)
    examples = []
    for _ in range(300):
        anchor, positive, *alike = map(str, generator.choice(40, size=int(generator.integers(2, 6)), replace=False))
        score = None if generator.random() < 0.5 else float(generator.integers(0, 2))
        examples.append(Example(anchor, positive, score=score, alike=frozenset(alike)))
    known = known_positives(examples)
    for anchor in map(str, range(40)):
        own = [example for example in examples if example.anchor == anchor]
        true = {example.positive for example in own if example.score != 0}
        assert known.get(anchor, set()) == true.union(*(example.alike for example in own))


def test_texts_of_a_label_share_one_set_and_none_is_copied(tmp_path: Path) -> None:
    """Else memory and time would go with the square of the texts."""
    task = read(tmp_path, *({"text": f"{label}{i}", "label": label} for label in "xyz" for i in range(20)))
    assert len(task.known) == 60
    assert len({id(texts) for texts in task.known.values()}) == 3

    class Asked(frozenset[str]):
        def __iter__(self) -> Any:
            raise AssertionError("each example went through all texts of its label")

    known = {"a": Asked({"p", "q"})}
    assert without_known(Example("a", "p", ("q", "n", "a"), teacher=(4, 3, 2, 1)), known).teacher == (4, 2)


def test_tasks_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "pairs.jsonl" for folder in "abc"]
    for count, path in enumerate(paths, 1):
        path.parent.mkdir()
        path.write_text("\n".join(json.dumps({"anchor": f"a{i}", "positive": f"p{i}"}) for i in range(count)))
    tasks = read_tasks([Data(str(paths[0])), Data(str(paths[1]), name="pairs (2)"), Data(str(paths[2]))])
    assert {task.name: len(task.examples) for task in tasks} == {"pairs": 1, "pairs (2)": 2, "pairs (3)": 3}


def test_the_digest_tells_all_that_is_trained_on(tmp_path: Path) -> None:
    """Each of these differs from all others in one thing: texts, a score, a teacher's, a label, what other rows make known."""
    plain = {"query": "a", "pos": ["p"], "neg": ["n", "m"], "pos_scores": [3], "neg_scores": [1, 2]}
    labelled = [{"text": text, "label": text[0]} for text in ("x1", "x2", "y1", "y2")]
    data: list[list[dict[str, Any]]] = [
        [plain],
        [{**plain, "neg": ["n", "o"]}],
        [{**plain, "neg_scores": [1, 2.5]}],
        [{"sentence1": "a", "sentence2": "p", "score": 0.5}],
        [{"sentence1": "a", "sentence2": "p", "score": 0.25}],
        [{"sentence1": "a", "sentence2": "p"}],
        labelled,
        [*labelled[:3], {"text": "y2", "label": "z"}, {"text": "z", "label": "z"}],
    ]
    digests = [data_digest([read(tmp_path, *rows)]) for rows in data]
    one = read(tmp_path, plain)
    digests.append(data_digest([Task(one.name, one.settings, one.examples, {"a": frozenset("pq")})]))
    assert len(set(digests)) == len(data) + 1
    assert digests[:-1] == [data_digest([read(tmp_path, *rows)]) for rows in data]


def test_a_beir_folder_gives_its_judged_pairs(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "title": "T", "text": "p"}\n{"_id": "2", "text": "n"}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "a"}\n')
    (tmp_path / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq\t1\t2\nq\t2\t0\n")
    assert list(read_task(Data(str(tmp_path))).examples) == [Example("a", "T p")]
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\t1\t2\n")
    assert list(evaluation_texts(tmp_path)) == ["a"]  # its documents are there to be searched


SENTENCE = "a man is playing a small guitar on the stage"


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (SENTENCE, "exact"),
        ("A man is playing a small guitar, on the stage.", "exact"),
        ("a man is playing a guitar on the stage", "near"),
        ("a man is playing a small guitar on the big stage", "near"),
        ("a woman is playing a large guitar on a street", None),
        ("the stage", None),
        ("yes", "exact"),
    ],
)
def test_leaks_are_found(text: str, verdict: str | None) -> None:
    assert Leaks([SENTENCE, "Yes!", "something else entirely, of other words"]).holds(text) == verdict


def test_leaks_are_those_of_the_slow_join() -> None:
    generator = np.random.default_rng(0)
    words = list("abcdefghijkl")

    def text() -> str:
        return " ".join(generator.choice(words, size=int(generator.integers(4, 9)), replace=False))

    known, asked = [text() for _ in range(200)], [text() for _ in range(300)]
    leaks = Leaks(known, nearness=0.75)
    found = 0
    for one in asked:
        near = any(
            len(a & b) >= 0.75 * len(a | b) for b in (set(other.split()) for other in known) if (a := set(one.split()))
        )
        assert (leaks.holds(one) is not None) == near
        found += near
    assert 20 < found < 280


def test_leaking_examples_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    test_set = tmp_path / "stsb" / "data.tsv"
    test_set.parent.mkdir()
    test_set.write_text(f"sentence1\tsentence2\tscore\n{SENTENCE}\tSomething else.\t3\n")
    task = read(
        tmp_path,
        {"anchor": "one thing", "positive": SENTENCE},
        {"anchor": "another", "positive": "a small guitar"},
        {"anchor": f"{SENTENCE} now", "positive": "a guitar"},
    )
    with caplog.at_level(logging.INFO, "embedkit"):
        (kept,) = without_leaks([task], [str(test_set.parent)])
    assert [example.anchor for example in kept.examples] == ["another"]
    assert "of 3 examples 1 hold a text of an evaluation set and 1 one that is nearly so" in caplog.text
    assert kept.leaked == {"exact": 1, "near": 1}
    assert plain("It's so, TWICE.") == plain("it 's so twice")
    with pytest.raises(UsageError, match="no evaluation set is there"):
        without_leaks([task], [str(tmp_path / "none")])
