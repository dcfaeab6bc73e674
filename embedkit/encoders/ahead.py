"""One item ahead: what takes long to make is made in a thread while the item before it is used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def made_ahead(make: Callable[[T], U], items: Iterable[T]) -> Generator[U, None, None]:
    """make(item) for every item, in order, never more than one ahead. An error of either is raised in its place.

    The thread is a daemon: one that waits for rows on an idle pipe must not keep a stopped program from ending.
    """
    wanted, made = threading.Semaphore(1), queue.SimpleQueue[U | BaseException | None]()
    closed = threading.Event()
    stream = iter(items)

    def work() -> None:
        try:
            while wanted.acquire() and not closed.is_set():
                made.put(make(next(stream)))
        except StopIteration:
            made.put(None)
        except BaseException as error:
            made.put(error)

    threading.Thread(target=work, name="ahead", daemon=True).start()
    try:
        while (found := made.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            wanted.release()
            yield found
    finally:
        closed.set()
        wanted.release()
