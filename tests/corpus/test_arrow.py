"""Columns of parquet files, saved data sets and tables: what becomes of every type, and what cannot be read is named."""

from __future__ import annotations

import json
import os
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedkit.corpus import Fields, read_corpus
from embedkit.corpus import arrow as reader
from embedkit.errors import DataError, UsageError

TWO = {"id": ["a", "b"], "text": ["one", "two"]}
NUMBER = uuid.UUID(int=7)


def saved(path: Path, columns: Any, **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def save_dataset(folder: Path, table: pa.Table) -> Path:
    """As `datasets` saves it, without asking it."""
    folder.mkdir()
    with pa.OSFile(str(folder / "data.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    state = {"_data_files": [{"filename": "data.arrow"}], "_fingerprint": "x", "_format_columns": None}
    state |= {"_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def refusal(source: Any, fields: Fields = Fields(), kind: type[Exception] = DataError) -> str:  # noqa: B008
    with pytest.raises(kind) as error:
        list(read_corpus(source, fields))
    assert type(error.value) is kind
    return str(error.value)


# a duration is text, as dates are: ISO 8601, which keeps every digit and says its unit
READ = [
    (pa.array([NUMBER.bytes], pa.uuid()), str(NUMBER)),
    (pa.array([b"caf\xc3\xa9"], pa.binary()), "café"),
    (pa.array(["x"], pa.large_string()), "x"),
    (pa.array(["x"]).dictionary_encode(), "x"),
    (pa.array([90_500_000], pa.duration("us")), "PT90.5S"),
    (pa.array([-1], pa.duration("ns")), "-PT0.000000001S"),
    (pa.array([100], pa.duration("s")), "PT100S"),
    (pa.array([1_000_000_001], pa.timestamp("ns")), "1970-01-01T00:00:01.000000001"),
    (pa.array([1_000_000_001], pa.time64("ns")), "00:00:01.000000001"),
    (pa.array([[1]], pa.list_(pa.time64("ns"))), ["00:00:00.000000001"]),
    (pa.array([[1]], pa.list_(pa.time64("ns"), 1)), ["00:00:00.000000001"]),
    (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.time64("ns"))), [["k", "00:00:00.000000001"]]),
    (pa.array([{"at": [1]}], pa.struct([("at", pa.list_(pa.time64("ns")))])), {"at": ["00:00:00.000000001"]}),
    (pa.array([[1]], pa.list_(pa.timestamp("ns"))), ["1970-01-01T00:00:00.000000001"]),
    (pa.array([61], pa.time32("s")), "00:01:01"),
    (pa.array([0], pa.timestamp("us", "+02:00")), "1970-01-01T02:00:00+02:00"),
    (pa.array([[Decimal("1.10")]], pa.list_(pa.decimal128(5, 2))), ["1.10"]),
    (pa.array([{"born": {"day": 1}}], pa.struct([("born", pa.struct([("day", pa.date32())]))])), {"born": {"day": "1970-01-02"}}),
    (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), [["k", 1]]),
    (pa.array([1.5], pa.float16()), 1.5),
]  # fmt: skip


@pytest.mark.parametrize(("column", "expected"), READ, ids=[str(column.type) for column, _ in READ])
def test_a_column_becomes_what_json_can_hold(column: pa.Array, expected: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / "c.parquet", {"id": ["a"], "text": ["one"], "extra": column})
    assert next(read_corpus(path)).metadata == {"extra": expected}


def test_views_are_read_where_they_are_stored(tmp_path: Path) -> None:
    table = pa.table({"id": pa.array(["a"], pa.string_view()), "text": pa.array([b"one"], pa.binary_view())})
    (document,) = read_corpus(save_dataset(tmp_path / "c", table))
    assert (document.id, document.text) == ("a", "one")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(1)])
def test_strings_may_be_stored_as_bytes(kind: pa.DataType, tmp_path: Path) -> None:
    """BINARY without an annotation, as older writers leave strings, in ids, titles and texts alike."""
    columns = {name: pa.array([name[:1].encode()], kind) for name in ("id", "title", "text")}
    (document,) = read_corpus(saved(tmp_path / "c.parquet", columns))
    assert (document.id, document.full_text) == ("i", "t t")


