"""Values beside the text, as JSON can hold them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from embedkit.corpus.images import is_stored_image, path_of
from embedkit.errors import DataError
from embedkit.limits import NESTED, TEXT


def plain(value: Any, name: str, where: str, level: int = 0) -> Any:
    """Dates, times, durations (ISO 8601), decimals, UUIDs and bytes of UTF-8 as text, numpy values as Python's own, missing as None.

    level: lists and mappings around it. Raises DataError, opening with `where`, for what cannot be stored."""
    if missing(value):
        return None
    if isinstance(value, float) and math.isinf(value):
        raise DataError(f"{where}: the field {name!r} is infinite, which JSON cannot hold; leave it out or use null.")
    if isinstance(value, (str, bool, int, float)) and type(value).__module__ == "builtins":
        return storable(value, name, where) if isinstance(value, str) else value
    if is_stored_image(value):
        return path_of(value) or None
    if isinstance(value, (Mapping, list, tuple)):
        if level == NESTED:
            raise DataError(
                f"{where}: the field {name!r} is nested more than {NESTED} levels; flatten it, or use --leave-out {name}."
            )
        if isinstance(value, Mapping):
            return by_name(value.items(), name, where, level + 1)
        return [plain(item, name, where, level + 1) for item in value]
    if isinstance(value, bytes):
        return storable(utf8(value, name, where), name, where)
    if isinstance(value, (date, time)):  # datetime and pandas' Timestamp are dates
        return value.isoformat()
    if isinstance(value, timedelta):
        return _duration(value)
    if isinstance(value, (Decimal, UUID)):
        return str(value)
    if hasattr(value, "tolist"):
        return _of_numpy(value, name, where, level)
    raise DataError(
        f"{where}: the field {name!r} is a {type(value).__name__}, which cannot be stored beside the text; use --leave-out {name}."
    )


def by_name(pairs: Iterable[tuple[Any, Any]], name: str | None, where: str, level: int = 0) -> dict[str, Any]:
    """Names as text, and their plain values. name: the field that they stand in. Raises DataError where two become one, as 1 and
    "1" do."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        text = storable(str(key), name or "name", where)
        if text in found:
            raise DataError(f"{where}: the name {text!r} stands twice; name each value once.")
        found[text] = plain(value, name or key, where, level)
    return found


def missing(value: Any) -> bool:
    """None, NaN, and pandas' own NA and NaT."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or type(value).__name__ in ("NAType", "NaTType")
    )


def storable(text: str, name: str, where: str) -> str:
    """The text. Raises DataError for one that no file can hold, or that is too long."""
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        shown = ascii(text[:60])[:60]
        raise DataError(
            f"{where}: the field {name!r} holds half of a character ({shown}); mend or remove it."
        ) from None
    if size > TEXT:
        raise DataError(
            f"{where}: the field {name!r} has {size:,} bytes, and at most {TEXT:,} are read; split or shorten it."
        )
    return text


def utf8(value: bytes, name: str, where: str) -> str:
    """Bytes that are text, as columns of type BINARY without a word on their encoding hold it."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise DataError(
            f"{where}: the field {name!r} holds bytes that are no text in UTF-8; convert them, or use --leave-out {name}."
        ) from None


def _duration(value: timedelta) -> str:
    """PT90.5S, exactly; pandas' own has nanoseconds beside."""
    seconds = Decimal(value.days * 86400 + value.seconds) + Decimal(value.microseconds).scaleb(-6)
    seconds += Decimal(getattr(value, "nanoseconds", 0)).scaleb(-9)
    return f"{'-' if seconds < 0 else ''}PT{abs(seconds).normalize():f}S"


def _of_numpy(value: Any, name: str, where: str, level: int) -> Any:
    """Instants and durations that Python cannot hold come out of numpy as bare numbers, in whatever unit."""
    dated = getattr(getattr(value, "dtype", None), "kind", "") in ("m", "M")
    if dated and value.shape:
        return plain(list(value), name, where, level)
    inside = value.tolist()
    return plain(str(value) if dated and isinstance(inside, int) else inside, name, where, level)
