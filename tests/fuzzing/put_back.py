"""Faults that were mended, put back on purpose, to see whether the fuzzing would find them: one of each kind that it watches for."""

from __future__ import annotations

import os
import types
from collections.abc import Callable

from embedkit import errors, escapes, limits, typed
from embedkit.eval import report


def types_unchecked() -> None:
    """A manifest, a ledger or a report may say anything: tracebacks."""
    typed.misfit = lambda *_: None  # type: ignore[assignment]


def unknown_names_taken() -> None:
    """Whatever a report says of a hit is handed to the class of hits: tracebacks."""
    report._known = lambda _, facts: dict(facts)  # type: ignore[assignment]


def pipes_waited_for() -> None:
    """A pipe that nobody writes into is waited for."""
    limits.os = types.SimpleNamespace(**{**vars(os), "O_NONBLOCK": 0})  # type: ignore[assignment]


def endless_files_read() -> None:
    """/dev/zero is read, and a line may be of any length: memory."""
    limits.stat = types.SimpleNamespace(**{**vars(limits.stat), "S_ISREG": lambda _: True})  # type: ignore[assignment]
    limits.LINE = limits.MANIFEST = limits.SETTINGS = limits.CONFIG = 1 << 40


def links_followed() -> None:
    """A link inside a folder from elsewhere is followed by whoever writes there."""
    os.O_NOFOLLOW = 0


def escapes_shown_raw() -> None:
    """What a document, an id or a file name holds reaches the terminal as it is."""
    escapes.escaped = errors.escaped = lambda text, keep="": text  # type: ignore[assignment]


PUT_BACK: dict[str, Callable[[], None]] = {
    fault.__name__: fault
    for fault in (
        types_unchecked,
        unknown_names_taken,
        pipes_waited_for,
        endless_files_read,
        links_followed,
        escapes_shown_raw,
    )
}
