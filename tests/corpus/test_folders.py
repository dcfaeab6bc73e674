"""Which files of a folder are the corpus, what their folders say of their rows, and what is said of the others."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedkit.corpus import Fields, read_corpus
from embedkit.errors import DataError, UsageError


def part(path: Path, identifier: str, **columns: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": [identifier], "text": [identifier], **{k: [v] for k, v in columns.items()}}), path)


def ids(folder: Path) -> list[str]:
    return [document.id for document in read_corpus(folder)]


def test_the_keys_of_partitions_are_metadata(tmp_path: Path) -> None:
    part(tmp_path / "lang=en/_year=2020/no=007/0.parquet", "a", n=1)
    part(tmp_path / "lang=__HIVE_DEFAULT_PARTITION__/_year=2021/no=8/0.parquet", "b", n=2)
    part(tmp_path / "lang=caf%C3%A9%2F/_year=__HIVE_DEFAULT_PARTITION__/no=9/0.parquet", "c", n=3)
    assert {document.id: document.metadata for document in read_corpus(tmp_path)} == {
        "a": {"lang": "en", "_year": 2020, "no": "007", "n": 1},  # "007" is no number, so that none of them is
        "b": {"lang": None, "_year": 2021, "no": "8", "n": 2},
        "c": {"lang": "café/", "_year": None, "no": "9", "n": 3},
    }
    assert "lang" not in next(read_corpus(tmp_path, Fields(leave_out=("lang",)))).metadata


def test_a_partition_may_be_the_text_of_no_other_column(tmp_path: Path) -> None:
    """Where the column is in the file as well, both must say the same."""
    part(tmp_path / "lang=en/0.parquet", "a", lang="en")
    assert next(read_corpus(tmp_path)).metadata == {"lang": "en"}
    part(tmp_path / "lang=de/0.parquet", "b", lang="fr")
    with pytest.raises(DataError, match=r"lang=de/0\.parquet, row 1: the field 'lang' is 'fr', and 'de' by the name"):
        list(read_corpus(tmp_path))


@pytest.mark.parametrize("name", ["_delta_log", "_temporary", ".ipynb_checkpoints", "data/_temporary/0"])
def test_folders_of_bookkeeping_are_no_data(name: str, tmp_path: Path) -> None:
    part(tmp_path / "0.parquet", "a")
    part(tmp_path / name / "0.parquet", "z")
    part(tmp_path / "_metadata.parquet", "y")
    for other in ("_SUCCESS", ".0.parquet.crc"):
        (tmp_path / other).write_bytes(b"")
    assert ids(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"], "test, train"),
        (["corpus-00000-of-00002.parquet", "queries-00000-of-00001.parquet"], "corpus, queries"),
        (["train.parquet", "validation.parquet"], "train, validation"),
        (["my_train_file.parquet", "my_dev_file.PARQUET"], "train, validation"),
        (["train/0.parquet", "val/0.parquet", "eval/0.parquet"], "test, train, validation"),
    ],
)
def test_splits_are_not_joined(names: list[str], splits: str, tmp_path: Path) -> None:
    for name in names:
        part(tmp_path / name, name)
    with pytest.raises(UsageError) as error:
        read_corpus(tmp_path)
    assert str(error.value).startswith(
        f"{tmp_path} holds several splits ({splits}); give the file or the folder of one"
    )
    assert ids(tmp_path / names[0]) == [names[0]]


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        ["training_0.parquet", "train_1.parquet"],
        ["part-0.parquet", "part-1.parquet"],
        ["contest.parquet", "trains.parquet"],  # words that hold such a word
        ["split=test/0.parquet", "split=train/0.parquet"],  # of a partitioned table, which keeps the key
    ],
)
def test_parts_are_joined(names: list[str], tmp_path: Path) -> None:
    for name in names:
        part(tmp_path / name, name)
    assert ids(tmp_path) == sorted(names)


@pytest.mark.parametrize("name", ["C.CSV", "c.Jsonl.GZ", "c.NDJSON", "C.Parquet", "c.TSV.gz", "A.TXT", "a.MD.Gz"])
def test_a_suffix_may_be_written_in_any_case(name: str, tmp_path: Path) -> None:
    path, kind = tmp_path / name, name.lower().removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        part(path, "a")
    else:
        content = {"csv": b"id,text\na,one\n", "tsv": b"id\ttext\na\tone\n"}.get(kind, b'{"id": "a", "text": "one"}\n')
        path.write_bytes(gzip.compress(content) if name.lower().endswith(".gz") else content)
    assert ids(path) == [name if kind in ("txt", "md") else "a"]
    if kind not in ("txt", "md", "parquet"):
        (tmp_path / "readme.md").write_text("about")
        with pytest.raises(UsageError, match=f"holds {name} and is no BEIR folder"):
            read_corpus(tmp_path)


def test_packed_and_capital_texts_of_a_folder_are_read_and_the_others_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.txt").write_text("alpha")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"beta"))
    (tmp_path / "C.TXT").write_text("gamma")
    for name in ("d.pdf", "e.png", ".hidden", "_drafts/f.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("other")
    with caplog.at_level(logging.INFO, "embedkit"):
        assert [document.text for document in read_corpus(tmp_path)] == ["gamma", "alpha", "beta"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: 3 files are left out: _drafts/f.txt, d.pdf, e.png"
    ]


def test_nothing_is_said_where_nothing_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    part(tmp_path / "0.parquet", "a")
    with caplog.at_level(logging.INFO, "embedkit"):
        assert ids(tmp_path) == ["a"]
    assert not caplog.records
