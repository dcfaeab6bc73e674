"""Recipe files: found, read strictly, overridden, hashed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

import pytest

from embedkit.errors import UsageError
from embedkit.jobs import IndexRecipe
from embedkit.limits import SETTINGS
from embedkit.recipe import digest, fill, find_recipe, known_recipes, merged, read_recipe


@dataclass(frozen=True)
class Part:
    rate: float = 0.1
    kind: Literal["one", "two"] = "one"


@dataclass(frozen=True)
class Whole:
    name: str
    part: Part = Part()
    sizes: tuple[int, ...] = ()
    limit: int | None = None
    quick: bool = False
    parts: tuple[Part, ...] = ()


def test_values_are_filled_in_by_type() -> None:
    values = {"name": "a", "part": {"rate": "1e-5"}, "sizes": [1, 2], "parts": [{"rate": 2}, {}], "quick": True}
    assert fill(Whole, values) == Whole("a", Part(1e-5), (1, 2), None, True, (Part(2.0), Part()))
    assert fill(Whole, {"name": "a", "limit": 3}).limit == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "a", "szes": []}, r"szes is no setting \(did you mean 'sizes'\?\); known here: name, part,"),
        ({"name": "a", "part": {"rat": 1}}, r"part\.rat is no setting \(did you mean 'rate'\?\)"),
        ({"name": "a", "parts": [{}, {"kind": "tow"}]}, r"parts\.1\.kind is 'tow' \(did you mean 'two'\?\)"),
        ({}, "name is missing"),
        ({"name": 3}, "name is 3; expected a text"),
        ({"name": "a", "limit": 1.5}, "limit is 1.5; expected a whole number"),
        ({"name": "a", "limit": True}, "limit is True; expected a whole number"),
        ({"name": "a", "quick": 1}, "quick is 1; expected true or false"),
        ({"name": "a", "sizes": 3}, "sizes is 3; expected a list"),
        ({"name": "a", "part": {"rate": "fast"}}, "expected a number"),
        ({"name": "a", "part": {"rate": "1e999"}}, "rate is inf; expected a number that is finite"),
        ({"name": "a", "part": {"rate": 10**400}}, r"rate is 1000+\.\.\.0+; expected a number that is finite"),
        ({"name": "a", "limit": date(2024, 2, 3)}, r"limit is datetime\.date\(2024, 2, 3\); expected a whole number"),
        ({"x" * 100_000: 1}, "^x{80} is no setting; known here"),
        ({"name": "a", "part": 3}, "part is 3; expected a mapping"),
    ],
)
def test_whatever_does_not_fit_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fill(Whole, values)


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: a\npart: {rate: 1}\nparts: [{rate: 1}, {rate: 2}]\n")
    got = read_recipe(path, ["part.kind=two", "parts.1.rate=3e-5", "sizes=[1, 2]", "limit=", "name=b c"])
    assert fill(Whole, got) == Whole("b c", Part(1.0, "two"), (1, 2), None, False, (Part(1.0), Part(3e-5)))
    for wrong, message in (
        ("part", "expected key=value"),
        ("name.x=1", "holds no 'x'"),
        ("parts.2.rate=1", "none of the 2 entries"),
        ("name=a: b: c", "not valid YAML"),
        ("limit=!!int abc", "'abc' is no int"),
        ("limit=2024-13-45", "'2024-13-45' is no timestamp"),
        ("limit=" + "9" * 5000, "^The value of .{1,85} is not valid YAML .* is no int"),
        ("parts." + "9" * 5000 + ".rate=1", "none of the 2 entries"),
    ):
        with pytest.raises(UsageError, match=message):
            read_recipe(path, [wrong])


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    for text, message in (("a: 1\na: 2\n", "the key 'a' stands twice"), ("- 1\n", "holds a list"), ("a: [", "YAML")):
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            read_recipe(path)
    with pytest.raises(UsageError, match="is not there"):
        find_recipe(str(tmp_path / "b.yaml"), "train")
    path.write_bytes(b"# \xff")
    with pytest.raises(UsageError, match=r"a\.yaml is not valid YAML \('utf-8' codec can't decode"):
        read_recipe(path)
    path.write_text("#" * (SETTINGS + 1))
    with pytest.raises(UsageError, match=r"a\.yaml has more than 1,048,576 bytes"):
        read_recipe(path)
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(UsageError, match=r"pipe\.yaml is a pipe; expected a regular file\.$"):
        read_recipe(find_recipe(str(tmp_path / "pipe.yaml"), "train"))


def test_recipes_are_found_by_name() -> None:
    path = find_recipe("elastic", "train")
    assert path.name == "elastic.yaml"
    assert find_recipe(str(path), "train") == path
    with pytest.raises(UsageError, match=r"did you mean 'elastic'"):
        find_recipe("elastik", "train")


@pytest.mark.parametrize("name", ["compact", "exact", "hybrid"])
def test_the_recipes_of_indexes_open_with_their_command(name: str) -> None:
    path = find_recipe(name, "index")
    assert path.read_text().startswith(f"# embedkit index build CORPUS -o my.index --recipe {name}\n")
    assert set(known_recipes("index")) == {"compact", "exact", "hybrid"}, "a new one belongs in the list above"
    IndexRecipe.read(name)


def test_merging_and_hashing() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    assert merged(base, {"a": {"c": [3]}, "e": 2}) == {"a": {"b": 1, "c": [3]}, "d": 1, "e": 2}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
