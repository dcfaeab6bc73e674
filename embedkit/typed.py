"""Whether what JSON or YAML gave has the types that are written down for it: one check for every file that may come from a stranger.

The types are Python's own: `dict[str, int]`, `list[str]`, `Literal["a", "b"]`, `str | None`, and a TypedDict for a mapping whose
names are known (other names pass: newer versions may add some).
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from embedkit.errors import EmbedkitError, IntegrityError
from embedkit.limits import NESTED, shown

_hints = functools.cache(get_type_hints)  # which evaluates the text of each hint anew
NAMES: dict[Any, str] = {
    str: "a text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null",
}  # fmt: skip


def parsed(content: str | bytes) -> Any:
    """What JSON says. Raises ValueError for anything else: not UTF-8, nested more than NESTED levels, a number of
    thousands of digits."""
    try:
        # not by json, which takes halves of characters in bytes for characters
        value = json.loads(content.decode() if isinstance(content, bytes) else content)
    except RecursionError:
        raise ValueError(f"nested more than {NESTED} levels") from None
    if may_nest(content, NESTED) and deeper_than(value, NESTED):
        raise ValueError(f"nested more than {NESTED} levels")
    return value


def may_nest(content: str | bytes, levels: int) -> bool:
    """Whether JSON text has brackets for more than so many levels: cheap to say, where few texts have."""
    marks = (b"[", b"{") if isinstance(content, bytes) else ("[", "{")
    return sum(map(content.count, marks)) > levels  # type: ignore[arg-type]


def deeper_than(value: Any, levels: int) -> bool:
    """Whether lists and mappings lie in one another in more than so many levels."""
    inner = [value]
    for _ in range(levels + 1):
        nested = [one for one in inner if isinstance(one, (list, tuple, Mapping))]
        if not nested:
            return False
        inner = [part for one in nested for part in (one.values() if isinstance(one, Mapping) else one)]
    return True


def checked(
    value: Any, kind: Any, path: Path | str, error: type[EmbedkitError] = IntegrityError, step: str = ""
) -> Any:
    """The value, which has this type. Raises `error` where it has not: what came, what was expected, the next step."""
    if (reason := misfit(value, kind)) is not None:
        raise error(f"{path}: {reason}; {step or 'restore it or make it again'}.")
    return value


def misfit(value: Any, kind: Any, where: str = "") -> str | None:
    """None where the value has the type, else the first place where it has not: "settings.dim is 'abc', not a whole number"."""
    origin, inside = get_origin(kind), get_args(kind)
    if kind is Any:
        return None
    if origin in (Union, UnionType):
        reasons = [misfit(value, one, where) for one in inside]
        deepest = [
            one for one in inside if _is_container(one) and isinstance(value, (list, Mapping)) == (value is not None)
        ]
        if None in reasons:
            return None
        return misfit(value, deepest[0], where) if len(deepest) == 1 else _unlike(value, kind, where)
    if is_typeddict(kind):
        return _misfit_of_names(value, kind, where)
    if origin is Literal:
        return None if any(type(value) is type(one) and value == one for one in inside) else _unlike(value, kind, where)
    if origin is tuple and inside[-1] is not ...:
        if not isinstance(value, (list, tuple)) or len(value) != len(inside):
            return _unlike(value, kind, where)
        return _first(
            misfit(one, of, _below(where, place)) for place, (one, of) in enumerate(zip(value, inside, strict=True))
        )
    if origin in (list, tuple, Sequence):
        if not isinstance(value, (list, tuple)):
            return _unlike(value, kind, where)
        return _first(misfit(one, inside[0], _below(where, place)) for place, one in enumerate(value))
    if origin is not None:  # dict and Mapping
        if not isinstance(value, Mapping):
            return _unlike(value, kind, where)
        wrong = _first(misfit(name, inside[0], _below(where, "a name")) for name in value)
        return wrong or _first(misfit(one, inside[1], _below(where, name)) for name, one in value.items())
    if kind is float:
        return None if type(value) in (int, float) and _is_finite(value) else _unlike(value, kind, where)
    kind = NoneType if kind is None else kind
    return None if type(value) is kind else _unlike(value, kind, where)


def _misfit_of_names(value: Any, kind: Any, where: str) -> str | None:
    if not isinstance(value, Mapping):
        return _unlike(value, dict, where)
    for name, of in _hints(kind).items():
        if name in value:
            if (reason := misfit(value[name], of, _below(where, name))) is not None:
                return reason
        elif name in kind.__required_keys__:
            return f"{_below(where, name)} is missing"
    return None


def _first(reasons: Any) -> str | None:
    return next((reason for reason in reasons if reason is not None), None)


def _is_container(kind: Any) -> bool:
    return is_typeddict(kind) or get_origin(kind) in (list, tuple, dict, Mapping, Sequence)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _below(where: str, name: object) -> str:
    return f"{where}.{name}" if where else str(name)


def _unlike(value: Any, kind: Any, where: str) -> str:
    return f"{where or 'what it holds'} is {shown(value)}, not {_words(kind)}"


def _words(kind: Any) -> str:
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_words, inside))
    if origin is Literal:
        return " or ".join(map(repr, inside))
    if kind is dict or is_typeddict(kind) or origin in (dict, Mapping):
        return "a mapping"
    return "a list" if origin is not None else NAMES.get(kind, str(kind))
