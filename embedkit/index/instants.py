"""Dates with a time of day, as filters compare them: one instant is one text, however it was written."""

from __future__ import annotations

import re
from datetime import datetime, timezone

WRITTEN = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d)(?::(\d\d)(?:[.,](\d+))?)? ?(?:[Zz]|([+-]\d\d)(?::?(\d\d))?)?", re.ASCII
)


def instant(text: str) -> str:
    """A date with a time (ISO 8601, RFC 3339, as pandas and databases print it) in UTC, "2023-11-14T22:13:20.5": the order of such
    texts is that of time. Without a zone it counts as UTC. Any other text is given back."""
    if (match := WRITTEN.fullmatch(text)) is None:
        return text
    day, minutes, seconds, fraction, hours, rest = match.groups("")
    zone = f"{hours}:{rest or '00'}" if hours else "+00:00"
    try:
        moment = datetime.fromisoformat(f"{day}T{minutes}:{seconds or '00'}{zone}").astimezone(timezone.utc)
    except (ValueError, OverflowError):  # no such day, or one before the year 1
        return text
    clock, fraction = moment.isoformat()[:19], fraction.rstrip("0")  # of any length: parquet has nanoseconds
    return f"{clock}.{fraction}" if fraction else clock