def test_ids_may_be_uuids(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.parquet", {"id": pa.array([NUMBER.bytes], pa.uuid()), "text": ["one"]})
    assert [document.id for document in read_corpus(path)] == [str(NUMBER)]
    assert next(read_corpus([{"id": NUMBER, "text": "one", "other": NUMBER}])).metadata == {"other": str(NUMBER)}


# the second of two rows cannot be read; the first one is
UNREADABLE = [
    (pa.array([0, 3_000_000], pa.date32()), "beyond what Python can hold"),
    (pa.array([0, 2**63 - 1], pa.timestamp("us")), "beyond what Python can hold"),  # infinity of Postgres
    (pa.array([0, -70_000_000_000_000], pa.timestamp("ms")), "beyond what Python can hold"),
    (pa.array([0, 2**62], pa.duration("s")), "beyond what Python can hold"),
    (pa.array([0, 2**60], pa.time64("us")), "beyond what Python can hold"),
    (pa.array([[0], [0, 2**63 - 1]], pa.list_(pa.timestamp("us"))), "beyond what Python can hold"),
    (pa.array([b"fine", b"caf\xe9"]).view("string"), "can't decode byte 0xe9"),
]


@pytest.mark.parametrize(("column", "reason"), UNREADABLE, ids=[str(column.type) for column, _ in UNREADABLE])
def test_a_value_that_python_cannot_hold_is_named_by_row_and_column(
    column: pa.Array, reason: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / "c.parquet", {**TWO, "when": column})
    documents = read_corpus(path)
    assert next(documents).id == "a"
    with pytest.raises(DataError) as error:
        next(documents)
    assert str(error.value).startswith(f"{path}, row 2: the field 'when' cannot be read: ")
    assert reason in str(error.value)
    assert str(error.value).endswith("; mend it, or leave it out with --leave-out when.")
    assert [document.metadata for document in read_corpus(path, Fields(leave_out=("when",)))] == [{}, {}]


def test_an_unknown_time_zone_is_told_as_such(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.parquet", {**TWO, "when": pa.array([0, 1], pa.timestamp("us", "Mars/Olympus"))})
    assert refusal(path).startswith(
        f"{path}, row 1: the field 'when' cannot be read: its time zone 'Mars/Olympus' is not known; "
    )


def test_bytes_that_are_no_text_are_refused_until_they_are_left_out(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.parquet", {**TWO, "thumbnail": pa.array([b"ok", b"\xff\xd8"])})
    assert refusal(path).startswith(f"{path}, row 2: the field 'thumbnail' holds bytes that are no text in UTF-8; ")
    assert len(list(read_corpus(path, Fields(leave_out="thumbnail")))) == 2  # type: ignore[arg-type]


def duplicated(kind: str, folder: Path) -> Any:
    table = pa.table(
        [pa.array(["a"]), pa.array(["one"]), pa.array(["x"]), pa.array(["p"])], names=["id", "text", "tag", "tag"]
    )
    if kind == "parquet":
        pq.write_table(table, folder / "d.parquet")
        return folder / "d.parquet"
    return save_dataset(folder / "d", table) if kind == "saved" else table.to_pandas()


@pytest.mark.parametrize("kind", ["parquet", "saved", "frame"])
def test_two_columns_of_one_name_are_refused(kind: str, tmp_path: Path) -> None:
    source = duplicated(kind, tmp_path)
    assert "tag" in refusal(source)
    if kind != "saved":  # which datasets itself refuses to open
        assert next(read_corpus(source, Fields(leave_out=("tag",)))).metadata == {}


def test_a_struct_with_two_fields_of_one_name_is_refused(tmp_path: Path) -> None:
    both = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])
    for column in (both, pa.ListArray.from_arrays([0, 1], both)):
        table = pa.table({"id": ["a"], "text": ["one"], "both": column})
        path = saved(tmp_path / "c.parquet", table)
        assert refusal(path).startswith(f"{path}, row 1: the field 'both' cannot be read: ")
        folder = save_dataset(tmp_path / str(column.type)[:4], table)
        assert "the field 'both' has two fields named 'x'" in refusal(folder)
        assert len(list(read_corpus(folder, Fields(leave_out=("both",))))) == 1


def test_columns_left_out_are_not_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "c.parquet", {**TWO, "a.b": [1, 2], "a": [{"b": 3}, {"b": 4}]})
    assert next(read_corpus(path, Fields(leave_out=("a",)))).metadata == {"a.b": 1}
    assert next(read_corpus(path, Fields(leave_out=("a.b",)))).metadata == {"a": {"b": 3}}
    monkeypatch.setattr(reader, "IMAGE", 500)
    wide = saved(tmp_path / "w.parquet", {**TWO, "blob": [bytes(range(250)) * 8] * 2}, use_dictionary=False)
    assert refusal(wide).startswith(f"{wide} holds rows of ")
    assert len(list(read_corpus(wide, Fields(leave_out=("blob",))))) == 2


