"""faiss, imported late, with a word on how to get it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from embedkit.errors import MissingDependency, is_out_of_descriptors
from embedkit.index.lifetimes import forked_with


def import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        if is_out_of_descriptors(error):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from None
        raise MissingDependency(
            'faiss is not installed; from the project\'s folder, run pip install -e ".[cpu]" or, for a GPU, pip install -e ".[gpu]".'
        ) from None
    if forked_with("faiss"):  # OpenMP would wait for the threads of the parent, for ever
        faiss.omp_set_num_threads(1)
    return faiss


def thread_count() -> int:
    """Threads that a call of faiss from this thread uses."""
    return int(import_faiss().omp_get_max_threads())


@contextmanager
def faiss_threads(count: int | None) -> Iterator[None]:
    """A block whose calls of faiss use so many threads; the number belongs to the thread that calls. In a process that was forked from
    one with faiss, it is always one."""
    if forked_with("faiss"):
        count = 1
    if count is None:
        yield
        return
    faiss = import_faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
