"""One version of an index, opened: its segments side by side, their rows and documents numbered through.

A row key is the number of a row in its segment, behind all rows of the segments before; so is a document key. Searches take
what the segments find and rank it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from embedkit.errors import IntegrityError, UsageError
from embedkit.index.lifetimes import at_the_end, forkable_lock
from embedkit.index.manifest import Manifest, check_files, check_sizes, manifest_name
from embedkit.index.ranking import Group, Ranked, best_of, cut, grouped
from embedkit.index.segment import Segment
from embedkit.index.sparse import SparseLeg
from embedkit.index.update import read_ranges
from embedkit.index.versions import open_version
from embedkit.index.where import Where, check_fields, parse_where
from embedkit.types import Array, Document, Rows, Vectors

SPARE = 8  # rows beyond k that are looked at for ties; only one where a shortlist bounds them anyway
MEAN_OF = 3  # times k documents, whose means are compared


@dataclass(frozen=True)
class Way:
    """How a segment is searched; None: as is stored."""

    probes: int | None
    shortlist: int | None


class Asked(NamedTuple):
    """How a search is done."""

    where: Where | None = None
    group: Group | None = "best"
    shortlist: int | None = None  # instead of the one stored
    probes: int | None = None
    ways: Sequence[Way] | None = None  # how each segment is searched, instead of these two


class Snapshot:
    """Opened for reading, from several threads at once; its files stay until it is closed, and all that is open of it until nobody
    uses it then: `with snapshot.taken():` is a use, and so is the time of who alone knows it."""

    def __init__(self, folder: Path, *, check: bool) -> None:
        self.folder = folder
        self.manifest: Manifest
        self.manifest, self._hold = open_version(folder)
        self._let_go = at_the_end(self, os.close, self._hold)  # also where nobody calls close
        # an entry a use: who uses it says so and then looks whether it is closed, who closes it does so in the other order, and
        # nobody waits, for a lock here would be taken twice a query
        self._uses: list[None] = []
        self._closed, self._ending = False, forkable_lock()
        self.segments: list[Segment] = []
        self._sparse: SparseLeg | None = None
        try:
            check_sizes(folder, self.manifest)
            if check:
                check_files(folder, self.manifest)
            ranges = read_ranges(folder, self.manifest)
            for record in self.manifest.segments:
                self.segments.append(Segment(folder, record, self.manifest, ranges))
        except BaseException:
            self.close()
            raise
        self.row_bases = np.cumsum([0, *(segment.record.rows for segment in self.segments)])
        self.document_bases = np.cumsum([0, *(segment.record.documents for segment in self.segments)])
        self.row_count = int(self.row_bases[-1])  # with those that are deleted
        self.has_passages = any(segment.starts is not None for segment in self.segments)
        self.is_exact = all(segment.record.coarse is None for segment in self.segments)
        self._opening = forkable_lock()

    def close(self) -> None:
        """Lets this version go, with the last search that runs in it; a writer may remove it then."""
        self._closed = True
        if not self._uses:
            self._dispose()

    def taken(self) -> Snapshot | None:
        """This version, to be used in a `with` block, until whose end it stays open; None where it is closed."""
        self._uses.append(None)
        if not self._closed:
            return self
        self.__exit__()
        return None

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(
        self, kind: object = None, error: BaseException | None = None, trace: TracebackType | None = None
    ) -> None:
        try:
            if error is not None and isinstance(error, (FileNotFoundError, IntegrityError)):
                self._check_in_place()  # no damage, if it is not there any more
        finally:
            self._uses.pop()
            if self._closed and not self._uses:
                self._dispose()

    def _dispose(self) -> None:
        if not self._ending.acquire(blocking=False):  # another thread does, or has
            return
        for segment in self.segments:
            segment.close()
        self._sparse = None
        self._let_go()

    def _check_in_place(self) -> None:
        """Raises UsageError where other files, or none, lie under the names of this version."""
        path = self.folder / manifest_name(self.manifest.number)
        try:
            there = os.path.samestat(path.stat(), os.fstat(self._hold))
        except (FileNotFoundError, NotADirectoryError):
            there = False
        if not there:
            raise UsageError(
                f"{self.folder} was moved, removed or built again since it was opened; open it again where it is now."
            ) from None

    # --- search -------------------------------------------------------------------------------------------------------

    def where(self, where: Mapping[str, Any]) -> Where:
        """A filter, read. Raises UsageError for what is not understood, and for fields that no document has in this way."""
        parsed = parse_where(where)
        if not (self.segments and self.segments[0].knows(parsed)):
            check_fields(parsed, [segment.documents for segment in self.segments])
        return parsed

    def search(self, vectors: Vectors, k: int, asked: Asked) -> Ranked:
        """The k best of each query: documents, or rows where they are not grouped."""
        return cut(self._ranked(vectors, k, asked), k, self.document_ids if asked.group else self.row_ids)

    def nearest(self, vectors: Vectors, k: int) -> tuple[Vectors, Rows]:
        """Scores and keys (q, <= k) of the exact nearest rows, whatever codes there are."""
        found = [segment.nearest(vectors, k) for segment in self.segments]
        bases = self.row_bases[:-1].tolist()
        keys = [np.where(rows < 0, -1, rows + base) for (_, rows), base in zip(found, bases, strict=True)]
        return best_of([scores for scores, _ in found], keys, k)

    def _ranked(self, vectors: Vectors, k: int, asked: Asked) -> Ranked:
        """At least k of each query where there are so many, best first, with what ties with the last one."""
        fetch = k + (SPARE if self.is_exact else 1)
        while True:
            scores, rows = self._rows(vectors, fetch, asked)
            ranked = Ranked(scores, rows, rows)
            if asked.group and self.has_passages:
                ranked = grouped(scores, rows, self.documents_of)
            elif asked.group:
                ranked = Ranked(scores, self.documents_of(rows), rows)
            if rows.shape[1] < fetch or fetch >= self.row_count:
                break  # that was everything that passes
            if not self._more_needed(ranked, rows, scores[:, -1], k, asked.group):
                break
            fetch *= 4
        return self._by_mean(vectors, ranked) if asked.group == "mean" and self.has_passages else ranked

    def _more_needed(self, ranked: Ranked, rows: Rows, lowest: Vectors, k: int, group: Group | None) -> bool:
        """Whether longer lists of rows could change the first k. lowest: (q,) the score of the last row of each list."""
        if not (self.is_exact or (group and self.has_passages)):
            return False
        full = rows[:, -1] >= 0  # what is not full has everything that passes
        wanted = MEAN_OF * k if group == "mean" and not self.is_exact else k
        if group == "mean" and self.is_exact and self.has_passages:
            return bool(full.any())
        few = (ranked.keys >= 0).sum(axis=1) < wanted if group and self.has_passages else np.zeros(len(rows), bool)
        tied = np.zeros(len(rows), bool)
        if self.is_exact and ranked.scores.shape[1] >= k:
            tied = ranked.scores[:, k - 1] == lowest  # rows that were not fetched may have this score, too
        return bool((full & (few | tied)).any())

    def _rows(self, vectors: Vectors, size: int, asked: Asked) -> tuple[Vectors, Rows]:
        """The best rows of all segments, (q, <= size), numbered through."""
        scores, rows = [], []
        ways = asked.ways or [Way(asked.probes, asked.shortlist)] * len(self.segments)
        for segment, base, way in zip(self.segments, self.row_bases[:-1].tolist(), ways, strict=True):
            some_scores, some_rows = segment.search(vectors, size, asked.where, way.shortlist, way.probes)
            scores.append(some_scores)
            rows.append(np.where(some_rows < 0, -1, some_rows + base) if base else some_rows)
        if not scores:
            return np.empty((len(vectors), 0), np.float32), np.empty((len(vectors), 0), np.int64)
        return best_of(scores, rows, size)

    def _by_mean(self, vectors: Vectors, ranked: Ranked) -> Ranked:
        """The documents of each query by the mean score of all their rows."""
        means = np.full(ranked.scores.shape, -np.inf, dtype=np.float32)
        for query, keys in enumerate(ranked.keys):
            for place, key in enumerate(keys[keys >= 0]):
                segment, number = self._place(self.document_bases, int(key))
                rows = np.array(segment.row_range(number))
                means[query, place] = segment.fine.score(vectors[query : query + 1], rows).mean(dtype=np.float64)
        order = np.argsort(-means, axis=1, kind="stable")
        return Ranked(means, ranked.keys, ranked.rows).at(order)

    def most_rows(self, ids: Sequence[str]) -> int:
        """Of any of these documents."""
        places = (self._place(self.document_bases, key) for key in self.keys(ids).values())
        return max(len(segment.row_range(number)) for segment, number in places)

    def without(self, ranked: Ranked, own: Sequence[str], k: int, group: Group | None) -> Ranked:
        """Each query's own document left out."""
        places = self.keys(own)
        keys = ranked.keys if group else self.documents_of(ranked.rows)
        itself = keys == np.array([places[identifier] for identifier in own])[:, None]
        order = np.argsort(itself | (ranked.keys < 0), axis=1, kind="stable")[:, :k]
        return ranked.at(order).where(~np.take_along_axis(itself, order, axis=1))

    def coarse(self, vectors: Vectors, k: int, asked: Asked) -> list[dict[int, tuple[int, float]]]:
        """Of each query: row -> rank and score that the codes of its segment give it."""
        said: list[dict[int, tuple[int, float]]] = [{} for _ in vectors]
        for segment, base in zip(self.segments, self.row_bases[:-1], strict=True):
            if (codes := segment.codes()) is None:
                continue
            scores, rows = codes.coarse_scores(
                vectors, segment.shortlist_size(k + SPARE, asked.shortlist), asked.probes
            )
            for query, pairs in enumerate(said):
                found = zip(rows[query].tolist(), scores[query].tolist(), strict=True)
                pairs.update({base + row: (rank, score) for rank, (row, score) in enumerate(found, 1) if row >= 0})
        return said

    def explained(self, ranked: Ranked, coarse: Sequence[Mapping[int, tuple[int, float]]]) -> list[dict[str, Any]]:
        explained = []
        for query, (scores, rows) in enumerate(zip(ranked.scores, ranked.rows, strict=True)):
            for rank, (score, row) in enumerate(zip(scores[rows >= 0], rows[rows >= 0], strict=True), 1):
                segment, _ = self._place(self.row_bases, int(row))
                by_codes = coarse[query].get(int(row))
                explained.append(
                    {
                        "fine": {"rank": rank, "score": float(score)},
                        "coarse": None if by_codes is None else {"rank": by_codes[0], "score": by_codes[1]},
                        "segment": segment.record.number,
                    }
                )
        return explained

    # --- the sparse leg -----------------------------------------------------------------------------------------------

    def sparse(self) -> SparseLeg:
        """Opened at the first call. Raises UsageError where the index has none."""
        if self.manifest.sparse is None:
            raise UsageError(f"{self.folder} has no sparse leg; build it with --sparse, or search with mode 'dense'.")
        with self._opening:
            if self._sparse is None:
                self._sparse = SparseLeg(self.segments, self.manifest.sparse)
        return self._sparse

    def passing(self, where: Where | None) -> Array | None:
        """Bools (documents,) of those that are there and pass, over all segments; None where all do."""
        masks = [segment.passing(where) for segment in self.segments]
        if all(mask is None for mask in masks):
            return None
        return np.concatenate(
            [
                np.ones(segment.record.documents, dtype=bool) if mask is None else mask
                for segment, mask in zip(self.segments, masks, strict=True)
            ]
        )

    def exact(self, vector: Vectors, keys: Rows, group: Group | None) -> tuple[Vectors, Rows]:
        """float32 (m,) the exact dense scores of documents (m,), and the row of each that scores best. vector: (dim,)"""
        scores, best_rows = np.empty(len(keys), np.float32), np.empty(len(keys), np.int64)
        for base, segment, places in self._by_segment(self.document_bases, keys):
            first_row = int(self.row_bases[self.segments.index(segment)])
            if segment.starts is None:
                best_rows[places] = keys[places] - base + first_row
                scores[places] = segment.fine.score(vector[None], keys[places] - base)[0]
                continue
            ranges = [segment.row_range(number) for number in (keys[places] - base).tolist()]
            found = segment.fine.score(vector[None], np.concatenate([np.arange(0), *ranges]))[0]
            ends = np.cumsum([len(rows) for rows in ranges])
            for place, rows, end in zip(places.tolist(), ranges, ends.tolist(), strict=True):
                own = found[end - len(rows) : end]
                top = int(own.argmax()) if len(own) > 1 else 0
                scores[place] = own.mean(dtype=np.float64) if group == "mean" and len(own) > 1 else own[top]
                best_rows[place] = first_row + rows[top]
        return scores, best_rows

    def first_rows(self, keys: Rows) -> Rows:
        """The first row of each document, -1 of -1."""
        if not self.has_passages:
            return keys
        rows = np.full(keys.shape, -1, np.int64)
        for place, key in np.ndenumerate(keys):
            if key >= 0:
                segment, number = self._place(self.document_bases, int(key))
                rows[place] = self.row_bases[self.segments.index(segment)] + segment.row_range(number).start
        return rows

    def segment_of(self, key: int) -> tuple[int, int]:
        """(place of the segment, key of its first document) of a document."""
        place = int(np.searchsorted(self.document_bases, key, side="right")) - 1
        return place, int(self.document_bases[place])

    # --- what a row is ------------------------------------------------------------------------------------------------

    def _place(self, bases: Array, key: int) -> tuple[Segment, int]:
        number = int(np.searchsorted(bases, key, side="right")) - 1
        return self.segments[number], key - int(bases[number])

    def _by_segment(self, bases: Array, keys: Rows) -> Iterator[tuple[int, Segment, Array]]:
        """(base, segment, places (m,) of the keys that are in it)."""
        if len(self.segments) == 1:
            yield 0, self.segments[0], np.arange(len(keys))
            return
        numbers = np.searchsorted(bases, keys, side="right") - 1
        for number in np.unique(numbers):
            yield int(bases[number]), self.segments[number], np.flatnonzero(numbers == number)

    def documents_of(self, rows: Rows) -> Rows:
        """Document keys of row keys, -1 of -1."""
        if not self.has_passages:
            return rows
        keys = np.full(rows.shape, -1, dtype=np.int64)
        real = rows >= 0
        flat, found = rows[real], np.empty(int(real.sum()), np.int64)
        for base, segment, places in self._by_segment(self.row_bases, flat):
            first = self.document_bases[self.segments.index(segment)]
            found[places] = segment.documents_of(flat[places] - base) + first
        keys[real] = found
        return keys

    def document_ids(self, keys: Rows) -> list[str]:
        if len(self.segments) == 1:
            return self.segments[0].ids.of(keys)
        names = np.empty(len(keys), dtype=object)
        for base, segment, places in self._by_segment(self.document_bases, keys):
            names[places] = segment.ids.of(keys[places] - base)
        return list(names)

    def row_ids(self, rows: Rows) -> list[str]:
        """A document's own id, or "doc#3" where it has several rows."""
        names = self.document_ids(self.documents_of(rows))
        if not self.has_passages:
            return names
        for place, row in enumerate(rows):
            segment, inside = self._place(self.row_bases, int(row))
            own = segment.row_range(int(segment.documents_of(np.array([inside]))[0]))
            if len(own) > 1:
                names[place] = f"{names[place]}#{inside - own.start}"
        return names

    def row_spans(self, rows: Rows) -> list[tuple[int, int]]:
        """The characters of its document that each row covers, (0, 0) for all of them."""
        spans = np.zeros((len(rows), 2), dtype=np.int64)
        for base, segment, places in self._by_segment(self.row_bases, rows):
            if segment.spans is not None:
                spans[places] = segment.spans[rows[places] - base]
        return [(start, end) for start, end in spans.tolist()]

    def documents(self, keys: Rows) -> list[Document]:
        documents = np.empty(len(keys), dtype=object)
        for base, segment, places in self._by_segment(self.document_bases, keys):
            numbers = (keys[places] - base).tolist()
            found = segment.documents.documents(numbers)
            for place, number in zip(places, numbers, strict=True):
                documents[place] = found[number]
        return list(documents)

    def keys(self, ids: Sequence[str]) -> dict[str, int]:
        """id -> document key. Raises UsageError for one that is not there."""
        found = {
            identifier: number + int(base)
            for segment, base in zip(self.segments, self.document_bases[:-1], strict=True)
            for identifier, number in segment.numbers(ids).items()
        }
        for identifier in ids:
            if identifier not in found:
                raise UsageError(f"{self.folder} holds no document {identifier!r}; give an id that is there.")
        return {identifier: found[identifier] for identifier in ids}

    def rows(self, keys: Rows) -> Vectors:
        """(m, dim) the rows of keys (m,)."""
        rows = np.empty((len(keys), self.manifest.dim), np.float32)
        for base, segment, places in self._by_segment(self.row_bases, keys):
            rows[places] = segment.fine.rows(keys[places] - base)
        return rows

    def stored_vectors(self, ids: Sequence[str]) -> Vectors:
        """(n, dim) the rows of stored documents, the mean where one has several."""
        rows = []
        for key in map(self.keys(ids).__getitem__, ids):
            segment, number = self._place(self.document_bases, key)
            rows.append(segment.fine.rows(np.array(segment.row_range(number))).mean(axis=0))
        return np.array(rows, dtype=np.float32).reshape(-1, self.manifest.dim)