def test_large_rows_are_taken_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "BATCH_BYTES", 100)
    rows = {"id": [str(n) for n in range(9)], "text": [str(n) * 60 for n in range(9)]}
    found = [(document.id, document.text) for document in read_corpus(saved(tmp_path / "c.parquet", rows))]
    assert found == list(zip(rows["id"], rows["text"], strict=True))


def test_offsets_that_lead_anywhere_are_seen_before_they_are_followed(tmp_path: Path) -> None:
    folder = save_dataset(tmp_path / "c", pa.table(TWO))
    content = (folder / "data.arrow").read_bytes()
    offsets = np.array([0, 3, 6], np.int32).tobytes()  # of "one" and "two"
    assert content.count(offsets) == 1
    (folder / "data.arrow").write_bytes(content.replace(offsets, np.array([0, 3, 2**30], np.int32).tobytes()))
    assert refusal(folder).startswith(f"{folder} is not a whole datasets folder (")


@pytest.mark.parametrize("start", range(0, 400, 40))
def test_damage_anywhere_in_a_saved_data_set_is_one_sentence_or_none(start: int, tmp_path: Path) -> None:
    file = save_dataset(tmp_path / "c", pa.table(TWO)) / "data.arrow"
    content = bytearray(file.read_bytes())
    content[start : start + 8] = b"\xff\xff\xff\x7f" * 2
    file.write_bytes(content)
    try:
        assert len(list(read_corpus(tmp_path / "c"))) <= 2
    except DataError as error:
        assert str(tmp_path / "c") in str(error)


@pytest.mark.parametrize("name", ["../out.arrow", "/dev/zero", "pipe", "missing.arrow"])
def test_a_saved_data_set_reads_files_of_its_own_folder_alone(name: str, tmp_path: Path) -> None:
    folder = save_dataset(tmp_path / "c", pa.table(TWO))
    (folder / "data.arrow").rename(tmp_path / "out.arrow")
    os.mkfifo(folder / "pipe")
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "_data_files": [{"filename": name}]}))
    assert refusal(folder) == f"{folder} is not a whole datasets folder ({name} is no file in it); save it again."


def test_a_pipe_is_refused_where_a_file_is_expected(tmp_path: Path) -> None:
    for name in ("c.jsonl", "c.parquet", "c.txt"):
        os.mkfifo(tmp_path / name)
        assert "is a pipe or a device" in refusal(tmp_path / name, kind=UsageError)
    assert "is not there" in refusal("a\0b.jsonl", kind=UsageError)


def test_numpy_instants_keep_their_digits() -> None:
    """Out of numpy come bare numbers where Python has no type for the unit."""
    row = {"id": "a", "text": "one", "at": np.datetime64("2001-02-03T04:05:06.123456789", "ns")}
    row["days"] = np.array(["2001-02-03", "2001-02-04"], "datetime64[ns]")
    assert next(read_corpus([row])).metadata == {
        "at": "2001-02-03T04:05:06.123456789",
        "days": ["2001-02-03T00:00:00.000000000", "2001-02-04T00:00:00.000000000"],
    }


def test_a_frame_whose_values_cannot_be_made_is_named() -> None:
    import pandas

    frame = pandas.DataFrame({**TWO, "when": pandas.Series([0, 3_000_000]).astype("int32")})
    frame["when"] = pandas.arrays.ArrowExtensionArray(pa.array([0, 3_000_000], pa.date32()))
    assert refusal(frame).startswith("the table, row 2 cannot be read (")
    assert len(list(read_corpus(frame, Fields(leave_out=("when",))))) == 2
