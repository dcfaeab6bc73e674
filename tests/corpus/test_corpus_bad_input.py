"""Every way in which a corpus can be wrong: the message opens with the file and the line, and says what came."""

from __future__ import annotations

import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from embedkit.corpus import Fields, read_corpus
from embedkit.errors import DataError, UsageError
from embedkit.types import Document

USUAL = Fields()
GOOD = '{"_id": "d1", "text": "fine"}'


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def refusal(source: Any, fields: Fields = USUAL, kind: type[Exception] = DataError) -> str:
    """The message with which a source is refused."""
    with pytest.raises(kind) as error:
        list(read_corpus(source, fields))
    assert type(error.value) is kind
    return str(error.value)


# --- rows ---------------------------------------------------------------------------------------------------------

NAME_THE_ID = "; name the field with --id FIELD, or number the rows with --id row."
ANOTHER_TEXT = "; fill it, or name another with --text FIELD."
ONE_LINE_ID = " is empty or holds a line break; give each row a one-line id."
ID_TYPE = "; expected a string, a whole number or a UUID."
OF_ITS_OWN = " came before; give each row an id of its own, or use --id row."
BAD_ROWS = [
    # id
    ('{"text": "a"}', "no id (looked for _id, id, docid)" + NAME_THE_ID),
    ('{"_id": null, "text": "a"}', "no id (looked for _id, id, docid)" + NAME_THE_ID),
    ('{"_id": NaN, "text": "a"}', "no id (looked for _id, id, docid)" + NAME_THE_ID),
    ('{"_id": true, "text": "a"}', "the id is a bool (True)" + ID_TYPE),
    ('{"_id": false, "text": "a"}', "the id is a bool (False)" + ID_TYPE),
    ('{"_id": 1.0, "text": "a"}', "the id is a float (1.0)" + ID_TYPE),
    ('{"_id": ["x"], "text": "a"}', "the id is a list (['x'])" + ID_TYPE),
    ('{"_id": {}, "text": "a"}', "the id is a dict ({})" + ID_TYPE),
    ('{"_id": "", "text": "a"}', "the id ''" + ONE_LINE_ID),
    (r'{"_id": "a\nb", "text": "a"}', r"the id 'a\nb'" + ONE_LINE_ID),
    (r'{"_id": "a\r", "text": "a"}', r"the id 'a\r'" + ONE_LINE_ID),
    (r'{"_id": "\u0000", "text": "a"}', r"the id '\x00'" + ONE_LINE_ID),
    (r'{"_id": "a\ud800", "text": "a"}', r"the field 'id' holds half of a character ('a\ud800'); mend or remove it."),
    ('{"_id": "d1", "text": "a"}', "the id 'd1'" + OF_ITS_OWN),
    # text
    ('{"_id": "d2"}', "the field 'text' is missing (the row has '_id')" + ANOTHER_TEXT),
    ("{}", "the field 'text' is missing (the row has none)" + ANOTHER_TEXT),
    ('{"body": "", "_id": 2}', "the field 'text' is missing (the row has 'body', '_id')" + ANOTHER_TEXT),
    ('{"_id": "d2", "text": null}', "the field 'text' is null" + ANOTHER_TEXT),
    ('{"_id": "d2", "text": NaN}', "the field 'text' is null" + ANOTHER_TEXT),
    ('{"_id": "d2", "text": 5}', "the field 'text' is a int (5); expected a string."),
    ('{"_id": "d2", "text": 0.0}', "the field 'text' is a float (0.0); expected a string."),
    ('{"_id": "d2", "text": false}', "the field 'text' is a bool (False); expected a string."),
    ('{"_id": "d2", "text": ["a"]}', "the field 'text' is a list (['a']); expected a string."),
    (f'{{"_id": "d2", "text": {"7" * 41}}}', f"the field 'text' is a int ({'7' * 41}); expected a string."),
    (
        r'{"_id": "d2", "text": "a\udfff"}',
        r"the field 'text' holds half of a character ('a\udfff'); mend or remove it.",
    ),
    # title
    ('{"_id": "d2", "text": "a", "title": 5}', "the field 'title' is a int (5); expected a string."),
    ('{"_id": "d2", "text": "a", "title": false}', "the field 'title' is a bool (False); expected a string."),
    (
        r'{"_id": "d2", "text": "a", "title": "\ud83d"}',
        r"the field 'title' holds half of a character ('\ud83d'); mend or remove it.",
    ),
    # JSON
    ("[]", "a JSON list came, one object a line was expected."),
    ('"d2"', "a JSON str came, one object a line was expected."),
    ("5", "a JSON int came, one object a line was expected."),
    ("null", "a JSON NoneType came, one object a line was expected."),
]


