"""Filters on metadata, compared with a plain evaluation of the documents one by one."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit.errors import UsageError
from embedkit.index.document_writer import DocumentWriter
from embedkit.index.documents import DocumentReader
from embedkit.index.instants import instant
from embedkit.index.where import Where, check_deletion, matching, parse_where, read_where
from embedkit.types import Document

FIELDS = ["year", "lang", "mixed", "author", "author.name", "a.b.c", "", 'it\'s "odd" %', "ключ 猫", "n\0l", "AUTHOR"]
NUMBERS = [0, 1, 2, -1, 1.0, -0.0, 0.5, 1.5, True, False, 2020, 2021, 2**53, 2**53 + 1, float(2**53), 2**63 - 1]
NUMBERS += [-(2**63), 2**63, 2.0**63, -(2**64), 2**64 + 1, 10**30, 1e30, 1e300, 10**400, math.inf, -math.inf, 5e-324]
TEXTS = [
    "",
    "1",
    "1.0",
    "true",
    "en",
    "EN",
    "En",
    "é",
    "e\u0301",
    "猫",
    "\U0001f600",
    "\uffff",
    "a\0b",
    "a",
    "x" * 9000,
    "'",
]
COMPARED = ("eq", "ne", "gt", "gte", "lt", "lte")


# ---------------------------------------------------------------------------------- the plain evaluation of one document


def values_of(value: Any, name: str, field: str) -> Iterator[Any]:
    """The values of one field: `value` stands under `name`, inner names follow after a dot."""
    if isinstance(value, dict):
        for inner, item in value.items():
            yield from values_of(item, f"{name}.{inner}", field)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from values_of(item, name, field)
    elif name == field and value is not None and value == value:
        yield stored(value)


def stored(value: Any) -> Any:
    """Integers beyond 64 bits are compared as floats."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    return value


def holds(operator: str, one: Any, other: Any) -> bool:
    if isinstance(one, str) != isinstance(other, str):
        return False
    return bool(
        {"eq": one == other, "gt": one > other, "gte": one >= other, "lt": one < other, "lte": one <= other}[operator]
    )


def passes(metadata: dict[str, Any], where: dict[str, Any]) -> bool:
    return all(passes_one(metadata, name, condition) for name, condition in where.items())


def passes_one(metadata: dict[str, Any], name: str, condition: Any) -> bool:
    if name == "not":
        return not passes(metadata, condition)
    if name in ("and", "or"):
        return (all if name == "and" else any)([passes(metadata, part) for part in condition])
    found = [value for key, item in metadata.items() for value in values_of(item, key, name)]
    operators = condition if isinstance(condition, dict) else {"eq": condition}
    return all(field_passes(found, operator, value) for operator, value in operators.items())


def field_passes(found: list[Any], operator: str, value: Any) -> bool:
    if operator == "exists":
        return bool(found) == value
    if operator == "in":
        return any(field_passes(found, "eq", one) for one in value)
    if operator == "ne":
        return not field_passes(found, "eq", value)
    return any(holds(operator, one, stored(value)) for one in found)


# --------------------------------------------------------------------------------------------------- random documents


