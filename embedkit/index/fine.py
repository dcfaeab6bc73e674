"""The fine level: rows on disk, and exact inner products with them, by faiss's kernels over a memory map.

A score is the float32 product of the query with the stored row: float16 rows move it by at most 5e-4 of the row's length,
int8 rows are decoded first (lowest value and step of each dimension come from a sample of the first rows and belong to the
index). The same pair has the same score in whatever company it is computed, so ties are ties. Nothing is held in RAM.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from embedkit.errors import IntegrityError
from embedkit.index.faiss_import import import_faiss
from embedkit.index.lifetimes import Descriptor, expect_random, mapped
from embedkit.storage import HEADER, PositionalFile, npy_header
from embedkit.types import Array, Rows, Vectors
from embedkit.vectors import DTYPES, STEPS, Ranges

STORED = {name: DTYPES[name] for name in ("float32", "float16", "int8")}
BLOCK = 16_384  # rows that are copied, decoded or added at once
AT_ONCE = 16  # queries; for 20 of them faiss multiplies float32 matrices, where a score depends on its neighbours
GATHERED = 65_536  # rows that are read from disk for one exact search of some of them
RANGE_SAMPLE = 65_536  # rows that the ranges of int8 are taken from
LOOKED_AT = 8  # rows of a shortlist: are they in the page cache?


class Mask:
    """Which rows count."""

    def __init__(self, rows: Array) -> None:
        self.rows: Array = rows  # bools (n,)
        self.count = int(rows.sum())
        # not cached_property: in Python 3.11 that has a lock, which a forked child may find taken
        self._numbers: Rows | None = None
        self._selector: Any = None

    @property
    def numbers(self) -> Rows:
        if self._numbers is None:
            self._numbers = np.flatnonzero(self.rows)
        return self._numbers

    @property
    def selector(self) -> Any:
        """For faiss, which looks at our bits."""
        if (made := self._selector) is None:
            bits = np.packbits(self.rows, bitorder="little")
            made = import_faiss().IDSelectorBitmap(bits)
            made.referenced_objects = [bits]
            self._selector = made
        return made


class FineWriter:
    """Appends rows to a new file."""

    def __init__(self, file: PositionalFile, dim: int, fine: str, ranges: Ranges | None = None) -> None:
        self.count, self.dim, self.fine, self.ranges = 0, dim, fine, ranges
        self.outside = 0  # values that lie outside the ranges of int8
        self._file = file

    def append(self, rows: Vectors) -> None:
        """rows: float32 (n, dim)."""
        if self.ranges is not None:
            self.outside += self.ranges.outside(rows)
        self.append_stored(encode(rows, self.fine, self.ranges))

    def append_stored(self, rows: Array) -> None:
        """Rows as another file of the same index holds them."""
        width = self.dim * STORED[self.fine].itemsize
        self._file.write(HEADER + self.count * width, np.ascontiguousarray(rows).data)
        self.count += len(rows)

    def finish(self) -> None:
        """Durable when this returns."""
        self._file.write(0, npy_header((self.count, self.dim), STORED[self.fine]))
        self._file.sync()


def encode(rows: Vectors, fine: str, ranges: Ranges | None) -> Array:
    """float32 (n, dim) as they are stored; values outside the ranges of int8 become the nearest inside."""
    if ranges is not None:
        return ranges.encode(rows)
    stored: Array = rows.astype(STORED[fine])
    return stored


def decode(rows: Array, ranges: Ranges | None) -> Vectors:
    """float32 (n, dim) of stored rows."""
    return rows.astype(np.float32) if ranges is None else ranges.decode(rows)


class FineRows:
    """The rows (n, dim) of one file, mapped. The file's size has been checked against the manifest."""

    def __init__(self, path: Path, count: int, dim: int, fine: str, ranges: Ranges | None = None) -> None:
        self.path, self.count, self.dim, self.fine, self.ranges = path, count, dim, fine, ranges
        expected = HEADER + count * dim * STORED[fine].itemsize
        self._file: Descriptor | None = Descriptor(path)
        number = self._file.number
        beginning = os.pread(number, HEADER, 0)
        if beginning != npy_header((count, dim), STORED[fine]) or os.fstat(number).st_size != expected:
            raise IntegrityError(f"{path} is no array of {count} rows any more; build the index again.")
        self._whole = mapped(number, expected)
        self.stored: Array = self._whole[HEADER:].view(STORED[fine]).reshape(count, dim)
        self.kernel = kernel_over(self.stored, fine, ranges)

    def close(self) -> None:
        """The file and its map go with the last who reads in them."""
        self._file = self.kernel = None
        self.stored, self._whole = self.stored[:0].copy(), self._whole[:0].copy()

    def expect_shortlists(self) -> None:
        """Their rows lie far apart: no reading ahead."""
        expect_random(self._whole)

    def blocks(self) -> Iterator[Vectors]:
        """All rows, decoded, BLOCK at a time."""
        for start in range(0, self.count, BLOCK):
            yield decode(self.stored[start : start + BLOCK], self.ranges)

    def rows(self, numbers: Rows) -> Vectors:
        """Decoded rows (m, dim)."""
        return decode(self.stored[numbers], self.ranges)

    def search(self, queries: Vectors, k: int, mask: Mask | None = None) -> tuple[Vectors, Rows]:
        """The exact k best rows of each query: scores and rows (q, <= k), best first, -1 where there are fewer.

        mask: the only rows that count; few of them are gathered, else all are passed over."""
        if mask is None:
            return search_kernel(self.kernel, queries, k)
        if mask.count > GATHERED:
            return search_kernel(self.kernel, queries, k, import_faiss().SearchParameters(sel=mask.selector))
        scores, places = search_kernel(kernel_over(self.stored[mask.numbers], self.fine, self.ranges), queries, k)
        return scores, mask.numbers[places] if mask.count else places

    def nearest(self, queries: Vectors, k: int, mask: Mask | None = None) -> tuple[Vectors, Rows]:
        """Scores and rows (q, k) of the exact nearest of many queries, -1 where there are fewer, by matrix products over blocks:
        faster than `search`, whose scores do not depend on their neighbours. mask: the only rows that count."""
        faiss = import_faiss()
        scores, rows = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
        for number, block in enumerate(self.blocks()):
            numbers = number * BLOCK + np.arange(len(block))
            if mask is not None:
                kept = mask.rows[numbers]
                block, numbers = block[kept], numbers[kept]
                if not len(block):
                    continue
            some_scores, some = faiss.knn(queries, block, min(k, len(block)), faiss.METRIC_INNER_PRODUCT)
            scores, both = (
                np.concatenate([scores, some_scores], axis=1),
                np.concatenate([rows, numbers[some]], axis=1),
            )
            best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            scores, rows = np.take_along_axis(scores, best, axis=1), np.take_along_axis(both, best, axis=1)
        return scores, rows

    def score(self, queries: Vectors, rows: Rows) -> Vectors:
        """(q, m) scores of the same rows (m,) for all queries."""
        found, order = search_kernel(kernel_over(self.stored[rows], self.fine, self.ranges), queries, len(rows))
        scores = np.empty_like(found)
        np.put_along_axis(scores, order, found, axis=1)
        return scores

    def ask_for(self, rows: Rows) -> bool:
        """Starts reading these rows, all at once and in their order on disk, where they are not in memory; whether that was
        so. Page faults would wait for one after the other."""
        if (file := self._file) is None:
            return False
        width = self.stored.strides[0]
        offsets = np.unique(rows[rows >= 0]) * width + HEADER
        if all(_is_cached(file, int(offset), width) for offset in offsets[:: max(1, len(offsets) // LOOKED_AT)]):
            return False
        for offset in offsets.tolist():
            os.posix_fadvise(file.number, offset, width, os.POSIX_FADV_WILLNEED)
        return True


def _is_cached(file: Descriptor, offset: int, width: int) -> bool:
    try:
        return os.preadv(file.number, [bytearray(width)], offset, os.RWF_NOWAIT) == width
    except BlockingIOError:
        return False
    except (OSError, AttributeError):  # a file system or a system that cannot say
        return True


def kernel_over(stored: Array, fine: str, ranges: Ranges | None) -> Any:
    """A faiss index that scores stored rows (n, dim) where they lie. The caller keeps the array; faiss only looks at it."""
    faiss = import_faiss()
    count, dim = stored.shape
    if fine == "float32":
        kernel = faiss.IndexFlatIP(dim)
    else:
        kind = faiss.ScalarQuantizer.QT_8bit if fine == "int8" else faiss.ScalarQuantizer.QT_fp16
        kernel = faiss.IndexScalarQuantizer(dim, kind, faiss.METRIC_INNER_PRODUCT)
        if ranges is not None:
            faiss.copy_array_to_vector(np.concatenate([ranges.lowest, ranges.step * STEPS]), kernel.sq.trained)
    kernel.is_trained = True
    raw = stored.reshape(-1).view(np.uint8)
    owner = faiss.MaybeOwnedVectorUInt8().owner  # of nothing: the memory is ours
    kernel.codes = faiss.MaybeOwnedVectorUInt8.create_view(faiss.swig_ptr(raw) if len(raw) else None, raw.nbytes, owner)
    kernel.ntotal = count
    kernel.referenced_objects = [stored]  # faiss keeps it alive with the index
    return kernel


def search_kernel(kernel: Any, queries: Vectors, k: int, parameters: Any = None) -> tuple[Vectors, Rows]:
    """Scores and rows (q, k), best first; k is cut to the number of rows."""
    k = min(k, kernel.ntotal)
    scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries) if k else 0, AT_ONCE):
        block = slice(start, start + AT_ONCE)
        scores[block], rows[block] = kernel.search(np.ascontiguousarray(queries[block]), k, params=parameters)
    return scores, rows
