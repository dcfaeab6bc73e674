"""Seeded defects, each of which gives its own finding and no other; clean folders give none."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedkit.corpus import formats
from embedkit.errors import DataError, UsageError
from embedkit.eval.data_check.check import check_data
from embedkit.eval.data_check.findings import KINDS

HEADER = "query-id\tcorpus-id\tscore\n"
WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "islet", "jetty", "knoll", "lagoon")


def sentence(number: int) -> str:
    """Of twelve words, no two of which have three running words in common."""
    return " ".join(f"{word}{number}" for word in WORDS)


class Beir:
    """Files of a BEIR folder as lines, which a seed changes before they are written."""

    def __init__(self) -> None:
        self.corpus = [{"_id": f"d{n}", "title": f"Title {n}", "text": sentence(n)} for n in range(12)]
        self.queries = [{"_id": f"q{n}", "text": f"where is the {sentence(100 + n)}"} for n in range(8)]
        self.qrels = {"train": [f"q{n}\td{n}\t1" for n in range(4)], "test": [f"q{n}\td{n}\t2" for n in range(4, 8)]}
        self.header = HEADER
        self.bytes: dict[str, Callable[[bytes], bytes]] = {}

    def write(self, folder: Path) -> Path:
        (folder / "qrels").mkdir(parents=True)
        files = {
            "corpus.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.corpus),
            "queries.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.queries),
            **{f"qrels/{split}.tsv": self.header + "\n".join(rows) + "\n" for split, rows in self.qrels.items()},
        }
        for name, text in files.items():
            (folder / name).write_bytes(self.bytes.get(name, lambda raw: raw)(text.encode("utf-8")))
        return folder


def add(rows: list[Any], *more: Any) -> None:
    rows += more


def put(row: dict[str, Any], **values: Any) -> None:
    row.update(values)


def damage(beir: Beir, name: str, change: Callable[[bytes], bytes]) -> None:
    """The bytes of a file, after what was done to them before."""
    before = beir.bytes.get(name, lambda raw: raw)
    beir.bytes[name] = lambda raw: change(before(raw))


def rename(beir: Beir, old: str, new: str) -> None:
    """An id, wherever it stands."""
    for row in (*beir.corpus, *beir.queries):
        row["_id"] = new if row["_id"] == old else row["_id"]
    beir.qrels = {
        split: ["\t".join(new if one == old else one for one in row.split("\t")) for row in rows]
        for split, rows in beir.qrels.items()
    }


def judge_in_vain(beir: Beir) -> None:
    beir.queries.append({"_id": "q8", "text": "nothing is good enough"})
    beir.qrels["test"].append("q8\td1\t0")


BEIR_SEEDS: list[tuple[str, Callable[[Beir], Any], str]] = [  # (finding, what is done, what the evidence says)
    ("not-utf8", lambda b: damage(b, "corpus.jsonl", lambda raw: raw.replace(b"amber3", b"amb\xe9r3")), "corpus.jsonl, line 4"),
    ("byte-order-mark", lambda b: damage(b, "queries.jsonl", lambda raw: b"\xef\xbb\xbf" + raw), "queries.jsonl"),
    ("unreadable-row", lambda b: damage(b, "corpus.jsonl", lambda raw: raw + b'{"_id": "d99", "te\n'), "corpus.jsonl, line 13"),
    ("missing-field", lambda b: add(b.corpus, {"_id": "d99", "text": None}), "corpus.jsonl, line 13"),
    ("id-characters", lambda b: rename(b, "d9", "d 9"), "'d 9'"),
    ("empty-document", lambda b: put(b.corpus[9], title="", text=" "), "corpus.jsonl, line 10: d9"),
    ("empty-query", lambda b: put(b.queries[2], text=""), "queries.jsonl, line 3: q2"),
    ("mojibake", lambda b: put(b.corpus[4], text=sentence(4) + " cafÃ©"), "cafÃ©"),
    ("control-characters", lambda b: put(b.corpus[5], text=sentence(5) + " a\x00b"), "a\\u0000b"),
    ("replacement-character", lambda b: put(b.corpus[6], text=sentence(6) + " caf\ufffd"), "line 7"),
    ("duplicate-document-id", lambda b: add(b.corpus, {"_id": "d3", "text": "another text"}), "line 13: d3 another text"),
    ("duplicate-query-id", lambda b: add(b.queries, {"_id": "q3", "text": "another text"}), "line 9: q3 another text"),
    ("duplicate-document", lambda b: add(b.corpus, {**b.corpus[2], "_id": "d99"}), "line 13: d99 Title 2"),
    ("duplicate-query", lambda b: put(b.queries[2], text=b.queries[1]["text"] + " "), "line 3: q2 where"),
    ("missing-header", lambda b: put(vars(b), header=""), "train.tsv, line 1: q0 d0 1"),
    ("carriage-return", lambda b: damage(b, "qrels/test.tsv", lambda raw: raw.replace(b"\n", b"\r\n")), "test.tsv, line 1"),
    ("unreadable-judgement", lambda b: add(b.qrels["test"], "q5 0 d6 1"), "test.tsv, line 6: q5 0 d6 1"),
    ("float-grade", lambda b: add(b.qrels["test"], "q5\td6\t0.5"), "test.tsv, line 6: q5 d6 0.5"),
    ("large-grade", lambda b: add(b.qrels["test"], "q5\td6\t4294967297"), "test.tsv, line 6: q5 d6 4294967297"),
    ("negative-grade", lambda b: add(b.qrels["test"], "q5\td6\t-1"), "test.tsv, line 6: q5 d6 -1"),
    ("duplicate-judgement", lambda b: add(b.qrels["test"], "q5\td5\t2"), "test.tsv, line 6: q5 d5 2"),
    ("orphan-query", lambda b: add(b.qrels["test"], "q77\td5\t1", "q77\td6\t1"), "1 judged queries"),
    ("orphan-document", lambda b: add(b.qrels["test"], "q5\td77\t1"), "test.tsv, line 6: q5 d77 1"),
    ("unjudged-query", lambda b: add(b.queries, {"_id": "q9", "text": "nobody judged this"}), "line 9: q9 nobody"),
    ("query-without-relevant", lambda b: judge_in_vain(b), "test.tsv, line 6: q8 d1 0"),
    ("self-retrieval", lambda b: put(b.queries[5], text=sentence(8)), "line 6: q5 amber8"),
    ("self-retrieval", lambda b: put(b.queries[5], text="Title 8  " + sentence(8)), "line 6: q5 Title 8"),
    ("id-clash", lambda b: rename(b, "q5", "d5"), "queries.jsonl, line 6: d5 where"),
    ("split-copied", lambda b: put(b.qrels, train=b.qrels["train"] + b.qrels["test"]), "qrels/test.tsv"),
    ("query-in-two-splits", lambda b: add(b.qrels["test"], "q1\td9\t1"), "test.tsv, line 6: q1 d9 1"),
    ("duplicate-across-splits", lambda b: put(b.queries[6], text=b.queries[1]["text"].upper() + "?"), "line 7 and queries.jsonl, line 2"),
    ("near-duplicate-across-splits", lambda b: put(b.queries[6], text=b.queries[1]["text"] + " please"), "(Jaccard"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "seed", "said"), BEIR_SEEDS, ids=[name for name, _, _ in BEIR_SEEDS])
def test_each_defect_of_a_beir_folder_is_found_alone(
    name: str, seed: Callable[[Beir], Any], said: str, tmp_path: Path
) -> None:
    beir = Beir()
    seed(beir)
    (found,) = check_data(beir.write(tmp_path / "seeded"))
    assert found.name == name
    assert said in found.evidence
    assert found.evidence.startswith(f"{found.count} {KINDS[name].what}")


def test_many_defects_at_once_are_all_found(tmp_path: Path) -> None:
    beir = Beir()
    together = [(name, seed) for name, seed, _ in BEIR_SEEDS if name != "split-copied"]  # which would explain others
    for name, seed in together:
        if name not in ("duplicate-query", "duplicate-across-splits"):  # of the same query as others
            seed(beir)
    found = [finding.name for finding in check_data(beir.write(tmp_path / "seeded"))]
    expected = {name for name, _ in together} - {"duplicate-query", "duplicate-across-splits"}
    assert set(found) == expected and len(found) == len(expected) >= 20
    assert found == [name for name in KINDS if name in expected], "in the order of KINDS"


def test_a_blank_behind_an_id_is_named_with_its_line_in_the_judgements(tmp_path: Path) -> None:
    """Where `embedkit eval` refuses the row."""
    beir = Beir()
    add(beir.qrels["test"], "q5\td6 \t1")
    found = {one.name: one.evidence for one in check_data(beir.write(tmp_path / "seeded"))}
    assert set(found) == {"id-characters", "orphan-document"}
    assert "test.tsv, line 6: ['q5', 'd6 ']" in found["id-characters"]


def test_columns_in_another_order_are_read_by_their_names(tmp_path: Path) -> None:
    beir = Beir()
    beir.header = "score\tCorpus-ID\tquery-id\n"
    beir.qrels = {split: ["\t".join(row.split("\t")[::-1]) for row in rows] for split, rows in beir.qrels.items()}
    assert check_data(beir.write(tmp_path / "turned")) == []


def test_a_clean_beir_folder_has_nothing(tmp_path: Path) -> None:
    """Also packed, without a train split, and with other fields; and titles alone make no duplicates."""
    folder = Beir().write(tmp_path / "clean")
    assert check_data(folder) == []
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert check_data(folder) == []
    beir = Beir()
    beir.qrels = {"test": beir.qrels["train"] + beir.qrels["test"]}
    put(
        beir.corpus[0],
        title=beir.corpus[1]["title"],
        metadata={"year": None},
        text="Übergrößen, naïve – ‘quoted’ “São” 東京\r\n\tend",
    )
    beir.corpus.append({"id": 17, "text": "an id that is a number, and no title"})
    assert check_data(beir.write(tmp_path / "other")) == []


def test_a_query_that_is_judged_by_its_own_text_is_no_finding(tmp_path: Path) -> None:
    beir = Beir()
    beir.queries[5]["text"] = sentence(5)
    assert check_data(beir.write(tmp_path / "known")) == []
    rename(beir, "q5", "d5")  # Quora's way, where the twin is judged
    assert check_data(beir.write(tmp_path / "same id")) == []


def test_folders_of_beir_folders_are_told_apart(tmp_path: Path) -> None:
    Beir().write(tmp_path / "all" / "en")
    bad = Beir()
    bad.corpus.append({"_id": "d0", "text": "x"})
    bad.write(tmp_path / "all" / "de")
    (found,) = check_data(tmp_path / "all")
    assert found.name == "duplicate-document-id" and "de/corpus.jsonl, line 13" in found.evidence


# --- tables ---------------------------------------------------------------------------------------------------------------

STS = [
    {
        "sentence1": sentence(n),
        "sentence2": sentence(50 + n),
        "score": f"{n % 6}.0",
        "split": "test" if n % 2 else "train",
    }
    for n in range(12)
]
PAIRS = [{"sentence1": sentence(n), "sentence2": sentence(50 + n), "label": n % 2} for n in range(6)]
BITEXT = [
    {"sentence1": sentence(n), "sentence2": sentence(50 + n), "lang": "deu" if n % 2 else "fra"} for n in range(6)
]
CLASSES = [{"text": sentence(n), "label": n % 3, "split": "test" if n > 8 else "train"} for n in range(12)]
TOPICS = [{"text": sentence(n), "label": ["sport", "art"][n % 2]} for n in range(6)]
LISTS = [
    {"query": f"why {sentence(n)}", "positive": [sentence(20 + n)], "negative": [sentence(40 + n)]} for n in range(5)
]
CLEAN = {"sts": STS, "pairs": PAIRS, "bitext": BITEXT, "classes": CLASSES, "topics": TOPICS, "lists": LISTS}
MANY = [{"sentence1": sentence(n), "sentence2": sentence(1000 + n), "score": n % 6} for n in range(199)]


def changed(rows: list[dict[str, Any]], place: int, **values: Any) -> list[dict[str, Any]]:
    return [{**row, **values} if number == place else row for number, row in enumerate(rows)]


def moved(rows: list[dict[str, Any]], first: int, place: int, **values: Any) -> list[dict[str, Any]]:
    """The first row once more, at another place, with other values."""
    return [*rows[:place], {**rows[first], **values}, *rows[place:]]


TABLE_SEEDS: list[tuple[str, list[dict[str, Any]], str]] = [
    ("empty-text", changed(TOPICS, 2, text="  "), "line 3"),
    ("missing-field", changed(TOPICS, 2, text=None), "line 3"),
    ("missing-field", changed(LISTS, 2, negative="no list"), "line 3"),
    ("mojibake", changed(STS, 2, sentence2="itâ€™s here " + sentence(52)), "itâ€™s"),
    ("duplicate-row", moved(STS, 0, 4), "line 5: 0.0 amber0"),
    ("duplicate-row", moved(BITEXT, 0, 4), "line 5: fra |"),
    ("duplicate-row", moved(TOPICS, 0, 4), "line 5: sport amber0"),
    ("conflicting-labels", moved(STS, 0, 4, score="4.0"), "line 5: 4.0 amber0"),
    ("conflicting-labels", moved(TOPICS, 0, 4, label="art"), "line 5: art amber0"),
    ("bad-score", changed(STS, 3, score="nan"), "line 4: nan"),
    ("bad-score", changed(STS, 3, score="high"), "line 4: high"),
    ("score-out-of-range", [*MANY, {**STS[0], "score": 44}], "line 200: 44 amber0"),
    ("bad-score", changed(STS, 3, score=1e300), "line 4: 1e+300"),
    ("bad-label", changed(PAIRS, 3, label=2), "line 4: 2"),
    ("bad-label", changed(PAIRS, 3, label=0.9), "line 4: 0.9"),
    ("bad-label", changed(TOPICS, 3, label=float("nan")), "line 4: nan"),
    ("bad-label", changed(TOPICS, 3, label=""), "line 4: ''"),
    ("same-both-sides", changed(BITEXT, 3, sentence2=sentence(3)), "line 4: amber3"),
    ("positive-is-negative", changed(LISTS, 1, negative=[sentence(21)]), "line 2: why amber1"),
    ("nothing-to-rank", changed(LISTS, 1, negative=[]), "line 2: why amber1"),
    ("label-in-one-split", changed(CLASSES, 11, label=3), "3 (test: 1)"),
    ("one-label", [{**row, "label": "art"} for row in TOPICS], "data.jsonl: art"),
    ("label-gap", [{**row, "label": 3 if row["label"] == 1 else row["label"]} for row in CLASSES], "data.jsonl: 1"),
    ("split-copied", [*CLASSES[:9], *({**row, "split": "test"} for row in CLASSES[:9])], "9 rows of test"),
    ("duplicate-across-splits", changed(CLASSES, 11, text=sentence(2).upper()), "line 12 and data.jsonl, line 3"),
    ("near-duplicate-across-splits", changed(CLASSES, 11, text="so " + sentence(2)), "Jaccard"),
]


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    (folder / "data.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return folder


@pytest.mark.parametrize(("name", "rows", "said"), TABLE_SEEDS, ids=[name for name, _, _ in TABLE_SEEDS])
def test_each_defect_of_a_table_is_found_alone(
    name: str, rows: list[dict[str, Any]], said: str, tmp_path: Path
) -> None:
    (found,) = check_data(written(tmp_path / "seeded", rows))
    assert found.name == name
    assert said in found.evidence


@pytest.mark.parametrize("kind", CLEAN)
def test_clean_tables_have_nothing(kind: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "clean", CLEAN[kind])
    assert check_data(folder) == [] == check_data(folder / "data.jsonl")


def test_every_kind_of_finding_is_seeded() -> None:
    assert {name for name, *_ in (*BEIR_SEEDS, *TABLE_SEEDS)} == set(KINDS)


@pytest.mark.parametrize("ending", ["tsv", "csv", "parquet"])
def test_other_formats_name_their_line(ending: str, tmp_path: Path) -> None:
    import pandas as pd

    table = pd.DataFrame(changed(STS, 3, score="x", sentence1='a "quoted"\nline, of two\tparts'))
    path = tmp_path / f"data.{ending}"
    if ending == "parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, sep="\t" if ending == "tsv" else ",", index=False)
    (found,) = check_data(path)
    assert (found.name, found.count) == ("bad-score", 1)
    assert ("row 4: x" if ending == "parquet" else "line 5: x") in found.evidence


def test_splits_in_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LISTS[:3]))
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LISTS[3:]))
    assert check_data(tmp_path) == []
    (tmp_path / "test.jsonl").write_text(
        json.dumps({**LISTS[4], "query": LISTS[1]["query"] + "!"}) + "\n" + json.dumps(LISTS[3])
    )
    (found,) = check_data(tmp_path)
    assert found.name == "duplicate-across-splits" and "test.jsonl, line 1 and train.jsonl, line 2" in found.evidence


def test_a_row_that_a_quotation_mark_swallowed_is_found(tmp_path: Path) -> None:
    path = tmp_path / "data.tsv"
    path.write_text('text\tlabel\n"open\ta\nfine one\tb\nclosed"\ta\nfine two\tb\n')
    (found,) = check_data(path)
    assert found.name == "unreadable-row" and "line 2" in found.evidence


def test_a_carriage_return_within_a_line_is_found(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(b"text,label\nfine,a\nb\rb,a\nfine too,b\n")
    (found,) = check_data(tmp_path / "data.csv")
    assert (found.name, found.count) == ("unreadable-row", 1) and "data.csv, line 3: new-line" in found.evidence


def test_counts_go_on_where_examples_end(tmp_path: Path) -> None:
    beir = Beir()
    beir.corpus += [{"_id": f"d{n}", "text": f"more {n}"} for n in range(12)]
    (found,) = check_data(beir.write(tmp_path / "seeded"))
    assert (found.count, found.evidence.count(", line ")) == (12, 3)
    assert found.evidence.endswith("; ...")


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not there"):
        check_data(tmp_path / "nothing")
    with pytest.raises(UsageError, match="holds nothing to check"):
        check_data(tmp_path)
    with pytest.raises(UsageError, match="has the columns a, b, which no task has"):
        check_data(written(tmp_path / "odd", [{"a": 1, "b": 2}]))
    with pytest.raises(UsageError, match="holds no rows"):
        check_data(written(tmp_path / "empty", []))


def test_memory_is_a_constant_a_row(tmp_path: Path) -> None:
    """Texts of 2,000 characters, of which no more than some are held at a time."""
    rows = [{"_id": f"d{n}", "text": f"{n} " + "x" * 2000} for n in range(3000)]
    beir = Beir()
    beir.corpus += [{**row, "_id": f"e{row['_id']}"} for row in rows]
    folder = beir.write(tmp_path / "long")
    check_data(folder)
    tracemalloc.start()
    assert check_data(folder) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_500_000  # of texts of 6,000,000 bytes


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data.jsonl", b'{"text": "' + b"a" * 3000),
        ("data.csv", b'text,label\n"open,a\n' + b"b,c\n" * 600),  # a record of many lines, none of them long
        ("data.tsv", b"text\tlabel\n" + b"a" * 3000),
    ],
)
def test_a_line_or_a_record_without_an_end_is_refused(
    name: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "LINE", 2000)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=rf"{name}.gz, line \d: .* has more than 2,000 .* the most that are read"):
        check_data(tmp_path / f"{name}.gz")