@pytest.mark.parametrize(("bad", "message"), BAD_ROWS, ids=[bad[:40] for bad, _ in BAD_ROWS])
def test_a_bad_row_is_named_by_file_and_line(bad: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "c.jsonl", f"{GOOD}\n\n{bad}\n")
    assert refusal(path) == f"{path}, line 3: {message}"


@pytest.mark.parametrize(
    "bad",
    [
        "{",
        '{"_id": "d2", "text": "a"',
        '{"_id": "d2"} {}',
        "{'_id': 1}",
        "text",
        "{" * 100_000,
        '{"a":' * 100_000,
        "\ufeff{}",
    ],
    ids=lambda bad: bad[:25],
)
def test_a_line_that_is_no_json_is_named_by_file_and_line(bad: str, tmp_path: Path) -> None:
    path = written(tmp_path / "c.jsonl", f"{GOOD}\n{bad}\n")
    with pytest.raises((ValueError, RecursionError)) as error:
        json.loads(f"{bad}\n")
    assert refusal(path) == f"{path}, line 2: not valid JSON ({error.value}); expected one object a line."


def test_a_number_with_too_many_digits_is_named_by_file_and_line(tmp_path: Path) -> None:
    path = written(tmp_path / "c.jsonl", f'{GOOD}\n{{"_id": "d2", "text": "a", "n": {"7" * 5000}}}\n')
    with pytest.raises(DataError, match="line 2"):
        list(read_corpus(path))


@pytest.mark.parametrize(
    "other", [r'"a": "\ud800"', r'"\ud800": 1', r'"a": ["\ud800"]', r'"metadata": {"a": "\ud800"}']
)
def test_half_a_character_in_the_metadata_is_named_by_file_and_line(other: str, tmp_path: Path) -> None:
    path = written(tmp_path / "c.jsonl", f'{GOOD}\n{{"_id": "d2", "text": "a", {other}}}\n')
    assert refusal(path).startswith(f"{path}, line 2: ")


def test_an_array_is_no_id() -> None:
    assert refusal([{"id": np.array([1, 2]), "text": "a"}]).startswith("the rows, row 1: the id is a ndarray")


@pytest.mark.parametrize(
    ("row", "fields", "message"),
    [
        ({"id": "a", "text": "b"}, Fields(id="key"), "no id (looked for key)" + NAME_THE_ID),
        ({"id": "a", "key": None, "text": "b"}, Fields(id="key"), "no id (looked for key)" + NAME_THE_ID),
        ({"id": "a", "_id": None, "text": "b"}, Fields(), "no id (looked for _id, id, docid)" + NAME_THE_ID),
        (
            {"id": "a", "text": "b"},
            Fields(text=("text", "body")),
            "the field 'body' is missing (the row has 'id', 'text')" + ANOTHER_TEXT,
        ),
        (
            {"id": "a", "text": "b"},
            Fields(title="head"),
            "the field 'head' is missing (the row has 'id', 'text'); fill it, or name another with --title FIELD.",
        ),
        (
            {"id": "a", "text": "b", "head": None},
            Fields(title="head"),
            "the field 'head' is null; fill it, or name another with --title FIELD.",
        ),
        (
            {"id": "a", "text": b"\xff"},
            Fields(),
            "the field 'text' holds bytes that are no text in UTF-8; convert them, or use --leave-out text.",
        ),
        (5, Fields(), "a int came, a dict or a string was expected."),
        (None, Fields(), "a NoneType came, a dict or a string was expected."),
        (["a"], Fields(), "a list came, a dict or a string was expected."),
    ],
)
def test_a_bad_row_of_an_iterable_is_named_by_its_number(row: Any, fields: Fields, message: str) -> None:
    good = {"id": "1", "key": "1", "text": "a", "body": "a", "head": "a"}
    assert refusal([good, row], fields) == f"the rows, row 2: {message}"


