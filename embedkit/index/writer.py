"""Writes the files of one segment; they count once a manifest names them.

One pass over the vectors writes the fine rows; codes are then trained on a bounded sample of these and filled from them block
by block. Peak memory: the codes, SAMPLE_COPIES of the training sample, one block of rows, and 4 bytes a row where documents
have several rows.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from embedkit.errors import DataError
from embedkit.index.built import write_record
from embedkit.index.calibration import HELD_OUT, NEIGHBOURS, SHORTLISTS, USUAL_RECALL, Settings, calibrated, widened
from embedkit.index.coarse import Codes, fill, least_rows, sample_size, train, write_codes
from embedkit.index.costs import Task
from embedkit.index.document_writer import DocumentWriter
from embedkit.index.documents import DocumentReader
from embedkit.index.faiss_import import thread_count
from embedkit.index.fine import BLOCK, RANGE_SAMPLE, FineRows, FineWriter
from embedkit.index.ids import write_ids, write_numbers
from embedkit.index.layout import Layout
from embedkit.index.manifest import (
    BUILT,
    CODES,
    DOCUMENTS,
    FINE,
    ID_TEXTS,
    SPANS,
    STARTS,
    SegmentRecord,
    Sparse,
    segment_file,
)
from embedkit.index.meter import Meter
from embedkit.index.postings import Block, write_postings
from embedkit.storage import block_record, new_file, npy_header, sealed_partial, sync_file
from embedkit.types import Array, Rows, Vectors
from embedkit.vectors import Ranges, unit_rows

logger = logging.getLogger(__name__)
SEED = 0
TIMED, EXACT_TIMED = 256, 32  # queries that are timed once an index is built, for its record
Entries = Callable[[DocumentReader], Iterator[Block]]  # of the sparse leg, for the documents of a segment


@dataclass(frozen=True)
class Content:
    """What goes into a segment beside its rows: documents that lie in its SQLite file already, and which rows are whose."""

    documents: int
    empty_texts: int
    counts: Array | None = None  # rows of each document; None: one each
    spans: Array | None = None  # (rows, 2) characters of its document that each row covers; None: all

    @property
    def without_rows(self) -> Rows:
        """Documents that were set aside: there is nothing to find them by."""
        return np.flatnonzero(self.counts == 0) if self.counts is not None else np.empty(0, np.int64)


class Written(NamedTuple):
    """What is known of rows once they are written."""

    unit: bool  # all of them have length 1 (or 0)
    outside: int  # values that lie outside the ranges of int8


class SegmentFiles:
    """The files of a new segment, under the number that it will have.

    first: of the whole index, with the codes that were asked for, or an error. A later one is searched exactly where it has too
    few rows to train them."""

    def __init__(
        self, folder: Path, number: int, dim: int, layout: Layout, ram: int | None = None, *, first: bool = True
    ) -> None:
        self.folder, self.number, self.dim, self.layout, self.ram = folder, number, dim, layout, ram
        self.first = first
        # a later segment without codes leaves no record of what it took
        self.meter = Meter(watches_memory=first or layout.coarse != "none")
        self._query_seconds: float | None = None

    def path(self, part: str) -> Path:
        return self.folder / segment_file(self.number, part)

    def write_rows(self, rows: Array, ranges: Ranges | None, name: Callable[[int], str]) -> Written:
        """The fine rows of an array (n, dim). name: of a row, for errors.

        Raises DataError for a row that is not finite as it is stored."""
        unit = True

        def blocks(writer: FineWriter) -> None:
            nonlocal unit
            for start in range(0, len(rows), BLOCK):
                block = prepared(rows[start : start + BLOCK], self.layout, functools.partial(_shifted, name, start))
                unit = unit and _are_unit(block)
                writer.append(block)

        writer = self._write(blocks, ranges)
        return Written(unit, writer.outside)

    def copy_rows(self, stored: Iterable[Array], ranges: Ranges | None) -> None:
        """Rows as other segments of the same index hold them."""

        def blocks(writer: FineWriter) -> None:
            for block in stored:
                writer.append_stored(block)

        self._write(blocks, ranges)

    def _write(self, blocks: Callable[[FineWriter], None], ranges: Ranges | None) -> FineWriter:
        with self.meter.phase("rows"), new_file(self.path(FINE)) as file:
            writer = FineWriter(file, self.dim, self.layout.fine, ranges)
            blocks(writer)
            writer.finish()
        return writer

    def finish(
        self,
        content: Content,
        ranges: Ranges | None,
        sparse: Sparse | None = None,
        entries: Entries | None = None,
        writer: DocumentWriter | None = None,
    ) -> SegmentRecord:
        """Everything else, and what a manifest says of the segment. sparse, entries: of the sparse leg, where there is one.
        writer: that wrote the documents, for the record of what the build took."""
        dense = self._write_dense(content)
        leg = [] if sparse is None or entries is None else self._write_sparse(content, sparse, entries)
        count = content.documents if content.counts is None else int(content.counts.sum())
        factory = factory_of(self.layout, count, self.dim, first=self.first)
        settings = Settings(None, SHORTLISTS[0], (1.0, 1.0))
        fine = FineRows(self.path(FINE), count, self.dim, self.layout.fine, ranges)
        if factory is not None:
            settings = self._write_codes(factory, fine)
            dense.append(CODES)
        elif self.first:
            self._time(functools.partial(fine.search, k=NEIGHBOURS), fine, EXACT_TIMED)
        fine.close()
        with self.meter.phase("seal"):
            files = {part: block_record(self.path(part)) for part in (*dense, *leg)}
        record = SegmentRecord(
            number=self.number,
            rows=count,
            documents=content.documents,
            empty_texts=content.empty_texts,
            coarse=factory,
            probes=settings.probes,
            shortlist=settings.shortlist,
            recall=None if factory is None else settings.recall,
            files=files,
        )
        if writer is not None and (self.first or factory is not None):
            self._write_record(record, writer, frozenset(dense))
        return record

    def _write_dense(self, content: Content) -> list[str]:
        """The ids, and which rows are whose; with what is there already, the parts that are no codes."""
        with self.meter.phase("ids"):
            sync_file(self.path(DOCUMENTS))
            reader = DocumentReader(self.path(DOCUMENTS), content.documents)
            parts = [FINE, DOCUMENTS, *write_ids(self.path, reader.all_ids())]
            reader.close()
            return parts + self._write_ranges_of_rows(content)

    def _write_sparse(self, content: Content, sparse: Sparse, entries: Entries) -> list[str]:
        with self.meter.phase("sparse"):
            reader = DocumentReader(self.path(DOCUMENTS), content.documents)
            parts = write_postings(self.path, content.documents, entries(reader), sparse)
            reader.close()
            return parts

    def _write_record(self, record: SegmentRecord, writer: DocumentWriter, dense: frozenset[str]) -> None:
        """What was predicted, and what was measured. A document's bytes are spread over its rows, as a plan counts rows alone."""
        rows = max(1, record.rows)
        identifier = writer.id_bytes / max(1, writer.count) if ID_TEXTS in record.files else None
        task = Task(
            rows,
            self.dim,
            record.coarse,
            self.layout.fine,
            self.layout.recall,
            writer.text_bytes / rows,
            identifier,
            self.ram,
        )
        self.meter.seconds["documents"] = writer.seconds
        write_record(self.path(BUILT), record, task, self.meter, dense, self._query_seconds)

    def _time(self, search: Callable[[Vectors], Any], fine: FineRows, queries: int) -> None:
        """Core-seconds of a query, from one batch of the first rows; not a part of the build's own time."""
        asked = fine.rows(np.arange(min(queries, fine.count)))
        started = time.perf_counter()
        search(asked)
        if len(asked):
            self._query_seconds = (time.perf_counter() - started) * thread_count() / len(asked)

    def _write_ranges_of_rows(self, content: Content) -> list[str]:
        if content.counts is None:
            return []
        write_numbers(self.path(STARTS), np.concatenate([[0], np.cumsum(content.counts, dtype=np.int64)]))
        if content.spans is None:
            return [STARTS]
        spans = np.asarray(content.spans, dtype="<u4")
        with sealed_partial(self.path(SPANS)) as stream:
            stream.write(npy_header(spans.shape, spans.dtype))
            stream.write(spans.tobytes())
        return [STARTS, SPANS]

    def _write_codes(self, factory: str, fine: FineRows) -> Settings:
        sample, held_out = _sample(fine.count, sample_size(factory, self.dim, fine.count, self.ram))
        logger.debug("training %s on %d of %d rows", factory, len(sample), fine.count)
        with self.meter.phase("train"):
            index = train(factory, self.dim, fine.rows, sample)
        with self.meter.phase("code"):
            fill(index, factory, fine.blocks())
        with self.meter.phase("write"), sealed_partial(self.path(CODES)) as stream:
            write_codes(index, stream)
        codes = Codes(index, fine.kernel, None)
        with self.meter.phase("measure"):
            found = _measured(codes, fine, held_out, self.layout.recall)
        search = functools.partial(codes.search, k=NEIGHBOURS, shortlist=found.shortlist, probes=found.probes)
        self._time(search, fine, TIMED)
        return found


