"""The same three documents in every form that a corpus may have, and what each form promises of its own."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embedkit.corpus import Fields, read_corpus
from embedkit.corpus.formats import delimited_rows, jsonl_rows
from embedkit.errors import DataError, UsageError
from embedkit.types import Document

ROWS = [
    {"_id": "d1", "title": "Cats", "text": "A cat sleeps.", "year": "2001"},
    {"_id": "d2", "title": "", "text": 'naïve 猫 said "hi",\tthen\nleft', "year": ""},
    {"_id": "7", "title": "Emoji 🐟", "text": "", "year": "1999"},
]
DOCUMENTS = [
    Document(id="d1", text="A cat sleeps.", title="Cats", metadata={"year": "2001"}),
    Document(id="d2", text='naïve 猫 said "hi",\tthen\nleft', title="", metadata={"year": ""}),
    Document(id="7", text="", title="Emoji 🐟", metadata={"year": "1999"}),
]


def jsonl_bytes(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table_bytes(rows: list[dict[str, Any]], delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def save_dataset(folder: Path, rows: list[dict[str, Any]]) -> Path:
    import datasets

    datasets.Dataset.from_list(rows).save_to_disk(str(folder))
    return folder


def parquet_folder(folder: Path) -> Path:
    write_parquet(folder / "part-1.parquet", ROWS[1:])
    write_parquet(folder / "part-0.parquet", ROWS[:1])
    return folder


def data_frame(_: Path) -> Any:
    import pandas

    return pandas.DataFrame(ROWS)


def dataset(_: Path) -> Any:
    import datasets

    return datasets.Dataset.from_list(ROWS)


FORMS: dict[str, Callable[[Path], Any]] = {
    "jsonl": lambda tmp: written(tmp / "c.jsonl", jsonl_bytes(ROWS)),
    "jsonl without a last line end": lambda tmp: written(tmp / "c.jsonl", jsonl_bytes(ROWS).rstrip(b"\n")),
    "jsonl with Windows line ends": lambda tmp: written(tmp / "c.jsonl", jsonl_bytes(ROWS).replace(b"\n", b"\r\n")),
    "jsonl with escapes": lambda tmp: written(tmp / "c.jsonl", "\n".join(map(json.dumps, ROWS)).encode()),
    "jsonl with a byte order mark": lambda tmp: written(tmp / "c.jsonl", b"\xef\xbb\xbf" + jsonl_bytes(ROWS)),
    "ndjson": lambda tmp: written(tmp / "c.ndjson", jsonl_bytes(ROWS)),
    "jsonl.gz": lambda tmp: written(tmp / "c.jsonl.gz", gzip.compress(jsonl_bytes(ROWS))),
    "ndjson.gz": lambda tmp: written(tmp / "c.ndjson.gz", gzip.compress(jsonl_bytes(ROWS))),
    "csv": lambda tmp: written(tmp / "c.csv", table_bytes(ROWS, ",")),
    "csv with Unix line ends": lambda tmp: written(tmp / "c.csv", table_bytes(ROWS, ",").replace(b"\r\n", b"\n")),
    "csv with a byte order mark": lambda tmp: written(tmp / "c.csv", b"\xef\xbb\xbf" + table_bytes(ROWS, ",")),
    "csv.gz": lambda tmp: written(tmp / "c.csv.gz", gzip.compress(table_bytes(ROWS, ","))),
    "tsv": lambda tmp: written(tmp / "c.tsv", table_bytes(ROWS, "\t")),
    "tsv.gz": lambda tmp: written(tmp / "c.tsv.gz", gzip.compress(table_bytes(ROWS, "\t"))),
    "parquet": lambda tmp: write_parquet(tmp / "c.parquet", ROWS),
    "folder of parquet, in the order of the names": lambda tmp: parquet_folder(tmp / "c"),
    "BEIR folder": lambda tmp: written(tmp / "c/corpus.jsonl", jsonl_bytes(ROWS)).parent,
    "packed BEIR folder": lambda tmp: written(tmp / "c/corpus.jsonl.gz", gzip.compress(jsonl_bytes(ROWS))).parent,
    "saved datasets folder": lambda tmp: save_dataset(tmp / "c", ROWS),
    "list of dicts": lambda _: ROWS,
    "generator of dicts": lambda _: (row for row in ROWS),
    "DataFrame": data_frame,
    "Dataset": dataset,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_documents(form: str, tmp_path: Path) -> None:
    assert list(read_corpus(FORMS[form](tmp_path))) == DOCUMENTS


@pytest.mark.parametrize("name", ["jsonl", "csv", "parquet", "BEIR folder"])
def test_a_path_may_be_a_string(name: str, tmp_path: Path) -> None:
    assert list(read_corpus(str(FORMS[name](tmp_path)))) == DOCUMENTS


@pytest.mark.parametrize("content", [jsonl_bytes(ROWS), b"\xef\xbb\xbf" + jsonl_bytes(ROWS)])
def test_a_dash_reads_jsonl_from_standard_input(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    assert list(read_corpus("-")) == DOCUMENTS


def test_strings_are_texts_numbered_from_zero() -> None:
    assert list(read_corpus(["a", "", "a"])) == [Document("0", "a"), Document("1", ""), Document("2", "a")]


def test_strings_need_no_field_names() -> None:
    """Options for fields speak of dicts; a string has none and stays a text with a number."""
    assert list(read_corpus(["a"], Fields(id="key", text=("body",), title="head"))) == [Document("0", "a")]


def test_an_integer_id_becomes_its_digits(tmp_path: Path) -> None:
    path = written(tmp_path / "c.jsonl", b'{"id": 0, "text": "a"}\n{"id": -12, "text": "b"}\n')
    assert [document.id for document in read_corpus(path)] == ["0", "-12"]


# --- text files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".txt", ".md", ".rst"])
def test_a_text_file_is_one_document_with_its_name_as_id(suffix: str, tmp_path: Path) -> None:
    content = "First line\r\n\nnaïve 猫\n"
    path = written(tmp_path / f"note{suffix}", content.encode())
    assert list(read_corpus(path)) == [Document(id=f"note{suffix}", text=content)]


def test_a_folder_of_text_files_is_read_to_its_depths_in_a_fixed_order(tmp_path: Path) -> None:
    for name in ["b.md", "a/z.txt", "a/deep/er/x.rst", "a.txt", "B.txt", "skipped.pdf", "a/no-suffix"]:
        written(tmp_path / name, name.encode())
    (tmp_path / "folder.txt").mkdir()  # a folder, whatever its name
    found = list(read_corpus(tmp_path))
    names = ["B.txt", "a/deep/er/x.rst", "a/z.txt", "a.txt", "b.md"]  # by parts of the path, capitals first
    assert found == [Document(id=name, text=name) for name in names]


def test_a_byte_order_mark_is_removed_from_the_first_line_only(tmp_path: Path) -> None:
    path = written(tmp_path / "note.txt", b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n")
    assert next(read_corpus(path)).text == "one\n\ufefftwo\n"


# --- csv and tsv --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_tables_come_back_with_the_lines_on_which_their_rows_begin(delimiter: str, line_end: str) -> None:
    """Random fields through Python's csv writer: quotes, delimiters and line breaks inside fields, blank lines between."""
    rng = random.Random(delimiter + line_end)
    header = ["id", "te,xt", 'o"ther']
    pieces = ["a", "é", '"', ",", "\t", "\n", "\r\n", " ", "猫"]
    if "\r" in line_end:
        pieces.append("\r")  # otherwise Python's own writer leaves it unquoted, which its own reader refuses
    text, expected = io.StringIO(newline=""), []
    writer = csv.writer(text, delimiter=delimiter, lineterminator=line_end)
    writer.writerow(header)
    for _ in range(200):
        if rng.random() < 0.2:
            text.write(line_end)
        fields = ["".join(rng.choices(pieces, k=rng.randrange(6))) for _ in header]
        if delimiter == "\t":  # a line of three fields inside a field is taken for a swallowed row, and refused
            fields = [field.replace("\t", "", max(0, field.count("\t") - 1)) for field in fields]
        line = 1 + text.getvalue().count("\n")
        expected.append((f"t, line {line}", dict(zip(header, fields, strict=True))))
        writer.writerow(fields)
    assert list(delimited_rows(io.BytesIO(text.getvalue().encode()), "t", delimiter)) == expected