@pytest.mark.parametrize(("first", "second"), [("1", 1), (1, "1"), (1, 1), ("x", "x"), (np.int64(1), "1")])
def test_the_same_id_twice_is_refused_whether_number_or_string(first: Any, second: Any) -> None:
    rows = [{"id": first, "text": "a"}, {"id": "between", "text": "b"}, {"id": second, "text": "c"}]
    assert refusal(rows) == f"the rows, row 3: the id '{second}'" + OF_ITS_OWN


def test_ids_that_differ_only_in_case_space_or_form_are_different() -> None:
    ids = ["a", "A", "a ", "é", "e\u0301", "01", 1]
    assert [document.id for document in read_corpus({"id": i, "text": ""} for i in ids)] == [str(i) for i in ids]


def test_a_bad_row_of_a_table_is_named_by_its_number() -> None:
    import pandas

    frame = pandas.DataFrame({"id": [1, 2], "text": ["a", None]}, index=[10, 20])
    assert refusal(frame) == "the table, row 2: the field 'text' is null" + ANOTHER_TEXT


def test_a_bad_row_of_a_dataset_is_named_by_its_number() -> None:
    import datasets

    rows = datasets.Dataset.from_list([{"id": 1, "text": "a"}, {"id": 1, "text": "b"}])
    assert refusal(rows) == "the rows, row 2: the id '1'" + OF_ITS_OWN


def test_a_bad_row_of_a_parquet_file_is_named_by_file_and_row(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "c.parquet", [{"id": "1", "text": "a"}, {"id": "", "text": "b"}])
    assert refusal(path) == f"{path}, row 2: the id ''" + ONE_LINE_ID


def test_a_bad_row_of_standard_input_is_named_by_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(f"{GOOD}\n\n{GOOD}\n".encode())))
    assert refusal("-") == "standard input, line 3: the id 'd1'" + OF_ITS_OWN


