"""Which field of a row is what, and what becomes of the others."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from dataclasses import FrozenInstanceError
from datetime import date, datetime, time, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit.corpus import Fields, read_corpus
from embedkit.errors import DataError
from embedkit.types import Document


def one(row: Any, **fields: Any) -> Document:
    (document,) = read_corpus([row], Fields(**fields))
    return document


# --- id -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"_id": "a", "id": "b", "docid": "c"}, "a"),
        ({"docid": "c", "id": "b"}, "b"),
        ({"docid": "c"}, "c"),
        ({"_id": "a"}, "a"),
    ],
)
def test_the_id_is_the_first_of_the_known_names_and_the_others_stay(row: dict[str, str], expected: str) -> None:
    document = one({**row, "text": "t"})
    assert document.id == expected
    assert sorted([document.id, *document.metadata.values()]) == sorted(row.values())


def test_a_named_id_field_leaves_the_usual_names_to_the_metadata() -> None:
    document = one({"id": "b", "_id": "a", "key": "k", "text": "t"}, id="key")
    assert (document.id, document.metadata) == ("k", {"id": "b", "_id": "a"})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (-3, "-3"),
        (10**30, "1" + "0" * 30),
        (np.int64(3), "3"),
        (np.uint8(255), "255"),
        (" a ", " a "),
        ("0", "0"),
    ],
)
def test_whole_numbers_and_strings_are_ids(value: Any, expected: str) -> None:
    assert one({"id": value, "text": "t"}).id == expected


def test_an_id_may_hold_any_other_character() -> None:
    ids = [*string.printable.replace("\r", "").replace("\n", ""), "\u2028", "\x85", "\x01", "猫", "🐟"]
    assert [document.id for document in read_corpus({"id": i, "text": ""} for i in ids)] == ids


def test_the_default_fields_cannot_be_changed_by_a_caller() -> None:
    with pytest.raises(FrozenInstanceError):
        Fields().id = "key"  # type: ignore[misc]


def test_row_as_id_field_numbers_the_rows_from_zero_whatever_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'\n{"id": "x", "text": "a"}\n\n{"id": "x", "text": "b"}\n')
    assert list(read_corpus(path, Fields(id="row"))) == [
        Document("0", "a", metadata={"id": "x"}),
        Document("1", "b", metadata={"id": "x"}),
    ]


def test_a_field_that_happens_to_be_called_row_is_metadata() -> None:
    assert one({"id": "a", "text": "t", "row": 7}).metadata == {"row": 7}


# --- text and title -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [(("body",), "B"), (("head", "body"), "H B"), (("body", "head", "body"), "B H B"), (("body", "nothing"), "B ")],
)
def test_text_fields_are_joined_with_one_space_in_the_given_order(names: tuple[str, ...], expected: str) -> None:
    assert one({"id": 1, "body": "B", "head": "H", "nothing": ""}, text=names).text == expected


def test_a_text_keeps_its_white_space() -> None:
    assert one({"id": 1, "text": "  a\n\n b "}).text == "  a\n\n b "


@pytest.mark.parametrize(
    ("row", "options", "title"),
    [
        ({"title": "T"}, {}, "T"),
        ({"title": None}, {}, ""),
        ({"title": float("nan")}, {}, ""),
        ({"title": ""}, {}, ""),
        ({}, {}, ""),
        ({"headline": "H", "title": "T"}, {"title": "headline"}, "H"),
        ({"headline": "", "title": "T"}, {"title": "headline"}, ""),
    ],
)
def test_the_title_may_be_absent_or_have_another_name(row: dict[str, Any], options: dict[str, str], title: str) -> None:
    assert one({"id": 1, "text": "t", **row}, **options).title == title


def test_the_usual_title_is_metadata_once_another_field_is_named() -> None:
    assert one({"id": 1, "text": "t", "title": "T", "headline": "H"}, title="headline").metadata == {"title": "T"}


def test_the_usual_text_is_metadata_once_another_field_is_named() -> None:
    assert one({"id": 1, "text": "t", "body": "b"}, text=("body",)).metadata == {"text": "t"}


@pytest.mark.parametrize(
    ("title", "text", "full"),
    [("T", "x", "T x"), ("", "x", "x"), ("T", "", "T"), ("", " x ", " x "), (" T", "x ", "T x"), ("", "", "")],
)
def test_title_space_text_is_what_is_embedded(title: str, text: str, full: str) -> None:
    assert one({"id": 1, "text": text, "title": title}).full_text == full


@pytest.mark.parametrize(
    ("names", "title", "full"),
    [
        (("title", "abstract"), None, "Sea birds They fly"),
        (("title",), None, "Sea birds"),
        (("abstract", "title"), None, "They fly Sea birds"),
        (("headline", "abstract"), "headline", "Gulls They fly"),
        (("title", "abstract"), "headline", "Gulls Sea birds They fly"),
    ],
)
def test_a_title_that_is_one_of_the_texts_is_embedded_once(
    names: tuple[str, ...], title: str | None, full: str
) -> None:
    row = {"id": "a", "title": "Sea birds", "abstract": "They fly", "headline": "Gulls"}
    assert one(row, text=names, title=title).full_text == full


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_an_empty_text_is_a_document(text: str) -> None:
    assert list(read_corpus([{"id": "a", "text": text}, {"id": "b", "text": text}])) == [
        Document("a", text),
        Document("b", text),
    ]


# --- metadata -----------------------------------------------------------------------------------------------------

PLAIN = [
    ("text", "text"),
    (True, True),
    (3, 3),
    (0.5, 0.5),
    (None, None),
    (float("nan"), None),
    (date(2001, 2, 3), "2001-02-03"),
    (datetime(2001, 2, 3, 4, 5, 6, tzinfo=timezone.utc), "2001-02-03T04:05:06+00:00"),
    (time(4, 5), "04:05:00"),
    (Decimal("1.10"), "1.10"),
    (np.int32(4), 4),
    (np.float32(0.25), 0.25),
    (np.float64(0.25), 0.25),
    (np.float32("nan"), None),
    (np.float64("nan"), None),
    (np.bool_(True), True),
    (np.str_("s"), "s"),
    (np.datetime64("2001-02-03"), "2001-02-03"),
    (np.datetime64("NaT"), None),
    (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    (np.array([0.5, np.nan]), [0.5, None]),
    ([1, (2, None), float("nan")], [1, [2, None], None]),
    ((), []),
    ({"a": {"b": Decimal("2")}, 3: [np.int8(1)]}, {"a": {"b": "2"}, "3": [1]}),
    ({}, {}),
]


@pytest.mark.parametrize(("value", "expected"), PLAIN, ids=[f"{type(v).__name__} {v!r}" for v, _ in PLAIN])
def test_other_fields_become_values_that_json_can_hold(value: Any, expected: Any) -> None:
    found = one({"id": 1, "text": "t", "other": value}).metadata
    assert json.dumps(found, allow_nan=False) == json.dumps({"other": expected})  # the types too: True is not 1


def test_pandas_times_and_gaps_become_text_and_none() -> None:
    import pandas

    frame = pandas.DataFrame(
        {
            "id": ["a", "b"],
            "text": ["x", "y"],
            "when": pandas.to_datetime(["2001-02-03 04:05:06", None]),
            "count": pandas.array([1, None], dtype="Int64"),
            "name": ["n", None],
            "score": [0.5, float("nan")],
        }
    )
    assert [document.metadata for document in read_corpus(frame)] == [
        {"when": "2001-02-03T04:05:06", "count": 1, "name": "n", "score": 0.5},
        {"when": None, "count": None, "name": None, "score": None},
    ]


class Opaque:
    pass


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({1, 2}, "set"),
        (1j, "complex"),
        (Opaque(), "Opaque"),
    ],
)
def test_what_json_cannot_hold_is_refused_by_name(value: Any, kind: str) -> None:
    with pytest.raises(DataError) as error:
        one({"id": 1, "text": "t", "other": value})
    assert str(error.value) == (
        f"the rows, row 1: the field 'other' is a {kind}, which cannot be stored beside the text; use --leave-out other."
    )


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"metadata": {"a": 1, "b": 2}}, {"a": 1, "b": 2}),
        ({"metadata": {"a": 1}, "a": 1, "c": 3}, {"a": 1, "c": 3}),
        ({"metadata": {"id": "x", "text": "y"}}, {"id": "x", "text": "y"}),
        ({"metadata": {}}, {}),
        ({"metadata": {"metadata": 1}}, {"metadata": 1}),
        ({"metadata": {"a": {"b": 1}}}, {"a": {"b": 1}}),
        ({"metadata": "words"}, {"metadata": "words"}),
        ({"metadata": None}, {"metadata": None}),
        ({"metadata": ["a"], "b": 1}, {"metadata": ["a"], "b": 1}),
        ({}, {}),
    ],
)
def test_the_nested_metadata_of_beir_is_lifted(row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert one({"id": 1, "text": "t", **row}).metadata == expected


def test_the_row_that_came_is_not_changed() -> None:
    row = {"id": 1, "text": "t", "metadata": {"a": [1]}, "b": (1, 2)}
    one(row)
    assert row == {"id": 1, "text": "t", "metadata": {"a": [1]}, "b": (1, 2)}


def test_any_mapping_is_a_row() -> None:
    class Lookup(Mapping[str, Any]):
        def __getitem__(self, key: str) -> Any:
            return {"id": "m", "text": "t"}[key]

        def __iter__(self) -> Any:
            return iter(["id", "text"])

        def __len__(self) -> int:
            return 2

    assert one(Lookup()) == Document("m", "t")


@pytest.mark.parametrize("row", [{"id": 1, "text": "t", 0: "x"}], ids=["column named 0"])
def test_names_of_metadata_are_strings(row: dict[Any, Any]) -> None:
    assert one(row).metadata == {"0": "x"}