@pytest.mark.parametrize("length", [131_071, 131_072, 131_073, 500_000])
def test_a_csv_field_may_be_longer_than_the_limit_of_the_csv_module(length: int, tmp_path: Path) -> None:
    before = csv.field_size_limit(131_072)
    try:
        path = written(tmp_path / "c.csv", b"id,text\n1," + b"x" * length + b"\n")
        assert [len(document.text) for document in read_corpus(path)] == [length]
    finally:
        csv.field_size_limit(before)


def test_a_csv_of_one_column_skips_blank_lines_and_keeps_quoted_empty_fields() -> None:
    assert list(delimited_rows(io.BytesIO(b'text\n\n""\na\n'), "t", ",")) == [
        ("t, line 3", {"text": ""}),
        ("t, line 4", {"text": "a"}),
    ]


# --- parquet ------------------------------------------------------------------------------------------------------


def test_parquet_rows_are_numbered_from_one_across_batches(tmp_path: Path) -> None:
    rows = [{"id": str(number), "text": f"text {number}"} for number in range(2100)]
    documents = read_corpus(write_parquet(tmp_path / "c.parquet", [*rows, {"id": "2100", "text": None}]))
    for row in rows:
        assert next(documents) == Document(id=row["id"], text=row["text"])
    with pytest.raises(DataError, match=r"c\.parquet, row 2101: the field 'text' is null"):
        next(documents)


