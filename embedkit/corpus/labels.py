"""Labels and scores, as training, `eval` and `data check` read them alike.

Each reader takes what JSON, a table's cell or parquet gave, and returns None for what it cannot be; `read` raises with the
place instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from embedkit.errors import DataError
from embedkit.limits import SCORE, shown

Value = TypeVar("Value")


def score(value: object) -> float | None:
    """How near two texts are: a finite number, or a text that is one."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) <= SCORE else None  # NaN is not


def pair_label(value: object) -> int | None:
    """0 or 1: also true and false, and 1.0, as a table has it where a cell was empty."""
    number = float(value) if isinstance(value, bool) else score(value)
    return int(number) if number in (0, 1) else None


def class_label(value: object) -> str | None:
    """The name of a class. 1, 1.0 and "1" are one; fractions are scores, and no classes."""
    if isinstance(value, float):
        return str(int(value)) if math.isfinite(value) and value.is_integer() else None
    if isinstance(value, str):
        return value if value.strip() else None
    return str(value) if isinstance(value, int) else None


EXPECTED: dict[Callable[[object], object], str] = {
    score: f"a finite number, at most {SCORE:,} either way",
    pair_label: "0 or 1",
    class_label: "a text or a whole number",
}


def read(kind: Callable[[object], Value | None], value: object, name: str, where: str) -> Value:
    """The value as one of the readers above has it. where: file and line. Raises DataError where it cannot be one."""
    found = kind(value)
    if found is None:
        raise DataError(f"{where}: {name} is {shown(value)}; expected {EXPECTED[kind]}.")
    return found
