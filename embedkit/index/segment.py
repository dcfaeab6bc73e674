"""One segment of an index, opened: some documents, their rows, and the light codes over these.

Rows are numbered from 0, and so are documents; the rows of a document stand together. Nothing in a segment changes; which of
its documents are deleted is said by the version of the index.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from embedkit.errors import IntegrityError
from embedkit.index.calibration import Tried, probes_of, tried
from embedkit.index.coarse import Codes
from embedkit.index.documents import DocumentReader
from embedkit.index.fine import FineRows, Mask
from embedkit.index.ids import Ids, open_array
from embedkit.index.lifetimes import forkable_lock
from embedkit.index.manifest import (
    CODES,
    DOCUMENTS,
    FINE,
    ID_TEXTS,
    IDS,
    SPANS,
    STARTS,
    Manifest,
    SegmentRecord,
    Sparse,
)
from embedkit.index.postings import Postings
from embedkit.index.where import Where, matching
from embedkit.storage import check_blocks
from embedkit.types import Array, Rows, Vectors
from embedkit.vectors import Ranges

GATHER_COST = (
    1.0  # what a byte of the rows that pass costs, gathered and compared, against a byte of codes that are scanned
)
COLD_SECONDS = 0.002  # a query that takes longer has waited for the disk
FILTERS_KEPT = 16  # masks of the last filters, a byte a document each


class Segment:
    """Opened for reading, from several threads at once."""

    def __init__(self, folder: Path, record: SegmentRecord, manifest: Manifest, ranges: Ranges | None) -> None:
        self.record, self._folder = record, folder
        for part in {IDS, ID_TEXTS, STARTS, SPANS} & set(record.files):
            check_blocks(self.path(part), record.files[part])
        self.fine = FineRows(self.path(FINE), record.rows, manifest.dim, manifest.fine, ranges)
        self.documents = DocumentReader(self.path(DOCUMENTS), record.documents)
        self.ids = Ids(self.path, record.documents, texts=ID_TEXTS in record.files)
        self.starts: Array | None = None
        self.spans: Array | None = None
        if STARTS in record.files:
            self.starts = open_array(self.path(STARTS), (record.documents + 1,), ("<u4", "<u8"))
            if self.starts[-1] != record.rows or np.any(self.starts[1:] < self.starts[:-1]):
                raise IntegrityError(f"{self.path(STARTS)} does not divide {record.rows} rows; build the index again.")
        elif record.rows != record.documents:
            raise IntegrityError(f"{folder} has {record.rows} rows of {record.documents} documents; build it again.")
        if SPANS in record.files:
            self.spans = open_array(self.path(SPANS), (record.rows, 2), ("<u4",))
        self.alive = self._alive()  # documents (n,), None where none is deleted
        self._alive_mask = None if self.alive is None else Mask(self.rows_of(self.alive))
        self._codes: Codes | None = None
        self._postings: Postings | None = None
        self._masks: OrderedDict[str, Mask] = OrderedDict()
        self._cold = True  # whether the rows of a shortlist are asked for before they are read
        self._lock = forkable_lock()

    def path(self, part: str) -> Path:
        return self._folder / self.record.name(part)

    def close(self) -> None:
        """What is open here and in memory goes, once nobody searches any more: its holder knows."""
        self.documents.close()
        self.fine.close()
        self._codes = self._postings = self._alive_mask = None
        self._masks.clear()
        self.ids.close()
        self.starts = self.spans = None

    def _alive(self) -> Array | None:
        if self.record.deletion_file is None:
            return None
        path = self._folder / self.record.deletion_name
        check_blocks(path, self.record.deletion_file)
        bits = open_array(path, (-(-self.record.documents // 8),), ("|u1",))
        gone = np.unpackbits(bits, count=self.record.documents).astype(bool)
        if gone.sum() != self.record.deleted:
            raise IntegrityError(f"{path} deletes others than its manifest says; build the index again.")
        return ~gone

    def codes(self) -> Codes | None:
        """Read at the first call, its checksum first; None where the segment is searched exactly."""
        if self.record.coarse is None:
            return None
        with self._lock:
            if self._codes is None:
                check_blocks(self.path(CODES), self.record.files[CODES])
                self.fine.expect_shortlists()
                self._codes = Codes.read(self.path(CODES), self.fine.kernel, self.record.probes)
        return self._codes

    def postings(self, sparse: Sparse) -> Postings:
        """Of the sparse leg; opened at the first call, their checksums first."""
        with self._lock:
            if self._postings is None:
                self._postings = Postings(self.path, self.record.documents, self.record.files, sparse)
        return self._postings

    def search(
        self, queries: Vectors, k: int, where: Where | None, shortlist: int | None, probes: int | None
    ) -> tuple[Vectors, Rows]:
        """Scores and rows (q, <= k), best first; -1 for none. shortlist and probes: instead of those stored."""
        mask = self._alive_mask if where is None else self.mask(where)
        codes = self.codes()
        if codes is None:
            return self.fine.search(queries, k, mask)
        size = self.shortlist_size(k, shortlist)
        probes = probes or self.probes(mask)
        if self._is_cheap(mask, codes, probes, size):
            return self.fine.search(queries, k, mask)
        if self._cold:
            self._cold = self.fine.ask_for(codes.coarse_scores(queries, size, probes, mask)[1])
        started = time.perf_counter()
        scores, rows = codes.search(queries, k, size, mask, probes)
        self._cold = self._cold or time.perf_counter() - started > COLD_SECONDS * len(queries)
        if -1 in rows[:, -1]:  # the lists visited hold too few, or too few that pass
            short = rows[:, -1] < 0
            some_scores, some_rows = self.fine.search(queries[short], k, mask)
            scores[short, : some_rows.shape[1]], rows[short, : some_rows.shape[1]] = some_scores, some_rows
        return scores, rows

    def probes(self, mask: Mask | None) -> int | None:
        """How many lists a query visits, None where there are none: as many as are stored over the share of rows that count. The k
        nearest of these are spread as k over that share of all rows are."""
        stored, codes = self.record.probes, self._codes
        if mask is None or stored is None or codes is None:
            return stored
        return min(codes.inverted_lists, -(-stored * self.record.rows // max(1, mask.count)))

    def _is_cheap(self, mask: Mask | None, codes: Codes, probes: int | None, size: int) -> bool:
        """Whether all rows that count are compared in the time that the codes would take."""
        if mask is None:
            return False
        width, scanned = self.fine.stored.strides[0], self.record.files[CODES]["bytes"] * codes.share_scanned(probes)
        return GATHER_COST * mask.count * width <= scanned + size * width

    @property
    def usual_probes(self) -> int | None:
        """How many lists a query without a filter visits."""
        self.codes()
        return self.probes(self._alive_mask)

    @property
    def compares_all(self) -> bool:
        """Whether a query without a filter is compared with every row."""
        codes, mask = self.codes(), self._alive_mask
        return codes is None or self._is_cheap(mask, codes, self.usual_probes, self.record.shortlist)

    @property
    def rows_alive(self) -> int:
        return self.record.rows if self._alive_mask is None else self._alive_mask.count

    def nearest(self, queries: Vectors, k: int) -> tuple[Vectors, Rows]:
        """Scores and rows (q, k) of the exact nearest that are not deleted; see `FineRows.nearest`."""
        return self.fine.nearest(queries, k, self._alive_mask)

    def tried(self, queries: Vectors, truth: Rows, sizes: Sequence[int]) -> Iterator[Tried]:
        """All ways to search the codes: what they keep of the true neighbours (q, k), NOWHERE for those of other segments."""
        codes = self.codes()
        assert codes is not None
        for probes in probes_of(codes):
            yield from tried(codes, probes, sizes, queries, None, truth, self._alive_mask)

    def shortlist_size(self, k: int, wanted: int | None = None) -> int:
        """How many candidates are verified for k hits."""
        return max(wanted or self.record.shortlist, 2 * k)

    def knows(self, where: Where) -> bool:
        """Whether the filter has been asked lately."""
        return where.key in self._masks

    def mask(self, where: Where) -> Mask:
        """The rows of documents that are there and pass; kept for the next search with the same filter."""
        with self._lock:
            if where.key in self._masks:
                self._masks.move_to_end(where.key)
                return self._masks[where.key]
        passing = matching(where, self.documents)
        mask = Mask(self.rows_of(passing if self.alive is None else passing & self.alive))
        with self._lock:
            self._masks[where.key] = mask
            if len(self._masks) > FILTERS_KEPT:
                self._masks.popitem(last=False)
        return mask

    def passing(self, where: Where | None) -> Array | None:
        """Bools (documents,) of those that are there and pass; None where all do."""
        if where is None:
            return self.alive
        rows = self.mask(where).rows
        if self.starts is None:
            return rows
        found: Array = np.zeros(self.record.documents, dtype=bool)
        found[self.documents_of(np.flatnonzero(rows))] = True
        return found

    def rows_of(self, documents: Array) -> Array:
        """Bools (rows,) from bools (documents,)."""
        return documents if self.starts is None else np.repeat(documents, np.diff(self.starts))

    def documents_of(self, rows: Rows) -> Rows:
        """Document numbers of rows (n,)."""
        if self.starts is None:
            return rows
        found: Rows = np.searchsorted(self.starts, rows, side="right") - 1
        return found

    def row_range(self, document: int) -> range:
        """The rows of a document."""
        if self.starts is None:
            return range(document, document + 1)
        return range(int(self.starts[document]), int(self.starts[document + 1]))

    def numbers(self, ids: Sequence[str]) -> dict[str, int]:
        """id -> document number, of those that are there and not deleted."""
        found = self.documents.numbers(ids)
        return found if self.alive is None else {key: number for key, number in found.items() if self.alive[number]}
