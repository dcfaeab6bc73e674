"""The inverted index of one segment: which documents hold which term, and how often, or with what weight.

Six files, written once. The terms stand in the order of their UTF-8 bytes and are found by halving; the entries of a term stand
together, its documents ascending, 4 bytes each and 1, 2 or 4 for the term frequency, or 4 for a weight. Everything is mapped: a
query reads the entries of its terms. What the frequencies are worth depends on the whole index (`sparse.py`), so that nothing here changes
when other segments come and go.

Writing holds the distinct terms in memory and SPOOLED entries; all others wait in a file of the folder, 12 bytes each.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from embedkit.errors import IntegrityError
from embedkit.index.ids import open_array, write_numbers
from embedkit.index.lifetimes import mapped_file, remembered
from embedkit.index.manifest import (
    LENGTHS,
    POSTED,
    POSTINGS,
    TERM_TEXTS,
    TERMS,
    WEIGHTS,
    Sparse,
)
from embedkit.storage import (
    HEADER,
    BlockRecord,
    PositionalFile,
    check_blocks,
    new_file,
    npy_header,
    remove,
    sealed_partial,
)
from embedkit.types import Array

SPOOL = "add.postings"
SPOOLED = 1 << 22  # entries sorted at once
LOOKED_UP = 1 << 16  # terms whose numbers are remembered
ENTRY = np.dtype([("term", "<u4"), ("document", "<u4"), ("weight", "<f4")])
WEIGHED, COUNTED = ("<f4",), ("|u1", "<u2", "<u4")
OFFSETS = ("<u4", "<u8")


class Block(NamedTuple):
    """Some entries. Of one term, documents ascend through a block and from block to block; a pair comes once."""

    terms: Sequence[str]  # what the numbers of this block mean
    numbers: Array  # (m,)
    documents: Array  # (m,)
    weights: Array  # (m,) over 0


def write_postings(path: Callable[[str], Path], documents: int, blocks: Iterable[Block], sparse: Sparse) -> list[str]:
    """Writes the files of a segment of so many documents, durably; returns the parts that are there."""
    spool = path(POSTED).with_name(SPOOL)
    vocabulary: dict[str, int] = {}
    with new_file(spool) as file:
        counts, lengths, largest = _spooled(file, blocks, vocabulary, documents)
        names = sorted(vocabulary)  # by code point, which is the order of the bytes
        order = np.array([vocabulary[name] for name in names], np.int64)
        starts = np.concatenate([[0], np.cumsum(counts[order], dtype=np.int64)])
        ranks = np.empty(len(order), np.int64)
        ranks[order] = np.arange(len(order))
        dtype = np.dtype("<f4" if sparse.bm25 is None else _smallest(largest))
        _write_entries(path, file, ranks, starts, dtype)
    remove(spool)
    _write_terms(path, names)
    write_numbers(path(POSTINGS), starts)
    if sparse.bm25 is not None:
        write_numbers(path(LENGTHS), lengths)
    return sorted(sparse.parts)


def _smallest(largest: float) -> str:
    return next(kind for kind in COUNTED if largest <= np.iinfo(kind).max)


def _spooled(
    file: PositionalFile, blocks: Iterable[Block], vocabulary: dict[str, int], documents: int
) -> tuple[Array, Array, float]:
    """The entries in a file, as they come. (terms,) entries of each, (documents,) sums of weights, the largest weight."""
    counts, lengths = np.zeros(0, np.int64), np.zeros(documents, np.float64)
    position, largest = 0, 0.0
    for block in blocks:
        known = np.array([vocabulary.setdefault(term, len(vocabulary)) for term in block.terms], np.int64)
        entries = np.empty(len(block.numbers), ENTRY)
        entries["term"] = known[block.numbers] if len(known) else 0
        entries["document"], entries["weight"] = block.documents, block.weights
        file.write(position, entries.tobytes())
        position += entries.nbytes
        more = np.bincount(entries["term"], minlength=len(vocabulary))
        more[: len(counts)] += counts
        counts = more
        lengths += np.bincount(block.documents, block.weights, minlength=documents)
        largest = max(largest, float(entries["weight"].max(initial=0)))
    return counts, lengths.astype(np.int64), largest


def _write_entries(
    path: Callable[[str], Path], spool: PositionalFile, ranks: Array, starts: Array, dtype: np.dtype[Any]
) -> None:
    """Sorts the entries by term into their files; one write a block where there is one block."""
    total, places = int(starts[-1]), starts[:-1].copy()
    with new_file(path(POSTED)) as posted, new_file(path(WEIGHTS)) as weights:
        for file, kind in ((posted, np.dtype("<u4")), (weights, dtype)):
            file.write(0, npy_header((total,), kind))
        for entries in _chunks(spool):
            terms = ranks[entries["term"]]
            order = np.argsort(terms, kind="stable")
            terms, entries = terms[order], entries[order]
            counts = np.bincount(terms, minlength=len(places))
            first = np.concatenate([[0], np.cumsum(counts)])[:-1]
            targets = places[terms] + np.arange(len(terms)) - first[terms]
            places += counts
            cuts = np.flatnonzero(np.diff(targets) != 1) + 1
            for start, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(terms)], strict=True):
                for file, name, kind in ((posted, "document", np.dtype("<u4")), (weights, "weight", dtype)):
                    rows = entries[name][start:end].astype(kind)
                    file.write(HEADER + int(targets[start]) * kind.itemsize, rows.tobytes())
        posted.sync()
        weights.sync()


def _chunks(spool: PositionalFile) -> Iterator[Array]:
    size = SPOOLED * ENTRY.itemsize
    for position in range(0, spool.size, size):
        yield np.frombuffer(spool.read(position, size), ENTRY)


def _write_terms(path: Callable[[str], Path], names: Sequence[str]) -> None:
    ends = [0]
    with sealed_partial(path(TERM_TEXTS)) as stream:
        for name in names:
            ends.append(ends[-1] + stream.write(name.encode()))
    write_numbers(path(TERMS), np.array(ends))


class Postings:
    """Read from several threads at once."""

    def __init__(
        self, path: Callable[[str], Path], documents: int, files: Mapping[str, BlockRecord], sparse: Sparse
    ) -> None:
        """Raises IntegrityError where a byte of the files has changed, or they do not fit together."""
        for part in sorted(sparse.parts):
            check_blocks(path(part), files[part])
        self.documents, self._path = documents, path(POSTINGS)
        ends: Array = open_array(path(TERMS), None, OFFSETS)
        self._ends = np.asarray(ends)
        size = files[TERM_TEXTS]["bytes"]
        self._texts = mapped_file(path(TERM_TEXTS)).data
        self.terms = len(ends) - 1
        self._starts = np.asarray(open_array(path(POSTINGS), (self.terms + 1,), OFFSETS))
        entries = (int(self._starts[-1]),)
        self._posted = np.asarray(open_array(path(POSTED), entries, ("<u4",)))
        kinds = WEIGHED if sparse.bm25 is None else COUNTED
        self._weights = np.asarray(open_array(path(WEIGHTS), entries, kinds))
        self.lengths: Array | None = None
        if sparse.bm25 is not None:
            self.lengths = np.asarray(open_array(path(LENGTHS), (documents,), OFFSETS))
        if not self._fit(size):
            raise IntegrityError(f"{self._path} and the files beside it do not fit together; build the index again.")
        self._numbers: dict[str, int] = {}

    def _fit(self, size: int) -> bool:
        ascend = all(np.all(part[1:] >= part[:-1]) and part[0] == 0 for part in (self._ends, self._starts))
        return bool(ascend and self._ends[-1] == size and self._posted.max(initial=0) < max(self.documents, 1))

    def number(self, term: str) -> int:
        """The number of a term, -1 where no document holds it."""
        return remembered(self._numbers, LOOKED_UP, term, self._number)

    def _number(self, term: str) -> int:
        wanted = term.encode("utf-8", "surrogatepass")
        place = bisect_left(range(self.terms), wanted, key=self._bytes)
        return place if place < self.terms and self._bytes(place) == wanted else -1

    def _bytes(self, number: int) -> bytes:
        return bytes(self._texts[self._ends[number] : self._ends[number + 1]])

    def entries(self, number: int) -> tuple[Array, Array]:
        """(m,) documents, ascending, and (m,) weights of a term."""
        which = slice(self._starts[number], self._starts[number + 1])
        return self._posted[which], self._weights[which]

    def count(self, number: int) -> int:
        """Documents that hold a term, deleted ones among them."""
        return int(self._starts[number + 1]) - int(self._starts[number])

    def blocks(self, new_numbers: Array) -> Iterator[Block]:
        """All entries, of documents that go to new numbers (documents,); those of -1 are left out."""
        for first, end in self._some_terms():
            start, stop = int(self._starts[first]), int(self._starts[end])
            documents = new_numbers[self._posted[start:stop]]
            numbers = np.repeat(np.arange(end - first), np.diff(self._starts[first : end + 1]))
            kept = documents >= 0
            used, numbers = np.unique(numbers[kept], return_inverse=True)
            names = [self._bytes(first + number).decode() for number in used.tolist()]
            yield Block(names, numbers, documents[kept], self._weights[start:stop][kept])

    def _some_terms(self) -> Iterator[tuple[int, int]]:
        """Ranges of terms that have SPOOLED entries together, or are one term."""
        first = 0
        while first < self.terms:
            limit = int(self._starts[first]) + SPOOLED
            end = max(first + 1, int(np.searchsorted(self._starts, limit, side="right")) - 1)
            yield first, end
            first = end