def test_broken_json_on_standard_input_is_named_by_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\n{\n")))
    assert refusal("-").startswith("standard input, line 2: not valid JSON (")


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz"])
def test_broken_json_in_a_folder_is_named_by_file_and_line(form: str, tmp_path: Path) -> None:
    content = f"{GOOD}\n{{\n".encode()
    path = written(tmp_path / f"corpus.{form}", gzip.compress(content) if form.endswith("gz") else content)
    assert refusal(tmp_path).startswith(f"{path}, line 2: not valid JSON (")


def test_a_bad_row_of_a_beir_folder_is_named_by_file_and_line(tmp_path: Path) -> None:
    path = written(tmp_path / "corpus.jsonl", f"{GOOD}\n\n{GOOD}\n")
    assert refusal(tmp_path).startswith(f"{path}, line 3: the id 'd1' came before")


def test_a_bad_row_of_a_folder_of_parquet_is_named_by_file_and_row(tmp_path: Path) -> None:
    write_parquet(tmp_path / "0.parquet", [{"id": "1", "text": "a"}, {"id": "2", "text": "b"}])
    path = write_parquet(tmp_path / "1.parquet", [{"id": "3", "text": "a"}, {"id": "1", "text": "b"}])
    assert refusal(tmp_path).startswith(f"{path}, row 2: the id '1' came before")


# --- encoding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["c.jsonl", "c.csv", "c.tsv", "c.txt", "c.jsonl.gz"])
@pytest.mark.parametrize(
    ("line", "byte", "position"),
    [
        (b"abcd\xe9f", "0xe9", 5),
        ("äöü, abc".encode() + "ß".encode("latin-1"), "0xdf", 12),
        ("naïve ".encode() + b"\xff", "0xff", 8),
    ],
)
def test_a_byte_that_is_not_utf8_is_named_by_line_value_and_position(
    name: str, line: bytes, byte: str, position: int, tmp_path: Path
) -> None:
    head = f"{GOOD}\n\n" if ".json" in name else "id\n\n"
    content = head.encode() + line + b"\n"
    path = written(tmp_path / name, gzip.compress(content) if name.endswith(".gz") else content)
    assert refusal(path) == (
        f"{path}, line 3: byte {byte} (the {position}th of the line) is not UTF-8; "
        "convert the file first, for example with: iconv -f WINDOWS-1252 -t UTF-8."
    )


@pytest.mark.parametrize("suffix", [".jsonl", ".tsv", ".txt", ".jsonl.gz"])
@pytest.mark.parametrize(
    ("codec", "named"),
    [
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16"),
        ("utf-16-be", "UTF-16"),
        ("utf-32", "UTF-32"),
        ("utf-32-be", "UTF-32"),
    ],
)
def test_utf16_and_utf32_are_told_by_their_first_bytes(codec: str, named: str, suffix: str, tmp_path: Path) -> None:
    content = GOOD.encode(codec)
    path = written(tmp_path / f"c{suffix}", gzip.compress(content) if suffix.endswith(".gz") else content)
    assert refusal(path) == (
        f"{path}, line 1: this is {named}, not UTF-8; convert the file first, for example with: iconv -f {named} -t UTF-8."
    )


@pytest.mark.parametrize("name", ["c.csv", "c.tsv", "c.jsonl"])
def test_carriage_returns_alone_are_told_as_such(name: str, tmp_path: Path) -> None:
    lines = [GOOD, GOOD] if name == "c.jsonl" else ["id\ttext", "a\tone"]
    path = written(tmp_path / name, "\r".join(lines).replace("\t", "," if name == "c.csv" else "\t") + "\r")
    message = refusal(path)
    assert message.startswith(f"{path}, line 1: ")
    assert message.endswith(r"each line ended by a line feed, as tr '\r' '\n' writes it.")


def test_the_byte_of_a_text_file_is_named_in_its_own_file(tmp_path: Path) -> None:
    written(tmp_path / "a.txt", "fine")
    path = written(tmp_path / "deep/b.txt", b"one\ntwo \xfc\n")
    assert refusal(tmp_path).startswith(f"{path}, line 2: byte 0xfc (the 5th of the line)")


def test_a_file_name_that_can_be_no_id_is_named_by_the_number_of_the_file(tmp_path: Path) -> None:
    written(tmp_path / "a.txt", "fine")
    written(tmp_path / "b\n.txt", "fine, but for its name")
    assert refusal(tmp_path) == f"{tmp_path}, row 2: the id 'b\\n.txt'" + ONE_LINE_ID


# --- nothing there ------------------------------------------------------------------------------------------------

EMPTY: dict[str, tuple[str, bytes]] = {
    "empty jsonl": ("c.jsonl", b""),
    "only blank lines": ("c.jsonl", b"\n  \n\r\n"),
    "only a byte order mark": ("c.jsonl", b"\xef\xbb\xbf"),
    "empty ndjson": ("c.ndjson", b""),
    "empty jsonl.gz": ("c.jsonl.gz", gzip.compress(b"")),
    "empty csv": ("c.csv", b""),
    "csv with a header only": ("c.csv", b"id,text\n"),
    "csv with a header and blank lines": ("c.csv", b"id,text\r\n\r\n\r\n"),
    "empty tsv": ("c.tsv", b""),
    "tsv with one row and no header": ("c.tsv", b"d1\tA cat\n"),
}


@pytest.mark.parametrize("form", EMPTY)
def test_a_file_without_rows_is_refused(form: str, tmp_path: Path) -> None:
    name, content = EMPTY[form]
    path = written(tmp_path / name, content)
    assert refusal(path) == f"{path} is empty; expected at least one row."


def test_a_source_without_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import pandas
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "c.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"id": pyarrow.array([], "string"), "text": pyarrow.array([], "string")}), path
    )
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\n")))
    sources = {
        "the rows": [[], iter(()), datasets.Dataset.from_list([])],
        "the table": [pandas.DataFrame({"id": [], "text": []})],
        "standard input": ["-"],
        str(path): [path],
    }
    for name, empty in sources.items():
        for source in empty:
            assert refusal(source) == f"{name} is empty; expected at least one row."


def test_an_empty_text_file_is_a_document_all_the_same(tmp_path: Path) -> None:
    path = written(tmp_path / "c.txt", b"")
    assert [document.text for document in read_corpus(path)] == [""]


def test_an_empty_folder_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    written(tmp_path / "paper.pdf", "x")
    written(tmp_path / ".git/notes.txt", "hidden")
    assert refusal(tmp_path, kind=UsageError) == (
        f"{tmp_path} holds no corpus: looked for corpus.jsonl (BEIR), state.json (a saved datasets folder), *.parquet, "
        "text files (.txt, .md, .rst) and images (.jpg, .jpeg, .png, .webp, .gif, .bmp, .tif, .tiff)."
    )


