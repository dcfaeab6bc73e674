"""What is open goes with its last holder: descriptors, maps, and what is remembered; and what becomes of it in a forked process.

Nothing here waits for Python's collector of cycles, which may run rarely or never: a version that is let go frees its files at
once. A map holds no descriptor (mmap of Python 3.11 keeps a copy of its file's, so that one segment would take a dozen), and it is
unmapped with the last array over it: never under a search that still reads.

Fork. A child has the threads of its parent no more, but all that these held: locks stay locked, SQLite stays halfway through a
call, OpenMP waits for its workers. So no statement of ours runs while the process forks, the child's locks are free, and OpenMP
takes one thread there (`is_forked`).
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import weakref
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from embedkit.types import Array

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
WAITED = 2.0  # seconds that a fork waits for a statement, at most
OPEN_MP = ("faiss", "torch", "openvino")  # packages that bring threads of their own

_libc = ctypes.CDLL(None, use_errno=True)
_mmap, _munmap, _madvise = _libc.mmap, _libc.munmap, _libc.madvise
_mmap.restype, _mmap.argtypes = (
    ctypes.c_void_p,
    [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ],
)
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PROT_READ, MAP_SHARED, MADV_RANDOM = 1, 1, 1  # the same on all of Linux
FAILED = ctypes.c_void_p(-1).value


def at_the_end(owner: object, close: Callable[..., object], *arguments: object) -> Callable[[], object]:
    """Calls `close` once: when the owner goes, or before, by what is returned. Not at the end of the interpreter, where threads may
    still use it."""
    ended = weakref.finalize(owner, close, *arguments)
    ended.atexit = False
    return ended


class Descriptor:
    """A file, open for reading until the last holder of this goes."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)
        at_the_end(self, os.close, self.number)


class _Map:
    """Memory that numpy makes an array over, and that goes with the last such array."""

    def __init__(self, descriptor: int, size: int) -> None:
        address = _mmap(None, size, PROT_READ, MAP_SHARED, descriptor, 0)
        if address == FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        at_the_end(self, _munmap, address, size)
        self.__array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, True), "version": 3}


def mapped(descriptor: int, size: int) -> Array:
    """uint8 (size,) the first bytes of an open file, of which there must be so many, to be read; the descriptor is needed no more."""
    return np.asarray(_Map(descriptor, size)) if size else np.empty(0, np.uint8)


def mapped_file(path: Path) -> Array:
    """uint8 (n,) all bytes of a file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return mapped(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def expect_random(whole: Array) -> None:
    """Of what `mapped` gave: it will be read here and there, no reading ahead. Advice, which the system may not take."""
    if len(whole):
        _madvise(whole.ctypes.data, len(whole), MADV_RANDOM)


def remembered(known: dict[K, V], most: int, key: K, make: Callable[[K], V]) -> V:
    """What `make` says of the key, from the second time on from memory; with `most` of them all are forgotten. (lru_cache over a
    method is a cycle with its object.)"""
    found = known.get(key)
    if found is None:
        found = make(key)
        if len(known) >= most:
            known.clear()
        known[key] = found
    return found


# --- fork -----------------------------------------------------------------------------------------------------------------

_locks: weakref.WeakSet[Any] = weakref.WeakSet()
_statements: weakref.WeakSet[Any] = weakref.WeakSet()  # of these, the locks that are held while SQLite works
_held: dict[int, list[Any]] = {}  # by the thread that forks
_forked: list[str] = []  # what of OPEN_MP the parent had when it forked


def forkable_lock(*, statements: bool = False) -> threading.Lock:
    """A lock that is free in a forked child. statements: a fork waits until nobody holds it."""
    lock = threading.Lock()
    _locks.add(lock)
    if statements:
        _statements.add(lock)
    return lock


connecting = forkable_lock()  # held while a connection of SQLite is opened or closed


def forked_with(package: str) -> bool:
    """Whether this process was forked from one that had the package imported: its threads are not here."""
    return package in _forked


def _before() -> None:
    # what a first search imports late: another thread may be at it, and the lock of that import would stay taken
    import numpy.ma  # noqa: F401

    if "faiss" in sys.modules:
        import faiss  # noqa: F401
    # that one first: while it is held no other lock of statements is made and used, so that the list is whole
    held = [connecting] if connecting.acquire(timeout=WAITED) else []
    held += [lock for lock in list(_statements) if lock.acquire(timeout=WAITED)]
    _held[threading.get_ident()] = held


def _after() -> None:
    for lock in _held.pop(threading.get_ident(), ()):
        lock.release()


def _in_child() -> None:
    _held.clear()
    for lock in list(_locks):
        lock._at_fork_reinit()  # as Python's own modules do
    _forked.extend(name for name in OPEN_MP if name in sys.modules and name not in _forked)


os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_in_child)