# --- folders ------------------------------------------------------------------------------------------------------


def test_a_folder_that_holds_several_forms_is_read_in_a_fixed_order_of_precedence(tmp_path: Path) -> None:
    folder = save_dataset(tmp_path / "c", [{"id": "saved", "text": ""}])
    written(folder / "corpus.jsonl", b'{"id": "plain", "text": ""}')
    written(folder / "corpus.jsonl.gz", gzip.compress(b'{"id": "packed", "text": ""}'))
    written(folder / "dataset_dict.json", b'{"splits": ["train"]}')
    write_parquet(folder / "c.parquet", [{"id": "parquet", "text": ""}])
    written(folder / "note.txt", b"")

    def first_id_without(*names: str) -> str:
        for name in names:
            (folder / name).unlink()
        return next(read_corpus(folder)).id

    assert first_id_without() == "plain"
    assert first_id_without("corpus.jsonl") == "packed"
    with pytest.raises(UsageError, match="holds several splits"):
        first_id_without("corpus.jsonl.gz")
    assert first_id_without("dataset_dict.json") == "saved"
    assert first_id_without("state.json") == "parquet"
    assert first_id_without("c.parquet") == "note.txt"
    with pytest.raises(UsageError, match="holds no corpus"):
        first_id_without("note.txt")


def test_a_folder_of_several_splits_is_refused_with_their_names(tmp_path: Path) -> None:
    import datasets

    split = datasets.Dataset.from_list([{"id": "1", "text": "a"}])
    datasets.DatasetDict({"train": split, "dev": split}).save_to_disk(str(tmp_path / "c"))
    with pytest.raises(UsageError) as error:
        read_corpus(tmp_path / "c")
    assert str(error.value) == (
        f"{tmp_path}/c holds several splits (dev, train); give the folder of one, for example {tmp_path}/c/train."
    )
    assert list(read_corpus(tmp_path / "c/dev")) == [Document("1", "a")]


# --- the hub ------------------------------------------------------------------------------------------------------


