"""What the documents of a segment are called, by number, in two memory-mapped files at most.

Ids that are whole numbers as `str` writes them take 4 or 8 bytes each; all others take their UTF-8 bytes and the place where
each begins, 4 or 8 bytes.
"""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from embedkit.errors import IntegrityError
from embedkit.index.lifetimes import mapped, mapped_file
from embedkit.index.manifest import ID_TEXTS, IDS
from embedkit.storage import HEADER, npy_header, remove, sealed_partial
from embedkit.types import Array, Rows

LONGEST_NUMBER = 18  # digits that certainly fit in 64 bits
BLOCK = 65_536  # ids taken at once


def several(ids: Sequence[str] | str) -> Sequence[str]:
    """The ids that a caller gave: a str is one, not its characters."""
    return [ids] if isinstance(ids, str) else ids


def write_ids(path: Callable[[str], Path], ids: Iterable[str]) -> list[str]:
    """Writes the files of all ids, durably; returns the parts that are there. Memory: 12 bytes an id."""
    lengths, numbers = array("I"), array("Q")
    with sealed_partial(path(ID_TEXTS)) as stream:
        for identifier in ids:
            lengths.append(stream.write(identifier.encode()))
            if len(numbers) == len(lengths) - 1 and _is_number(identifier):
                numbers.append(int(identifier))
    if len(numbers) == len(lengths):
        write_numbers(path(IDS), np.frombuffer(numbers, "<u8"))
        remove(path(ID_TEXTS))
        return [IDS]
    write_numbers(path(IDS), np.concatenate([[0], np.cumsum(np.frombuffer(lengths, "<u4"), dtype=np.uint64)]))
    return [IDS, ID_TEXTS]


def _is_number(identifier: str) -> bool:
    return (
        identifier.isascii()
        and identifier.isdigit()
        and len(identifier) <= LONGEST_NUMBER
        and (identifier[0] != "0" or identifier == "0")
    )


def write_numbers(path: Path, numbers: Array) -> None:
    """A new .npy of whole numbers (n,), in 4 bytes each where the largest fits, durably."""
    dtype = np.dtype("<u4" if numbers.max(initial=0) < 1 << 32 else "<u8")
    with sealed_partial(path) as stream:
        stream.write(npy_header(numbers.shape, dtype))
        for start in range(0, len(numbers), BLOCK):
            stream.write(numbers[start : start + BLOCK].astype(dtype).tobytes())


def open_array(path: Path, shape: tuple[int, ...] | None, kinds: tuple[str, ...]) -> Array:
    """A mapped array whose shape and dtype are as expected; shape None: (n,), by the size of the file. Raises IntegrityError where
    they are not.

    The header is compared with the one that we write, not parsed: Python 3.11 cannot parse from several threads at once (its
    issue 106905)."""
    with path.open("rb", buffering=0) as stream:
        size, header = os.fstat(stream.fileno()).st_size, stream.read(HEADER)
        for dtype in map(np.dtype, kinds):
            found = (max(0, size - HEADER) // dtype.itemsize,) if shape is None else shape
            if header == npy_header(found, dtype) and size == HEADER + math.prod(found) * dtype.itemsize:
                return mapped(stream.fileno(), size)[HEADER:].view(dtype).reshape(found)
    expected = f"{' or '.join(kinds)} {shape or '(n,)'}"
    raise IntegrityError(f"{path} is no array of {expected}, as its manifest says; build the index again.")


class Ids:
    """Ids by document number."""

    def __init__(self, path: Callable[[str], Path], count: int, *, texts: bool) -> None:
        self._path = path(ID_TEXTS if texts else IDS)
        self._numbers: Array = np.asarray(open_array(path(IDS), (count + 1 if texts else count,), ("<u4", "<u8")))
        self._texts = mapped_file(self._path).data if texts else memoryview(b"")
        self._is_text, self.count = texts, count

    def close(self) -> None:
        """The maps go with the last who reads in them."""
        self._numbers, self._texts = self._numbers[:0].copy(), memoryview(b"")

    def of(self, numbers: Rows) -> list[str]:
        """The ids of document numbers (n,). Raises IntegrityError where the file is damaged."""
        if not self._is_text:
            return list(map(str, self._numbers[numbers].tolist()))
        starts, ends = self._numbers[numbers].tolist(), self._numbers[numbers + 1].tolist()
        data = self._texts
        try:
            return [str(data[start:end], "utf-8") for start, end in zip(starts, ends, strict=True)]
        except UnicodeDecodeError as error:
            raise IntegrityError(f"{self._path} is damaged ({error}); build the index again.") from None

    def __iter__(self) -> Iterator[str]:
        for start in range(0, self.count, BLOCK):
            yield from self.of(np.arange(start, min(start + BLOCK, self.count)))