def factory_of(layout: Layout, rows: int, dim: int, *, first: bool) -> str | None:
    """The faiss factory string of a segment of so many rows, None where it is searched exactly. first: of the whole index."""
    factory = layout.factory(rows, dim)
    return factory if factory is not None and (first or rows >= least_rows(factory, dim)) else None


def _sample(count: int, size: int) -> tuple[Rows, Rows]:
    """Rows to train on and rows to measure with, ascending. They are different ones where there are enough: a row that the
    codes were trained on finds its neighbours too easily."""
    if count < HELD_OUT * 10:
        return np.arange(count), _drawn(count, min(HELD_OUT, count))
    drawn = np.random.default_rng(SEED).choice(count, min(count, size + HELD_OUT), replace=False)
    return np.sort(drawn[HELD_OUT:]), np.sort(drawn[:HELD_OUT])


def _measured(codes: Codes, fine: FineRows, own: Rows, target: float | None) -> Settings:
    """The cheapest settings that keep the target on these rows, taken as queries; with a margin where none is given."""
    if fine.count == 1:
        return Settings(None, SHORTLISTS[0], (1.0, 1.0))  # no neighbours to lose
    queries = fine.rows(own)
    _, nearest = fine.nearest(queries, min(NEIGHBOURS + 1, fine.count))
    others = nearest != own[:, None]
    others[others.all(axis=1), -1] = False  # rows with many twins: their own place was taken
    truth = nearest[others].reshape(len(own), -1)
    found = calibrated(codes, queries, own, truth, target or USUAL_RECALL)
    return found if target is not None else widened(codes, found, queries, own, truth)


