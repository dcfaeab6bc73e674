"""Which ids came before, in 8 bytes a row.

Every id is remembered as a 64-bit hash: the newest ones in a set, all others in sorted runs of which two neighbours never
have the same level, so that there are at most log2(n / RECENT) of them (a Bentley-Saxe merge). Cost: 8 bytes a row, up to
16 while the two largest runs become one; a few microseconds a row.

Two different ids have the same hash somewhere among n with probability n^2 / 2^65: 3e-8 at a million rows, 0.03 at 10^9.
`add` therefore says "may have come before", and whoever asks confirms it where the rows can be read again.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

RECENT = 8192  # hashes kept in a set, about 100 bytes each, before they become a run


class DistinctIds:
    """Ids seen so far."""

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._runs: list[NDArray[np.uint64]] = []  # longest first, each sorted

    @property
    def nbytes(self) -> int:
        """Of all runs; the set of the newest is a constant beside them."""
        return sum(run.nbytes for run in self._runs)

    def add(self, identifier: str) -> bool:
        """Remembers the id. True where it came before, or another one with the same hash did."""
        key = int.from_bytes(hashlib.blake2b(identifier.encode(), digest_size=8).digest(), "little")
        if key in self._recent or any(_holds(run, key) for run in self._runs):
            return True
        self._recent.add(key)
        if len(self._recent) == RECENT:
            self._merge()
        return False

    def _merge(self) -> None:
        self._runs.append(np.sort(np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent))))
        self._recent.clear()
        while len(self._runs) > 1 and len(self._runs[-1]) == len(self._runs[-2]):
            both = np.concatenate((self._runs.pop(), self._runs.pop()))
            both.sort(kind="stable")  # which merges runs that are sorted already
            self._runs.append(both)


def _holds(run: NDArray[np.uint64], key: int) -> bool:
    place = bisect_left(run.data, key)
    return place < len(run) and run.data[place] == key