@pytest.mark.parametrize("name", ["c.jsonl", "deep/c.csv", "deep/c.tsv"])
def test_a_table_in_a_folder_is_not_passed_over_for_its_readme(name: str, tmp_path: Path) -> None:
    written(tmp_path / "README.md", "about the table")
    path = written(tmp_path / name, GOOD)
    assert refusal(tmp_path, kind=UsageError) == (
        f"{tmp_path} holds {path.name} and is no BEIR folder; name the file itself: {path}."
    )


def test_rows_that_a_quotation_mark_joins_are_not_lost_in_silence(tmp_path: Path) -> None:
    path = written(tmp_path / "c.tsv", 'id\ttext\n1\t"He said hi\n2\tfoo"\n3\tbar\n')
    assert refusal(path).startswith(f"{path}, lines 2 to 3: a quotation mark joins several rows into one; ")


def test_metadata_that_json_cannot_hold_is_refused() -> None:
    for value in (float("inf"), [1, float("-inf")], {"a": float("inf")}):
        assert refusal([{"id": 1, "text": "a", "x": value}]).startswith("the rows, row 1: the field 'x' is infinite")


def test_documents_are_checked_like_other_rows() -> None:
    for document, reason in (
        (Document("a\nb", "text"), "the id 'a\\nb' is empty or holds a line break"),
        (Document("a", "\ud800"), "the field 'text' holds half of a character"),
        (Document("a", "b", metadata={"s": {1, 2}}), "the field 'metadata' is a set"),
    ):
        assert refusal([document]).startswith(f"the rows, row 1: {reason}")


@pytest.mark.parametrize("name", ["missing.jsonl", "missing", "missing/c.jsonl"])
def test_a_path_that_is_not_there_is_refused_at_the_call(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        read_corpus(tmp_path / name)
    assert str(error.value) == (
        f"{tmp_path / name} is not there; expected a file, a folder, '-' for standard input, or hf:NAME."
    )


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("c.pdf", "'.pdf'"),
        ("c", "'nothing'"),
        ("c.xlsx.gz", "'.xlsx'"),
        ("c.gz", "'nothing'"),
        ("c.json", "'.json'"),
        ("c.parquet.gz", "'.parquet'"),
    ],
)
def test_an_unknown_suffix_is_refused_with_the_known(name: str, suffix: str, tmp_path: Path) -> None:
    path = written(tmp_path / name, "x")
    assert refusal(path, kind=UsageError) == (
        f"{path}: files ending in {suffix} are not read; "
        "expected .jsonl, .ndjson, .csv, .tsv, .txt, .md, .rst, any of these as .gz, or .parquet."
    )


def test_a_packed_text_file_is_read_as_promised(tmp_path: Path) -> None:
    path = written(tmp_path / "c.txt.gz", gzip.compress("naïve\n".encode()))
    assert [document.text for document in read_corpus(path)] == ["naïve\n"]


@pytest.mark.parametrize(("source", "kind"), [(None, "NoneType"), (5, "int"), ({"id": "1", "text": "a"}, "dict")])
def test_what_holds_no_rows_is_refused_by_its_type(source: Any, kind: str) -> None:
    assert refusal(source, kind=UsageError) == (
        f"A {kind} came as corpus; expected a path, rows (dicts or strings), a DataFrame or a Dataset."
    )


# --- csv and tsv --------------------------------------------------------------------------------------------------

