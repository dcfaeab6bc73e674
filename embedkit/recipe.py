"""Recipe files: YAML that is found by name, read strictly, changed by `key=value`, and known by a hash.

A recipe fills frozen dataclasses, whose fields, types and defaults are all that there is to say about what it may hold: an
unknown key is refused with the nearest known one, a value of another type with what was expected.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from embedkit.errors import UsageError
from embedkit.limits import SETTINGS, SHOWN, read_at_most, shown
from embedkit.strict_yaml import read_yaml
from embedkit.typed import misfit

Filled = TypeVar("Filled")
PACKAGE = Path(__file__).parent


def find_recipe(name: str, room: str) -> Path:
    """The file of a recipe: a path, or the name of one that embedkit brings for `room` ("index" or "train").

    Recipes lie in embedkit/_recipes/ROOM of a wheel, and in ROOM/recipes beside the package of a checkout. Raises UsageError,
    with the nearest name, where there is none.
    """
    if name.endswith((".yaml", ".yml")):
        if not Path(name).exists():
            raise UsageError(
                f"{name} is not there; expected a recipe file, or one of: {', '.join(known_recipes(room))}."
            )
        return Path(name)
    known = known_recipes(room)
    if name not in known:
        raise UsageError(
            f"There is no recipe {shown(name)}{nearest(name, known)}; give a .yaml file, or one of: {', '.join(known)}."
        )
    return known[name]


def known_recipes(room: str) -> dict[str, Path]:
    """Name -> file, of those that embedkit brings."""
    for folder in (PACKAGE / "_recipes" / room, PACKAGE.parent / room / "recipes"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def nearest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """ ", did you mean 'x'?" for a misspelling of something known, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping that a file holds, with `key=value` overrides: `batch.size=64`, `data.0.path=my.jsonl`; values are YAML."""
    content = read_at_most(path, SETTINGS)
    try:
        recipe = read_yaml(content.decode("utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not valid YAML ({error}); mend it.") from None
    if not isinstance(recipe, dict):
        raise UsageError(f"{path} holds a {type(recipe).__name__}; a recipe is a mapping of settings.")
    for override in overrides:
        _override(recipe, override)
    return recipe


def _override(recipe: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UsageError(f"{shown(override)} came; expected key=value, for example batch.size=64.")
    try:
        parsed = read_yaml(value)
    except ValueError as error:
        raise UsageError(
            f"The value of {shown(override)} is not valid YAML ({error}); quote a text that holds ':' or '#'."
        ) from None
    *parents, last = key.split(".")
    place: Any = recipe
    for depth, part in enumerate(parents):
        if isinstance(place, dict):
            place = place.setdefault(part, {})
        elif isinstance(place, list):
            place = place[_position(place, part, override)]
        if not isinstance(place, (dict, list)):
            raise UsageError(
                f"{shown(override)} came; {'.'.join(parents[: depth + 1])} is {shown(place)} and holds no {shown(last)}."
            )
    if isinstance(place, list):
        place[_position(place, last, override)] = parsed
    else:
        place[last] = parsed


def _position(place: list[Any], part: str, override: str) -> int:
    if not part.isdecimal() or len(part) > 9 or int(part) >= len(place):
        raise UsageError(
            f"{shown(override)} came; {shown(part)} is none of the {len(place)} entries, which count from 0."
        )
    return int(part)


def merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `change`; mappings inside are merged likewise, lists replaced."""
    result = dict(base)
    for key, value in change.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def digest(content: Any) -> str:
    """SHA-256 of a JSON-like value; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def fill(cls: type[Filled], values: Any, where: str = "") -> Filled:
    """A frozen dataclass from a mapping. where: the place in the recipe, for messages.

    Raises UsageError for an unknown or a missing key and for a value of another type, and whatever the class itself refuses.
    """
    if not isinstance(values, Mapping):
        raise UsageError(f"{where or 'The recipe'} is {shown(values)}; expected a mapping of settings.")
    hints = get_type_hints(cls)
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    prefix = f"{where}." if where else ""
    if unknown := [str(key) for key in values if key not in known]:
        raise UsageError(
            f"{prefix}{unknown[0][:SHOWN]} is no setting{nearest(unknown[0], known)}; known here: {', '.join(known)}."
        )
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise UsageError(f"{prefix}{name} is missing from the recipe.")
    return cls(**{str(key): _value(hints[str(key)], value, f"{prefix}{key}") for key, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):  # X | None alone
        present = next(one for one in inner if one is not type(None))
        return None if value is None else _value(present, value, where)
    if origin is Literal:
        if value not in inner:
            close = nearest(value, inner) if isinstance(value, str) else ""
            raise UsageError(f"{where} is {shown(value)}{close}; expected one of: {', '.join(map(str, inner))}.")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UsageError(f"{where} is {shown(value)}; expected a list.")
        return tuple(_value(inner[0], one, f"{where}.{place}") for place, one in enumerate(value))
    if is_dataclass(hint):
        return value if isinstance(value, hint) else fill(hint, value, where)  # type: ignore[arg-type]
    if hint is float and isinstance(value, str):  # YAML reads 1e-5, without a dot, as a text
        with suppress(ValueError):
            value = float(value)
    if misfit(value, hint) is not None:
        raise UsageError(f"{where} is {shown(value)}; expected {NAMES[hint]}.")
    return hint(value)


NAMES = {str: "a text (in quotes)", int: "a whole number", float: "a number that is finite", bool: "true or false"}
