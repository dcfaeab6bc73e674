"""Ctrl-C and SIGTERM wait for the end of a step, so that what is done can be kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def held_signals() -> Iterator[list[int]]:
    """Lists the first signal that comes, whose handler has not been called yet: `signal.raise_signal` delivers it.

    A second signal goes to its handler at once. Only handlers of Python are held off: what ignores a signal, or dies of it, still
    does. Outside the main thread, which signals do not reach, nothing is done.
    """
    held: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield held
        return
    before: dict[int, Any] = {one: there for one in SIGNALS if callable(there := signal.getsignal(one))}

    def restore() -> None:
        for one, handler in before.items():
            signal.signal(one, handler)

    def hold(number: int, _: Any) -> None:
        held.append(number)
        restore()

    for one in before:
        signal.signal(one, hold)
    try:
        yield held
    finally:
        restore()
