"""Ctrl-C and SIGTERM wait for the end of a step, so that what is done can be kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
Held = list[Callable[[], Any]]


@contextmanager
def held_signals() -> Iterator[Held]:
    """Lists the call that is due to the handler of the first signal that comes; whoever asks makes it.

    A second signal goes to its handler at once. Only handlers of Python are held off: what ignores a signal, or dies of it, still
    does. Outside the main thread, which signals do not reach, nothing is done.
    """
    held: Held = []
    if threading.current_thread() is not threading.main_thread():
        yield held
        return
    before: dict[int, Any] = {one: there for one in SIGNALS if callable(there := signal.getsignal(one))}

    def restore() -> None:
        for one, handler in before.items():
            signal.signal(one, handler)

    def hold(number: int, frame: Any) -> None:
        held.append(partial(before[number], number, frame))
        restore()

    for one in before:
        signal.signal(one, hold)
    try:
        yield held
    finally:
        restore()