class Hub:
    """Stands in for the two functions of `datasets` that reach the hub, and remembers how they were called."""

    def __init__(self, splits: list[str] | Exception) -> None:
        self.splits, self.asked, self.loaded = splits, [], []

    def get_dataset_split_names(self, *arguments: Any) -> list[str]:
        self.asked.append(arguments)
        if isinstance(self.splits, Exception):
            raise self.splits
        return self.splits

    def load_dataset(self, *arguments: Any, **options: Any) -> Iterator[dict[str, Any]]:
        self.loaded.append((arguments, options))
        return iter(ROWS)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str] | Exception], Hub]:
    import datasets

    def install(splits: list[str] | Exception) -> Hub:
        fake = Hub(splits)
        monkeypatch.setattr(datasets, "get_dataset_split_names", fake.get_dataset_split_names)
        monkeypatch.setattr(datasets, "load_dataset", fake.load_dataset)
        return fake

    return install


@pytest.mark.parametrize(
    ("name", "splits", "chosen"),
    [
        ("hf:own/set", ["corpus"], "corpus"),
        ("hf:own/set", ["test", "train"], "train"),
        ("hf:own/set:test", ["test", "train"], "test"),
        ("hf:own/set:corpus", ["corpus"], "corpus"),
    ],
)
def test_a_hub_dataset_is_streamed_from_the_chosen_split(
    name: str, splits: list[str], chosen: str, hub: Callable[..., Hub]
) -> None:
    fake = hub(splits)
    assert list(read_corpus(name)) == DOCUMENTS
    assert fake.asked == [("own/set",)]
    assert fake.loaded == [(("own/set",), {"split": chosen, "streaming": True})]


@pytest.mark.parametrize(("name", "asked"), [("hf:own/set:dev", "dev"), ("hf:own/set", "train")])
def test_an_unknown_split_of_a_hub_dataset_lists_the_known(name: str, asked: str, hub: Callable[..., Hub]) -> None:
    fake = hub(["test", "validation"])
    with pytest.raises(UsageError) as error:
        read_corpus(name)
    assert str(error.value) == (
        f"hf:own/set has no split '{asked}'; it has test, validation: add one as hf:own/set:SPLIT."
    )
    assert fake.loaded == []


@pytest.mark.parametrize(
    "failure", [ConnectionError("no route\nmore lines"), ValueError("no route"), OSError("no route")]
)
def test_a_failing_hub_is_one_sentence(failure: Exception, hub: Callable[..., Hub]) -> None:
    hub(failure)
    with pytest.raises(UsageError) as error:
        read_corpus("hf:own/set")
    assert str(error.value) == "hf:own/set cannot be read from the hub (no route); check name and network."


