"""Changes of an index: each becomes one version, with all its parts, or nothing.

New documents make a new segment; documents of the same id in older ones are deleted in the same commit. Segments that are not
twice as large as what comes behind them are merged with it, so that there are at most log2(rows) of them, and a row is copied
log2(rows) times in its life. Deleting writes one bit a document.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from embedkit.corpus.documents import checked_id
from embedkit.errors import DataError, ModelMismatch, Stopped, UsageError
from embedkit.index.calibration import Settings
from embedkit.index.document_writer import DocumentWriter
from embedkit.index.documents import DocumentReader
from embedkit.index.fine import BLOCK
from embedkit.index.ids import open_array, several
from embedkit.index.layout import Layout
from embedkit.index.manifest import (
    DOCUMENTS,
    Manifest,
    Method,
    SegmentRecord,
    Source,
    Sparse,
    check_sizes,
    read_manifest,
    segment_file,
)
from embedkit.index.postings import Block
from embedkit.index.segment import Segment
from embedkit.index.sparse_input import text_entries
from embedkit.index.versions import commit, writing
from embedkit.index.where import check_deletion, matching, read_where
from embedkit.index.writer import Content, Entries, SegmentFiles, drawn_ranges, factory_of
from embedkit.storage import block_record, check_blocks, npy_header, sealed_partial, sync_file, sync_folder
from embedkit.types import Array, Document
from embedkit.vectors import Ranges, is_drift
from embedkit.version import __version__

logger = logging.getLogger(__name__)
AT_ONCE = 10_000  # ids looked up in other segments
KEPT_APART = 2  # times as many rows as what comes behind it: a segment that is not merged


@contextmanager
def changing(folder: Path, ram: int | None = None, known: Manifest | None = None) -> Iterator[Change]:
    """A block that changes an index and ends with a commit of its own; nobody else may change it meanwhile.

    ram: bytes for training. known: the version that what will be added was made for. Raises Stopped while somebody else writes,
    UsageError where there is no index, ModelMismatch where there is one of another model than the known one."""
    manifest = read_manifest(folder)
    with writing(folder):
        manifest = read_manifest(folder)  # another may have committed before we held the lock
        if known is not None:
            _check_same_models(folder, known, manifest)
        check_sizes(folder, manifest)
        change = Change(folder, manifest, ram)
        try:
            yield change
        finally:
            change.close()


def read_ranges(folder: Path, manifest: Manifest) -> Ranges | None:
    """The calibration of int8 rows; None for other rows."""
    if manifest.ranges_file is None:
        return None
    check_blocks(folder / manifest.ranges_name, manifest.ranges_file)
    return Ranges(*np.array(open_array(folder / manifest.ranges_name, (2, manifest.dim), ("<f4",))))


def _check_same_models(folder: Path, known: Manifest, now: Manifest) -> None:
    """That a folder holds an index does not say that it is the one that was opened."""
    for what, old, new in (("", known.source, now.source), ("The sparse leg of ", known.sparse, now.sparse)):
        if _made_by(old) != _made_by(new):
            raise ModelMismatch(
                f"{what}{folder} was built again since it was opened: by {_made_by(new)}, not by {_made_by(old)} as before; open it again."
            )


def _made_by(what: Source | Sparse | None) -> str:
    if what is None or (isinstance(what, Sparse) and what.bm25 is not None):
        return "no model"  # terms are made of the texts by the settings that are there now
    return (
        "vectors or weights that name no model"
        if what.fingerprint is None
        else f"{what.fingerprint[:12]} ({what.model})"
    )


class Change:
    """What becomes the next version."""

    def __init__(self, folder: Path, manifest: Manifest, ram: int | None) -> None:
        self.folder, self.old, self.ram = folder, manifest, ram
        self.layout = Layout(
            manifest.metric, manifest.coarse, manifest.fine, manifest.bytes_per_vector, manifest.recall_target
        )
        self.next_segment, self.number = manifest.next_segment, manifest.number + 1
        self.ranges, self._new_ranges = read_ranges(folder, manifest), False
        self.segments = [Segment(folder, record, manifest, self.ranges) for record in manifest.segments]
        self.deleted: dict[int, Array] = {}  # segment -> bools (documents,), of those where it changes
        self.unit_rows, self.sparse = manifest.unit_rows, manifest.sparse
        self._writer: DocumentWriter | None = None
        # of the sparse leg, for documents that are added: whoever knows the model or the file says it
        self.entries: Entries | None = None
        if manifest.sparse is not None and manifest.sparse.bm25 is not None:
            self.entries = text_entries(manifest.sparse.bm25)

    @classmethod
    def first(
        cls,
        folder: Path,
        dim: int,
        layout: Layout,
        source: Source,
        texts: bool,
        ram: int | None,
        sparse: Sparse | None = None,
    ) -> Change:
        """The change from nothing."""
        nothing = Manifest(
            number=0,
            dim=dim,
            metric=layout.metric,
            unit_rows=True,
            fine=layout.fine,
            coarse=layout.coarse,
            bytes_per_vector=layout.bytes_per_vector,
            recall_target=layout.recall,
            texts=texts,
            source=source,
            created=_now(),
            embedkit=__version__,
            next_segment=1,
            segments=(),
            sparse=sparse,
            recipe=layout.recipe,
        )
        return cls(folder, nothing, ram)

    def close(self) -> None:
        for segment in self.segments:
            segment.close()

    def document_writer(self) -> DocumentWriter:
        """Of the segment that `add` writes next."""
        self._writer = DocumentWriter(self.new_path(DOCUMENTS))
        return self._writer

    def new_path(self, part: str) -> Path:
        """Where a part of that segment lies."""
        return self.folder / segment_file(self.next_segment, part)

    def sync_documents(self) -> None:
        """Makes the closed file of that segment's documents durable."""
        sync_file(self.new_path(DOCUMENTS))
        sync_folder(self.folder)

    def add(self, rows: Array, content: Content) -> None:
        """The documents that lie in `document_writer`'s file, and their rows (n, dim), in the order of the documents. Those of
        the same ids are replaced.

        Raises DataError for rows that are not finite, or where there are none."""
        if len(rows) == 0:
            raise DataError("There are no rows to index; expected at least one.")
        if self.old.sparse is not None and self.entries is None:
            raise UsageError(
                f"{self.folder} has a sparse leg; say what makes the weights of these documents (--sparse)."
            )
        merged = self._to_merge(len(rows))
        files = self._files(len(rows), without_codes=bool(merged))
        reader = DocumentReader(files.path(DOCUMENTS), content.documents)
        name = _row_names(reader, content)
        if self.layout.fine == "int8" and self.ranges is None:
            with files.meter.phase("ranges"):
                self.ranges, self._new_ranges = drawn_ranges(rows, self.layout, name), True
        written = files.write_rows(rows, self.ranges, name)
        self.unit_rows = self.unit_rows and written.unit
        values = len(rows) * self.old.dim
        if is_drift(written.outside, values):
            logger.warning(
                "%.2f %% of the values of these rows lie outside the int8 ranges of %s and were cut to them: they are unlike the rows "
                "that it was built from, or those were few. Build it again from all rows, for compacting keeps the ranges.",
                100 * written.outside / values,
                self.folder,
            )
        self._replace(reader)
        reader.close()
        self._take(files, content, self.entries)
        if len(content.without_rows):
            self._delete(self.segments[-1], content.without_rows)
        if merged:
            self.merge(len(merged) + 1)

    def delete(self, ids: Iterable[str]) -> int:
        """How many were there."""
        wanted = iter(ids)
        count = 0
        while block := list(itertools.islice(wanted, AT_ONCE)):
            for segment in self.segments:
                count += self._delete(segment, np.array(list(segment.documents.numbers(block).values()), np.int64))
        return count

    def delete_where(self, where: Mapping[str, Any]) -> int:
        """How many documents passed the filter. Raises UsageError for one that is empty, or asks for what no document has."""
        wanted = read_where(where, [segment.documents for segment in self.segments])
        check_deletion(wanted)
        return sum(
            self._delete(segment, np.flatnonzero(matching(wanted, segment.documents))) for segment in self.segments
        )

    def set_fusion(self, method: Method, weight: float) -> None:
        """How hybrid search fuses from the next version on."""
        assert self.old.sparse is not None
        self.sparse = replace(self.old.sparse, fusion=method, weight=weight)

    def set_settings(self, settings: Mapping[int, Settings]) -> None:
        """How segments, by number, are searched from the next version on, as they stand. Raises Stopped where one is not there any
        more."""
        known = {segment.record.number: segment for segment in self.segments}
        if not settings.keys() <= known.keys():
            raise Stopped(f"{self.folder} has been changed since its settings were measured; run this again.")
        for number, chosen in settings.items():
            segment = known[number]
            if chosen.probes is not None:  # as of a segment without deletions; `Segment.probes` has these again
                alive = int(segment.rows_of(self._alive(segment)).sum())
                chosen = chosen._replace(probes=(chosen.probes - 1) * alive // segment.record.rows + 1)
            segment.record = replace(segment.record, **chosen._asdict())

    def merge(self, count: int) -> None:
        """The last `count` segments become one, without what is deleted."""
        merged, self.segments = self.segments[-count:], self.segments[:-count]
        alive = [self._alive(segment) for segment in merged]
        masks = [segment.rows_of(kept) for segment, kept in zip(merged, alive, strict=True)]
        if any(kept.any() for kept in alive):
            files = self._files(sum(int(mask.sum()) for mask in masks))
            writer = self.document_writer()
            empty = 0
            for segment, kept in zip(merged, alive, strict=True):
                for document in itertools.compress(segment.documents.stream(), kept):
                    writer.append([document], texts=self.old.texts)
                    empty += self.old.texts and not document.full_text
            writer.close()
            files.copy_rows(_stored(merged, masks), self.ranges)
            content = Content(writer.count, empty, _counts(merged, alive), _spans(merged, masks))
            self._take(files, content, lambda _: self._copied_entries(merged, alive))
        for segment in merged:
            self.deleted.pop(segment.record.number, None)
            segment.close()

    def commit(self) -> Manifest:
        """Publishes what was changed as the next version."""
        records = [self._with_deletions(segment) for segment in self.segments if self._alive(segment).any()]
        manifest = replace(
            self.old,
            number=self.number,
            segments=tuple(records),
            next_segment=self.next_segment,
            unit_rows=self.unit_rows,
            sparse=self.sparse,
            created=_now(),
            embedkit=__version__,
        )
        if self._new_ranges and self.ranges is not None:
            manifest = replace(manifest, ranges=self.number)
            with sealed_partial(self.folder / manifest.ranges_name) as stream:
                stream.write(npy_header((2, self.ranges.dim), np.dtype("<f4")) + self.ranges.array.tobytes())
            manifest = replace(manifest, ranges_file=block_record(self.folder / manifest.ranges_name))
        commit(self.folder, manifest)
        return manifest

    @property
    def changed(self) -> bool:
        records = tuple(segment.record for segment in self.segments)
        return bool(self.deleted) or records != self.old.segments or self.sparse != self.old.sparse

    def _files(self, rows: int, *, without_codes: bool = False) -> SegmentFiles:
        """Of a segment of so many rows."""
        layout, first = self.layout, self.old.number == 0
        if without_codes or (not first and factory_of(layout, rows, self.old.dim, first=False) is None):
            layout = replace(layout, coarse="none", bytes_per_vector=None)
        return SegmentFiles(self.folder, self.next_segment, self.old.dim, layout, self.ram, first=first)

    def _take(self, files: SegmentFiles, content: Content, entries: Entries | None) -> None:
        record = files.finish(content, self.ranges, self.old.sparse, entries, self._writer)
        self.segments.append(Segment(self.folder, record, self.old, self.ranges))
        self.next_segment += 1

    def _copied_entries(self, merged: Sequence[Segment], alive: Sequence[Array]) -> Iterator[Block]:
        """The sparse entries of segments, of the documents that stay."""
        assert self.old.sparse is not None
        base = 0
        for segment, kept in zip(merged, alive, strict=True):
            numbers = np.where(kept, np.cumsum(kept) + (base - 1), -1)
            yield from segment.postings(self.old.sparse).blocks(numbers)
            base += int(kept.sum())

    def _to_merge(self, rows: int) -> Sequence[Segment]:
        merged: list[Segment] = []
        for segment in reversed(self.segments):
            size = int(segment.rows_of(self._alive(segment)).sum())
            if size >= KEPT_APART * rows:
                break
            merged.append(segment)
            rows += size
        return merged

    def _replace(self, reader: DocumentReader) -> None:
        if self.segments:
            self.delete(reader.all_ids())

    def _alive(self, segment: Segment) -> Array:
        before = np.ones(segment.record.documents, dtype=bool) if segment.alive is None else segment.alive
        deleted = self.deleted.get(segment.record.number)
        return before if deleted is None else before & ~deleted

    def _delete(self, segment: Segment, numbers: Array) -> int:
        fresh = numbers[self._alive(segment)[numbers]]
        if len(fresh):
            deleted = self.deleted.setdefault(segment.record.number, np.zeros(segment.record.documents, dtype=bool))
            deleted[fresh] = True
        return len(fresh)

    def _with_deletions(self, segment: Segment) -> SegmentRecord:
        if segment.record.number not in self.deleted:
            return segment.record
        gone = ~self._alive(segment)
        record = replace(segment.record, deleted=int(gone.sum()), deletion=self.number)
        path = self.folder / record.deletion_name
        bits = np.packbits(gone)
        with sealed_partial(path) as stream:
            stream.write(npy_header(bits.shape, bits.dtype) + bits.tobytes())
        return replace(record, deletion_file=block_record(path))


def rebuilt(folder: Path, manifest: Manifest, target: Path, bytes_per_vector: int) -> None:
    """Writes the rows of a version that is held open into another folder, as one segment with codes of another size and neither
    texts nor terms: to be measured."""
    asked = replace(manifest, coarse="auto", bytes_per_vector=bytes_per_vector, texts=False, sparse=None)
    change = Change(folder, asked, None)
    try:
        change.folder, change._new_ranges = target, change.ranges is not None
        change.merge(len(change.segments))
        change.commit()
    finally:
        change.close()


def add_rows(change: Change, rows: Array, ids: Sequence[str] | str | None) -> int:
    """Adds documents without texts; how many."""
    ids = None if ids is None else several(ids)
    if rows.ndim != 2 or rows.shape[1] != change.old.dim or rows.dtype.kind not in "fiu":
        raise DataError(
            f"An array of {rows.dtype} of shape {rows.shape} came; this index holds rows of width {change.old.dim}."
        )
    if ids is None or len(ids) != len(rows):
        raise UsageError(f"{0 if ids is None else len(ids)} ids came with {len(rows)} vectors; give one id a vector.")
    writer = change.document_writer()
    named = (checked_id(str(identifier), f"ids, row {number}") for number, identifier in enumerate(ids, 1))
    writer.append((Document(id=identifier, text="") for identifier in named), texts=False)
    writer.close()
    change.add(rows, Content(writer.count, 0))
    return writer.count


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _row_names(reader: DocumentReader, content: Content) -> Callable[[int], str]:
    """What a row is called in an error."""

    def name(row: int) -> str:
        document = row
        if content.counts is not None:
            document = int(np.searchsorted(np.cumsum(content.counts), row, side="right"))
        return reader.ids([document])[document]

    return name


def _stored(segments: Sequence[Segment], masks: Sequence[Array]) -> Iterator[Array]:
    """The rows of the masks as they lie on disk, BLOCK at a time."""
    for segment, mask in zip(segments, masks, strict=True):
        for start in range(0, len(mask), BLOCK):
            yield segment.fine.stored[start : start + BLOCK][mask[start : start + BLOCK]]


def _counts(segments: Sequence[Segment], alive: Sequence[Array]) -> Array | None:
    if all(segment.starts is None for segment in segments):
        return None
    return np.concatenate(
        [
            (np.ones(len(kept), np.int64) if segment.starts is None else np.diff(segment.starts))[kept]
            for segment, kept in zip(segments, alive, strict=True)
        ]
    )


def _spans(segments: Sequence[Segment], masks: Sequence[Array]) -> Array | None:
    """A row that covers its whole document has the span (0, 0)."""
    if all(segment.spans is None for segment in segments):
        return None
    return np.concatenate(
        [
            np.zeros((int(mask.sum()), 2), "<u4") if segment.spans is None else segment.spans[mask]
            for segment, mask in zip(segments, masks, strict=True)
        ]
    )