def some_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(12 if depth < 3 else 8)
    if kind < 4:
        return rng.choice(NUMBERS)
    if kind < 7:
        return rng.choice(TEXTS)
    if kind == 7:
        return rng.choice([None, math.nan, rng.random(), rng.randrange(50)])
    if kind == 8:
        return {rng.choice(["name", "b", "c", "", "b.c"]): some_value(rng, depth + 1) for _ in range(rng.randrange(3))}
    items = [some_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return items if kind < 11 else tuple(items)


def some_documents(seed: int, count: int) -> list[Document]:
    rng = random.Random(seed)
    names = [name for name in FIELDS if "." not in name or rng.random() < 0.5] + ["a"]
    return [
        Document(f"{i}", "", metadata={name: some_value(rng) for name in names if rng.random() < 0.6})
        for i in range(count)
    ]


def some_where(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    where: dict[str, Any] = {}
    for _ in range(rng.choice([0, 1, 1, 1, 1, 1, 2])):
        kind = rng.randrange(10 if depth < 4 else 7)
        if kind < 7:
            where[rng.choice([*FIELDS, *FIELDS, "nowhere"])] = some_condition(rng)
        elif kind == 7:
            where["not"] = some_where(rng, depth + 1)
        else:
            where[rng.choice(["and", "or"])] = [some_where(rng, depth + 1) for _ in range(rng.randrange(4))]
    return where


def some_condition(rng: random.Random) -> Any:
    def scalar() -> Any:
        return rng.choice(rng.choice([NUMBERS, TEXTS, [rng.random(), rng.randrange(50)]]))

    if rng.random() < 0.3:
        return scalar()
    operators = rng.sample([*COMPARED, "in", "exists"], rng.choice([1, 1, 2, 3]))
    return {
        name: rng.random() < 0.5 if name == "exists" else [scalar() for _ in range(3)] if name == "in" else scalar()
        for name in operators
    }


def open_reader(path: Path, documents: list[Document]) -> DocumentReader:
    writer = DocumentWriter(path)
    writer.append(documents, texts=True)
    writer.close()
    return DocumentReader(path, len(documents))


@pytest.mark.parametrize("seed", range(4))
def test_filters_agree_with_a_plain_evaluation(tmp_path: Path, seed: int) -> None:
    documents = some_documents(seed, 300)
    reader = open_reader(tmp_path / "a.sqlite", documents)
    rng, sizes = random.Random(1000 + seed), []
    for _ in range(250):
        where = some_where(rng)
        found = matching(parse_where(where), reader)
        assert (found.dtype, found.shape) == (np.bool_, (300,))
        assert found.tolist() == [passes(dict(d.metadata), where) for d in documents], where
        sizes.append(int(found.sum()))
    assert sum(0 < size < 300 for size in sizes) > 100, "a good part of the filters passes some and not all"


def test_every_pair_of_values_compares_as_in_python(tmp_path: Path) -> None:
    scalars = NUMBERS + TEXTS
    documents = [Document(f"{i}", "", metadata={"v": value}) for i, value in enumerate(scalars)]
    reader = open_reader(tmp_path / "a.sqlite", documents)
    for operator in COMPARED:
        for value in scalars:
            found = matching(parse_where({"v": {operator: value}}), reader).tolist()
            assert found == [field_passes([stored(s)], operator, value) for s in scalars], (operator, value)


# ------------------------------------------------------------------------------------------- the rules, by hand


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> DocumentReader:
    metadata: list[dict[str, Any]] = [
        {"year": 2019, "lang": "en", "pages": [2, 9]},
        {"year": 2020.0, "lang": ["en", "de"], "author": {"name": "Ada"}},
        {"year": "2020", "author": {"name": None}},
        {"new": True},
    ]
    documents = [Document(f"{i}", "", metadata=fields) for i, fields in enumerate(metadata)]
    return open_reader(tmp_path_factory.mktemp("books") / "a.sqlite", documents)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, [0, 1, 2, 3]),
        ({"year": 2020}, [1]),
        ({"year": "2020"}, [2]),
        ({"year": {"gte": 2019, "lt": 2020}}, [0]),
        ({"year": {"gt": 0}}, [0, 1]),
        ({"year": {"gte": ""}}, [2]),
        ({"year": {"lt": "3"}}, [2]),
        ({"lang": "de"}, [1]),
        ({"lang": {"ne": "de"}}, [0, 2, 3]),
        ({"lang": {"in": ["de", "fr", "de"]}}, [1]),
        ({"lang": {"in": []}}, []),
        ({"pages": {"gte": 3, "lt": 5}}, [0]),
        ({"author.name": {"exists": True}}, [1]),
        ({"author.name": {"exists": False}}, [0, 2, 3]),
        ({"author": {"exists": True}}, []),
        ({"new": 1}, [3]),
        ({"nowhere": {"ne": 1}}, [0, 1, 2, 3]),
        ({"or": [{"lang": "de"}, {"year": 2019}], "not": {"pages": 2}}, [1]),
        ({"and": []}, [0, 1, 2, 3]),
        ({"or": []}, []),
    ],
    ids=str,
)
def test_the_rules(books: DocumentReader, where: dict[str, Any], expected: list[int]) -> None:
    assert np.flatnonzero(matching(parse_where(where), books)).tolist() == expected