QUOTE = "; quote a text that holds the delimiter or a line break."
BAD_TABLES = [
    ("too many columns", "id,text\n1,a\n2,b,c\n", "line 3: 3 columns came, the header has 2" + QUOTE),
    ("too few columns", "id,text\n1,a\n2\n", "line 3: 1 columns came, the header has 2" + QUOTE),
    ("in the first row", "id,text,year\n1,a\n", "line 2: 2 columns came, the header has 3" + QUOTE),
    (
        "after a quoted line break",
        'id,text\n1,"two\nlines"\n2,b,c\n',
        "line 4: 3 columns came, the header has 2" + QUOTE,
    ),
    ("at a quoted line break", 'id,text\n1,a\n2,"two\nlines",c\n', "line 3: 3 columns came, the header has 2" + QUOTE),
    ("after a blank line", "id,text\n\n1,a\n\n\n2\n", "line 6: 1 columns came, the header has 2" + QUOTE),
    ("after a header of two lines", '"i\nd",text\n1\n', "line 3: 1 columns came, the header has 2" + QUOTE),
    (
        "a name twice",
        "id,text,id\n1,a,2\n",
        "line 1: the header ['id', 'text', 'id'] names a column twice; give each a name of its own.",
    ),
    ("id missing", "key,text\n1,a\n", "line 2: no id (looked for _id, id, docid)" + NAME_THE_ID),
    ("id empty", "id,text\n1,a\n,b\n", "line 3: the id ''" + ONE_LINE_ID),
    ("id of two lines", 'id,text\n1,a\n"2\n3",b\n', r"line 3: the id '2\n3'" + ONE_LINE_ID),
    ("id twice after a quoted line break", 'id,text\n1,"two\nlines"\n1,a\n', "line 4: the id '1'" + OF_ITS_OWN),
    ("text missing", "id,body\n1,a\n", "line 2: the field 'text' is missing (the row has 'id', 'body')" + ANOTHER_TEXT),
]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz"])
@pytest.mark.parametrize(("content", "message"), [row[1:] for row in BAD_TABLES], ids=[row[0] for row in BAD_TABLES])
def test_a_bad_table_is_named_by_file_and_line(suffix: str, content: str, message: str, tmp_path: Path) -> None:
    data = (content.replace(",", "\t") if suffix == ".tsv" else content).encode()
    path = written(tmp_path / f"c{suffix}", gzip.compress(data) if suffix.endswith(".gz") else data)
    assert refusal(path) == f"{path}, {message}"


@pytest.mark.parametrize(
    ("content", "line", "what"),
    [
        ('id,text\n1,a\n2,"open\n3,c\n', 3, "unexpected end of data"),
        ('id,text\n1,a\n2,"a"b\n3,c\n', 3, "',' expected after '\"'"),
        ('id,text\n1,"two\nlines"\n2,"a"b\n', 4, "',' expected after '\"'"),
        ('"id,text\n', 1, "unexpected end of data"),
    ],
)
def test_an_unbalanced_quote_is_named_by_the_line_where_its_record_begins(
    content: str, line: int, what: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "c.csv", content)
    assert refusal(path) == (
        f'{path}, line {line}: {what}; write a quotation mark inside quotes twice (""), as spreadsheets do.'
    )


def test_a_tsv_without_header_says_what_it_took_for_the_names(tmp_path: Path) -> None:
    path = written(tmp_path / "c.tsv", "d1\tA cat\nd2\tA dog\n")
    assert refusal(path) == f"{path}, line 2: the field 'text' is missing (the row has 'd1', 'A cat')" + ANOTHER_TEXT


# --- damaged files ------------------------------------------------------------------------------------------------

JSONL = "".join(f'{{"id": {n}, "text": "text {n * n}"}}\n' for n in range(500)).encode()
CSV = b"id,text\n" + b"".join(b"%d,text %d\n" % (n, n * n) for n in range(500))
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "half of it": lambda packed: packed[: len(packed) // 2],
    "without its last byte": lambda packed: packed[:-1],
    "without its checksum": lambda packed: packed[:-8],
    "its header alone": lambda packed: packed[:10],
    "another checksum": lambda packed: packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:],
    "other bytes at its start": lambda packed: packed[:10] + b"\xff" * 50 + packed[60:],
    "other bytes inside": lambda packed: packed[:200] + b"\xff" * 50 + packed[250:],
    "not packed at all": gzip.decompress,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("name", "content"), [("c.jsonl.gz", JSONL), ("c.csv.gz", CSV), ("corpus.jsonl.gz", JSONL)])
def test_a_damaged_gzip_file_is_named(damage: str, name: str, content: bytes, tmp_path: Path) -> None:
    path = written(tmp_path / name, DAMAGES[damage](gzip.compress(content, mtime=0)))
    with pytest.raises((EOFError, OSError, zlib.error)) as error, gzip.open(path) as stream:
        stream.read()
    assert refusal(tmp_path if name.startswith("corpus") else path) == (
        f"{path} is not a whole gzip file ({error.value}); fetch or pack it again."
    )


