"""faiss, imported late, with a word on how to get it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from embedkit.errors import MissingDependency


def import_faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise MissingDependency(
            'faiss is not installed; from the project\'s folder, run pip install -e ".[cpu]" or, for a GPU, pip install -e ".[gpu]".'
        ) from None
    return faiss


def thread_count() -> int:
    """Threads that a call of faiss from this thread uses."""
    return int(import_faiss().omp_get_max_threads())


@contextmanager
def faiss_threads(count: int | None) -> Iterator[None]:
    """A block whose calls of faiss use so many threads; the number belongs to the thread that calls."""
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