def test_a_range_of_many_values_is_read_in_parts(tmp_path: Path) -> None:
    documents = [Document(f"{i}", "", metadata={"v": 1500 - i}) for i in range(1500)]
    found = matching(parse_where({"v": {"gt": 10, "lte": 1490}}), open_reader(tmp_path / "a.sqlite", documents))
    assert np.flatnonzero(found).tolist() == list(range(10, 1490))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": "x"}, {"b": {"eq": "x"}, "a": 1.0}),
        ({"a": True}, {"a": {"in": [1, 1]}}),
        ({"a": 0}, {"a": -0.0}),
        ({"a": {"in": [3, "b"]}}, {"a": {"in": ["b", 3]}}),
        ({"or": [{"a": 1}, {"b": 1}]}, {"or": [{"b": 1}, {"a": 1}, {"b": 1}]}),
        ({"a": {"ne": 1}}, {"not": {"a": 1}}),
        ({"a": {"exists": False}}, {"not": {"a": {"exists": True}}}),
    ],
)
def test_the_key_is_the_same_for_the_same_filter(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert parse_where(one).key == parse_where(other).key


def test_the_key_tells_filters_apart() -> None:
    wheres: list[dict[str, Any]] = [
        {},
        {"a": 1},
        {"a": "1"},
        {"a": 1.5},
        {"a": '1,"2'},
        {"a": {"in": [1, "2"]}},
        {"a": {"in": [1, 2]}},
        {"a": {"in": []}},
        {"a": {"exists": True}},
        {"a": {"ne": 1}},
        {"b": 1},
        {"a,b": 1},
        {"a": 1, "b": 1},
        {"or": [{"a": 1}, {"b": 1}]},
        {"or": []},
        *({"a": {operator: 1}} for operator in ("gt", "gte", "lt", "lte")),
    ]
    parsed = [parse_where(where) for where in wheres]
    assert len({where.key for where in parsed}) == len(set(parsed)) == len(wheres)


def deep(levels: int) -> dict[str, Any]:
    where: dict[str, Any] = {"a": 1}
    for _ in range(levels - 1):
        where = {"not": where}
    return where


def deep_list(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ([], "The filter [] is no mapping; write one"),
        (None, "The filter None is no mapping"),
        ({1: 2}, "names the field 1, which is no text"),
        ({"\ud800": 2}, "names the field '\\ud800', which is no text"),
        ({"a": {"like": "x"}}, "has 'like' for the field 'a'; the operators are eq, ne, in, gt, gte, lt, lte, exists,"),
        ({"a": {1: "x"}}, "has 1 for the field 'a'; the operators are"),
        ({"a": {"b": {"eq": 1}}}, 'a field within a field is written "outer.inner"'),
        ({"a": {}}, "says nothing of the field 'a'"),
        ({"a": {"in": "en"}}, "has 'en' for in of the field 'a'; write a list"),
        ({"a": {"in": {"en": 1}}}, "has {'en': 1} for in of the field 'a'; write a list"),
        ({"a": {"in": [1, None]}}, "compares the field 'a' with None"),
        ({"a": {"in": [[1]]}}, "compares the field 'a' with [1]"),
        ({"a": {"in": 10**5000}}, "has a int for in"),
        ({"a": {"exists": 1}}, "has 1 for exists of the field 'a'; write true or false"),
        ({"a": None}, 'with None; compare it with a text, a number, true or false, with several by {"in": [...]}'),
        ({"a": math.nan}, "with nan;"),
        ({"a": {"gt": [1]}}, "with [1];"),
        ({"a": [1, 2]}, "with [1, 2];"),
        ({"a": {"eq": {"b": 1}}}, "with {'b': 1};"),
        ({"a": b"x"}, "with b'x';"),
        ({"a": "\ud800"}, "with '\\ud800';"),
        ({"a": ["x" * 100]}, "xxx...xxx"),
        ({"a": deep_list(100_000)}, "with [[[[...]]]];"),
        ({"and": {"a": 1}}, "has {'a': 1} for \"and\"; give it a list of filters"),
        ({"or": "x"}, "has 'x' for \"or\"; give it a list of filters"),
        ({"or": [1]}, "The filter 1 is no mapping"),
        ({"not": [{"a": 1}]}, "The filter [{'a': 1}] is no mapping"),
        (deep(51), "nested more than 50 levels deep"),
        (deep(100_000), "nested more than 50 levels deep"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_what_is_not_understood_is_refused(where: Any, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_where(where)
    assert sentence in str(caught.value)


def test_fifty_levels_are_understood(books: DocumentReader) -> None:
    assert isinstance(parse_where(deep(50)), Where)
    assert matching(parse_where(deep(50)), books).tolist() == [True] * 4
    assert parse_where(deep(50)).key == "not(" * 49 + 'in("a":1)' + ")" * 49


# ------------------------------------------------------------------------------------------- mistakes in the question


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> list[DocumentReader]:
    """The second has fields and kinds of values that the first has not."""
    first = [{"lang": "en", "year": 1999, "price": "8", "author": {"name": "H"}}, {"lang": None, "tags": []}]
    second = [{"lang": 7, "year": 2000, "new": True}]
    return [
        open_reader(
            tmp_path_factory.mktemp("segment") / "a.sqlite", [Document(str(i), "", metadata=m) for i, m in some]
        )
        for some in (enumerate(first), enumerate(second))
    ]


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ({"lnag": "en"}, "'lnag', which no document has; near it are 'lang'."),
        ({"lnag": {"ne": "en"}}, "'lnag', which no document has"),
        (
            {"lnag": {"exists": False}},
            "'lnag', which no document has",
        ),  # one rule: nobody asks whether a field is nowhere
        (
            {"or": [{"lang": "en"}, {"not": {"and": [{"yaer": 1}]}}]},
            "'yaer', which no document has; near it are 'year'.",
        ),
        ({"author": "H"}, "'author', which no document has; near it are 'author.name'."),
        ({"tags": "a"}, "'tags', which no document has"),  # an empty list is no value
        ({"id": "0"}, "ids, titles and texts are no metadata"),
        ({"zzz": 1}, "the fields are ['author.name', 'lang', 'new', 'price', 'year']."),
        ({"price": {"lt": 100}}, "compares the field 'price' with 100, but all of its values are texts; ask for texts"),
        ({"price": {"ne": 8}}, "but all of its values are texts"),
        ({"price": {"in": [8, 9]}}, "but all of its values are texts"),
        ({"new": "true"}, "compares the field 'new' with 'true', but all of its values are numbers"),
        ({"not": {"year": {"gte": "2000"}}}, "but all of its values are numbers"),
    ],
    ids=str,
)
def test_what_no_document_can_answer_is_refused(
    segments: list[DocumentReader], where: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError) as caught:
        read_where(where, segments)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "where",
    [
        {"lang": "en"},
        {"lang": 7},
        {"new": True},
        {"new": {"exists": False}},
        {"price": {"in": [8, "8"]}},
        {},
        {"and": []},
    ],
    ids=str,
)
def test_a_field_or_a_kind_of_value_may_be_in_one_segment_alone(
    segments: list[DocumentReader], where: dict[str, Any]
) -> None:
    assert read_where(where, segments) == read_where(where, segments[::-1]) == parse_where(where)


def test_of_no_documents_anything_may_be_asked() -> None:
    assert read_where({"lnag": 1}, []) == parse_where({"lnag": 1})


@pytest.mark.parametrize(
    "where",
    [{}, {"and": []}, {"or": []}, {"not": {}}, {"a": {"in": []}}, {"not": {"a": {"in": []}}}, {"or": [{"a": 1}, {}]}],
    ids=str,
)
def test_a_filter_that_deletes_is_not_empty(where: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"filter of a deletion is empty, or has an empty '(and|or|in)' in it"):
        check_deletion(parse_where(where))


def test_a_filter_that_deletes_says_something() -> None:
    check_deletion(parse_where({"or": [{"a": {"exists": False}}, {"not": {"a": {"in": [1]}}}], "b": {"ne": 2}}))


# ------------------------------------------------------------------------------------------- instants

HALF_PAST = [
    "2023-11-14T22:30:00Z",
    "2023-11-14t22:30z",
    "2023-11-14 22:30:00+00:00",
    "2023-11-14T17:30:00-05:00",
    "2023-11-15T04:00:00.000+0530",
    "2023-11-14 23:30:00 +01",
    "2023-11-14T22:30:00",
]


@pytest.mark.parametrize("written", HALF_PAST)
def test_an_instant_is_one_value_in_any_zone(tmp_path: Path, written: str) -> None:
    """Asked in each zone, stored in each; what the document says stays as it came."""
    documents = [Document(str(i), "", metadata={"at": at}) for i, at in enumerate(HALF_PAST)]
    reader = open_reader(tmp_path / "a.sqlite", documents)
    for operator, expected in (("eq", 7), ("gte", 7), ("lte", 7), ("gt", 0), ("lt", 0)):
        assert matching(parse_where({"at": {operator: written}}), reader).sum() == expected, operator
    assert matching(parse_where({"at": {"gte": "2023-11-14", "lt": "2023-11-15"}}), reader).all()
    assert [document.metadata["at"] for document in reader.stream()] == HALF_PAST


def test_instants_are_in_the_order_of_time(tmp_path: Path) -> None:
    """Against Python's own, with microseconds and zones drawn anew."""
    rng = random.Random(5)
    moments = [
        datetime(2023, 11, 14, rng.randrange(24), rng.randrange(60), rng.randrange(3), rng.choice([0, 5, 500_000, 123_456]))
        .replace(tzinfo=timezone(timedelta(minutes=rng.randrange(-12 * 60, 14 * 60, 15))))
        for _ in range(200)
    ]  # fmt: skip
    documents = [Document(str(i), "", metadata={"at": moment.isoformat()}) for i, moment in enumerate(moments)]
    reader = open_reader(tmp_path / "a.sqlite", documents)
    for asked in moments[:20]:
        for operator, holds in (("lt", asked.__gt__), ("lte", asked.__ge__), ("eq", asked.__eq__)):
            found = matching(parse_where({"at": {operator: asked.isoformat()}}), reader).tolist()
            assert found == [holds(moment) for moment in moments], (asked, operator)


@pytest.mark.parametrize(
    "text",
    [
        "2023-11-14",
        "2023-13-14T22:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "2023-11-14T22:00:00 Europe",
        "12:00",
        "٢٠٢٣-11-14T22:00Z",
    ],
)
def test_what_is_no_instant_stays_a_text(text: str) -> None:
    assert instant(text) == text


def test_nanoseconds_count() -> None:
    assert instant("2023-11-14T22:00:00.123456789+01:00") == "2023-11-14T21:00:00.123456789"
    assert instant("2023-11-14T22:00:00.000000001Z") > instant("2023-11-14T22:00:00Z")