def test_a_bad_row_of_a_hub_dataset_is_named_by_its_number(
    hub: Callable[..., Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    hub(["train"])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: [{"id": 1, "text": "a"}, {"id": 2}])
    with pytest.raises(DataError, match=r"^hf:own/set, row 2: the field 'text' is missing"):
        list(read_corpus("hf:own/set"))


# --- streaming ----------------------------------------------------------------------------------------------------

GOOD_JSON, BAD_JSON = b'{"id": 1, "text": "a"}\n{"id": 2, "text": "b"}\n', b"broken\n"
GOOD_CSV, BAD_CSV = b"id,text\n1,a\n2,b\n", b"3\n"
BROKEN_AFTER_TWO: dict[str, Callable[[Path], Any]] = {
    "jsonl": lambda tmp: written(tmp / "c.jsonl", GOOD_JSON + BAD_JSON),
    "jsonl.gz": lambda tmp: written(tmp / "c.jsonl.gz", gzip.compress(GOOD_JSON + BAD_JSON)),
    "csv": lambda tmp: written(tmp / "c.csv", GOOD_CSV + BAD_CSV),
    "tsv": lambda tmp: written(tmp / "c.tsv", (GOOD_CSV + BAD_CSV).replace(b",", b"\t")),
    "BEIR folder": lambda tmp: written(tmp / "c/corpus.jsonl", GOOD_JSON + BAD_JSON).parent,
    "wrong encoding": lambda tmp: written(tmp / "c.jsonl", GOOD_JSON + b"\xff\n"),
    "rows": lambda _: [{"id": 1, "text": "a"}, {"id": "2", "text": "b"}, 3],
    "duplicate id": lambda _: [{"id": 1, "text": "a"}, {"id": "2", "text": "b"}, {"id": "1", "text": "c"}],
}


@pytest.mark.parametrize("form", BROKEN_AFTER_TWO)
def test_what_stands_before_a_broken_row_comes_first(form: str, tmp_path: Path) -> None:
    documents = read_corpus(BROKEN_AFTER_TWO[form](tmp_path))
    assert [next(documents), next(documents)] == [Document("1", "a"), Document("2", "b")]
    with pytest.raises(DataError):
        next(documents)


@pytest.mark.parametrize("form", BROKEN_AFTER_TWO)
@pytest.mark.parametrize("limit", [1, 2])
def test_a_limit_stops_before_the_broken_row(form: str, limit: int, tmp_path: Path) -> None:
    documents = read_corpus(BROKEN_AFTER_TWO[form](tmp_path), limit=limit)
    assert list(documents) == [Document("1", "a"), Document("2", "b")][:limit]


def test_a_limit_beyond_the_broken_row_meets_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 3"):
        list(read_corpus(BROKEN_AFTER_TWO["jsonl"](tmp_path), limit=3))


@pytest.mark.parametrize("limit", [3, 4, None])
def test_a_limit_of_all_rows_or_more_gives_all(limit: int | None) -> None:
    assert len(list(read_corpus(["a", "b", "c"], limit=limit))) == 3


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_under_one_is_refused_at_the_call(limit: int) -> None:
    with pytest.raises(UsageError) as error:
        read_corpus(["a"], limit=limit)
    assert str(error.value) == f"limit={limit} was asked for; expected at least 1."


def test_rows_are_taken_from_an_iterable_one_at_a_time() -> None:
    taken = []

    def rows() -> Iterator[str]:
        for text in "abc":
            taken.append(text)
            yield text

    documents = read_corpus(rows())
    assert taken == []
    next(documents)
    assert taken == ["a"]
    assert len(list(read_corpus(rows(), limit=2))) == 2
    assert taken == ["a", "a", "b"]


def test_standard_input_is_read_no_further_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO(GOOD_JSON + BAD_JSON)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))
    assert len(list(read_corpus("-", limit=2))) == 2
    assert stream.tell() == len(GOOD_JSON)


def test_text_files_are_opened_one_at_a_time(tmp_path: Path) -> None:
    written(tmp_path / "a.txt", b"good")
    written(tmp_path / "b.txt", b"good\nbad: \xe9")
    documents = read_corpus(tmp_path)
    assert next(documents) == Document("a.txt", "good")
    with pytest.raises(DataError, match=r"/b\.txt, line 2: byte 0xe9 \(the 6th of the line\)"):
        next(documents)


def test_jsonl_rows_carry_their_line_numbers_over_blank_lines() -> None:
    lines = b'\n{"a": 1}\n   \n\t\r\n{"a": 2}'
    assert list(jsonl_rows(io.BytesIO(lines), "c")) == [("c, line 2", {"a": 1}), ("c, line 5", {"a": 2})]


def test_an_empty_name_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("a text")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="An empty name is not there"):
        read_corpus("")


def test_hidden_folders_are_not_a_corpus_and_parquet_lies_where_the_hub_puts_it(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "d.txt").write_text("hidden")
    (tmp_path / "README.md").write_text("about")
    assert [document.id for document in read_corpus(tmp_path)] == ["README.md"]
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "data").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"id": ["a"], "text": ["cat"]}), tmp_path / "data" / "train.parquet")
    assert [document.id for document in read_corpus(tmp_path)] == ["a"]


def test_one_text_field_may_be_given_as_a_string() -> None:
    assert next(read_corpus([{"id": 1, "body": "cat"}], Fields(text="body"))).text == "cat"  # type: ignore[arg-type]