def drawn_ranges(rows: Array, layout: Layout, name: Callable[[int], str]) -> Ranges | None:
    """The ranges of int8 rows, from a sample of the first rows that an index gets; None for other dtypes."""
    if layout.fine != "int8":
        return None
    numbers = _drawn(len(rows), min(RANGE_SAMPLE, len(rows)))
    return Ranges.of(prepared(rows[numbers], layout, lambda row: name(int(numbers[row])), stored="float32"))


def _drawn(count: int, size: int) -> Rows:
    """`size` of `count` row numbers, ascending."""
    if size == count:
        return np.arange(count)
    chosen: Rows = np.sort(np.random.default_rng(SEED).choice(count, size, replace=False))
    return chosen


def prepared(rows: Array, layout: Layout, name: Callable[[int], str], stored: str | None = None) -> Vectors:
    """float32 rows as the index compares them. Raises DataError that names a row that is not finite, or becomes zero, as it is
    stored."""
    given = np.asarray(rows)
    if given.dtype.itemsize <= 4:  # else it may hold what float32 cannot
        given = given.astype(np.float32, copy=False)
    with np.errstate(over="ignore"):  # what overflows is named below
        block = unit_rows(given) if layout.metric == "cosine" else given.astype(np.float32, copy=False)
        kept = {"int8": "float32"}.get(layout.fine, layout.fine) if stored is None else stored
        held = block.astype(kept)
    finite = np.isfinite(held).all(axis=1)
    if not finite.all():
        raise DataError(
            f"The vector of {name(int(np.argmin(finite)))!r} is not finite in {kept} (NaN, or a number too large); "
            f"mend it, or choose --fine float32."
        )
    if layout.metric == "dot" and (lost := given.any(axis=1) & ~held.any(axis=1)).any():
        raise DataError(
            f"The vector of {name(int(np.argmax(lost)))!r} is too small for {kept}, where it becomes zero; scale the vectors, or "
            f"choose --metric cosine or --fine float32."
        )
    return block


def _shifted(name: Callable[[int], str], start: int, row: int) -> str:
    return name(start + row)


def _are_unit(rows: Vectors) -> bool:
    lengths = np.linalg.norm(rows, axis=1)
    return bool(np.all((np.abs(lengths - 1) < 1e-3) | (lengths == 0)))
