"""Types of what JSON gave: each answer below was worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypedDict

import pytest

from embedkit.errors import DataError, IntegrityError
from embedkit.limits import NESTED
from embedkit.typed import checked, deeper_than, misfit, parsed


class Settings(TypedDict, total=False):
    dim: int | None
    prompts: dict[str, str]


class Manifest(TypedDict):
    files: dict[str, dict[str, Any]]
    settings: Settings


@pytest.mark.parametrize(
    ("value", "kind", "reason"),
    [
        ("a", str, None),
        (1, float, None),
        (True, int, "what it holds is True, not a whole number"),
        (1, bool, "what it holds is 1, not true or false"),
        (1.0, int, "what it holds is 1.0, not a whole number"),
        (float("nan"), float, "what it holds is nan, not a number"),
        (10**400, float, f"what it holds is {'1' + '0' * 37}...{'0' * 39}, not a number"),
        (None, str | None, None),
        (5, str | None, "what it holds is 5, not a text or null"),
        ("b", Literal["a", "b"], None),
        (True, Literal[1, 2], "what it holds is True, not 1 or 2"),
        ([1, "x"], list[int], "1 is 'x', not a whole number"),
        ("xy", list[str], "what it holds is 'xy', not a list"),
        ([1, 2, 3], tuple[float, float], "what it holds is [1, 2, 3], not a list"),
        ([1, "b"], tuple[float, float], "1 is 'b', not a number"),
        ({"a": [1, None]}, dict[str, list[int] | None], "a.1 is None, not a whole number"),
        ({1: "a"}, dict[str, str], "a name is 1, not a text"),
        ({"files": {}, "settings": {}, "more": 1}, Manifest, None),
        ({"settings": {}}, Manifest, "files is missing"),
        ({"files": {"v.npy": None}, "settings": {}}, Manifest, "files.v.npy is None, not a mapping"),
        ({"files": {}, "settings": [1]}, Manifest, "settings is [1], not a mapping"),
        ({"files": {}, "settings": {"dim": "abc"}}, Manifest, "settings.dim is 'abc', not a whole number or null"),
        ([], Manifest, "what it holds is [], not a mapping"),
    ],
)
def test_misfit_names_the_first_place_that_does_not_fit(value: Any, kind: Any, reason: str | None) -> None:
    assert misfit(value, kind) == reason


def test_checked_says_what_came_where_and_what_to_do() -> None:
    assert checked([1], list[int], "f.json") == [1]
    with pytest.raises(IntegrityError, match=r"^f\.json: 0 is 'a', not a whole number; restore it or make it again\.$"):
        checked(["a"], list[int], Path("f.json"))
    with pytest.raises(DataError, match=r"; mend the file\.$"):
        checked("a", int, "f.json", DataError, "mend the file")


@pytest.mark.parametrize(
    "nested",
    ["[" * 200_000, "[" * 900 + "]" * 900, '{"a":' * 60 + "1" + "}" * 60, "9" * 5000, b"\xff", b'"\xed\xa0\x80"'],
)
def test_what_cannot_be_taken_is_a_value_error(nested: str | bytes) -> None:
    with pytest.raises(ValueError):
        parsed(nested)


def test_nesting_is_counted_in_levels() -> None:
    assert parsed("[" * NESTED + "1" + "]" * NESTED)
    with pytest.raises(ValueError, match=f"nested more than {NESTED} levels"):
        parsed("[" * (NESTED + 1) + "1" + "]" * (NESTED + 1))
    assert not deeper_than("abc", 0)
    assert deeper_than([{"a": []}], 2) and not deeper_than([{"a": []}], 3)