@pytest.mark.parametrize(("name", "content"), [("c.jsonl.gz", JSONL), ("c.csv.gz", CSV)])
def test_the_undamaged_gzip_file_is_read_whole(name: str, content: bytes, tmp_path: Path) -> None:
    path = written(tmp_path / name, gzip.compress(content, mtime=0))
    assert len(list(read_corpus(path))) == 500


@pytest.fixture
def parquet_bytes(tmp_path: Path) -> bytes:
    return write_parquet(
        tmp_path / "whole.parquet", [{"id": str(n), "text": f"text {n}"} for n in range(100)]
    ).read_bytes()


@pytest.mark.parametrize(
    "keep",
    [lambda n: 0, lambda n: 1, lambda n: n // 2, lambda n: n - 1],
    ids=["nothing", "a byte", "half", "all but a byte"],
)
@pytest.mark.parametrize("as_folder", [False, True])
def test_a_cut_parquet_file_is_named(
    keep: Callable[[int], int], as_folder: bool, parquet_bytes: bytes, tmp_path: Path
) -> None:
    import pyarrow
    import pyarrow.parquet

    path = written(tmp_path / "cut/c.parquet", parquet_bytes[: keep(len(parquet_bytes))])
    with pytest.raises(pyarrow.ArrowInvalid) as error:
        pyarrow.parquet.read_metadata(path)
    assert refusal(path.parent if as_folder else path) == (
        f"{path} is not a whole parquet file ({error.value}); write it again."
    )


def test_a_parquet_file_with_damaged_pages_is_named(parquet_bytes: bytes, tmp_path: Path) -> None:
    path = written(tmp_path / "c.parquet", parquet_bytes[:8] + b"\xff" * 200 + parquet_bytes[208:])
    assert refusal(path).startswith(f"{path} is not a whole parquet file (")


def test_parquet_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    texts = pyarrow.array([b"fine", b"caf\xe9"]).view("string")
    path = tmp_path / "c.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"id": ["1", "2"], "text": texts}), path)
    assert refusal(path).startswith(f"{path}")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    import datasets

    rows = [{"id": "1", "text": "a"}, {"id": "1", "text": "b"}]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


@pytest.mark.parametrize("keep", [None, 0.0, 0.5, 0.99], ids=["gone", "empty", "half", "nearly whole"])
def test_a_saved_datasets_folder_with_a_cut_file_is_named(keep: float | None, saved: Path) -> None:
    (file,) = saved.glob("*.arrow")
    content = file.read_bytes()
    file.unlink()
    if keep is not None:
        file.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DataError) as error:
        read_corpus(saved)
    assert str(error.value).startswith(f"{saved} is not a whole datasets folder (")
    assert str(error.value).endswith("); save it again.")


@pytest.mark.parametrize("content", ["", "{"])
def test_a_saved_datasets_folder_with_a_damaged_state_is_named(content: str, saved: Path) -> None:
    written(saved / "state.json", content)
    with pytest.raises(json.JSONDecodeError) as error:
        json.loads(content)
    assert refusal(saved) == f"{saved} is not a whole datasets folder ({error.value}); save it again."


def test_a_saved_datasets_folder_with_an_empty_state_is_named(saved: Path) -> None:
    written(saved / "state.json", "{}")
    assert refusal(saved).startswith(f"{saved} is not a whole datasets folder (")


def test_a_bad_row_of_a_saved_datasets_folder_is_named_by_its_number(saved: Path) -> None:
    assert refusal(saved) == f"{saved}, row 2: the id '1'" + OF_ITS_OWN


def test_a_hub_that_fails_without_a_word_is_still_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(_: str) -> None:
        raise ConnectionError

    monkeypatch.setattr(datasets, "get_dataset_split_names", fail)
    assert refusal("hf:own/set", kind=UsageError).startswith("hf:own/set cannot be read from the hub")


def test_a_nested_name_that_is_no_text_is_reported_under_its_field(tmp_path: Path) -> None:
    path = written(tmp_path / "c.jsonl", r'{"_id": "a", "text": "b", "other": {"x\ud800": 1}}')
    assert refusal(path).startswith(f"{path}, line 1: the field 'other' holds half of a character ('x\\ud800')")
