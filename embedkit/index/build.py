"""Writes an index folder, whole or not at all.

One pass over the vectors writes fine rows and documents; the coarse codes are then trained on a bounded sample of the
fine rows and filled from them block by block. Peak memory: the codes, one block of rows, the training sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from embedkit.errors import DataError, UsageError
from embedkit.index.coarse import automatic_factory, build_coarse, check_factory, training_rows, write_coarse
from embedkit.index.documents import DocumentWriter
from embedkit.index.fine import open_fine
from embedkit.index.manifest import COARSE, DOCUMENTS, FINE, Manifest, Metric, Source, record_files
from embedkit.storage import NpyWriter, atomic_file, atomic_folder
from embedkit.types import Array, Document, Vectors
from embedkit.vectors import unit_rows
from embedkit.version import __version__

SHORTLIST = 200  # verified candidates of a query, for a k up to it: quality does not depend on k
BLOCK = 65_536  # rows read back at once to fill the codes
FINE_DTYPES = ("float16", "float32")


@dataclass(frozen=True)
class Layout:
    """How the rows are kept."""

    metric: Metric = "cosine"
    coarse: str = "auto"  # "auto", "none" (exact), or a faiss factory string
    fine: str = "float16"

    def check(self, dim: int) -> None:
        """Raises UsageError before any work is done."""
        if self.metric not in ("cosine", "dot"):
            raise UsageError(f"metric={self.metric!r} came; an index compares by 'cosine' or 'dot'.")
        if self.fine not in FINE_DTYPES:
            raise UsageError(f"fine={self.fine!r} came; expected {' or '.join(FINE_DTYPES)}.")
        if self.coarse not in ("auto", "none"):
            check_factory(self.coarse, dim)


def write_index(
    path: Path,
    batches: Iterable[tuple[Sequence[Document], Vectors]],
    dim: int,
    layout: Layout,
    source: Source,
    *,
    texts: bool = True,
) -> Manifest:
    """batches: documents and their rows (n, dim), in any sizes. texts=False stores ids alone.

    Raises DataError for a row that is not finite, an id that came before or too few rows for the coarse level, UsageError
    for a layout that cannot be or a path that is taken; in every case nothing is left at `path`.
    """
    layout.check(dim)
    with atomic_folder(path) as folder:
        count, unit, empty = _write_rows(folder, batches, dim, layout, texts)
        factory = automatic_factory(count) if layout.coarse == "auto" else layout.coarse
        if factory == "none":
            factory = None
        if factory is not None:
            _write_codes(folder, factory, count, dim)
        manifest = Manifest(
            count=count,
            dim=dim,
            metric=layout.metric,
            unit_rows=unit,
            fine=layout.fine,
            coarse=factory,
            shortlist=SHORTLIST,
            texts=texts,
            empty_texts=empty,
            source=source,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            embedkit=__version__,
            files=record_files(folder),
        )
        manifest.write(folder)
    return manifest


def _write_rows(
    folder: Path, batches: Iterable[tuple[Sequence[Document], Vectors]], dim: int, layout: Layout, texts: bool
) -> tuple[int, bool, int]:
    """The count of rows, whether all have length 1 (or 0), and how many texts are empty."""
    documents = DocumentWriter(folder / DOCUMENTS)
    unit, empty = True, 0
    with atomic_file(folder / FINE) as stream:
        writer = NpyWriter(stream, dim, layout.fine)
        for batch, vectors in batches:
            rows = _prepared(vectors, batch, layout)
            unit = unit and _are_unit(rows)
            writer.append(rows)
            documents.append(batch, texts=texts)
            empty += sum(texts and not document.full_text for document in batch)
        writer.finish()
    documents.close()
    if writer.count == 0:
        raise DataError("There are no rows to index; expected at least one.")
    return writer.count, unit, empty


def _prepared(vectors: Vectors, batch: Sequence[Document], layout: Layout) -> Vectors:
    if len(vectors) != len(batch):
        raise DataError(f"{len(batch)} ids came with {len(vectors)} vectors; give one id a vector.")
    rows = np.asarray(vectors, dtype=np.float32)
    if layout.metric == "cosine":
        rows = unit_rows(rows)
    with np.errstate(over="ignore"):  # what overflows is named below
        stored = rows.astype(layout.fine)
    broken = np.flatnonzero(~np.isfinite(stored).all(axis=1))
    if len(broken):
        raise DataError(
            f"The vector of {batch[broken[0]].id!r} is not finite in {layout.fine} (NaN, or a number too large); "
            f"mend it, or choose --fine float32."
        )
    return rows


def _are_unit(rows: Vectors) -> bool:
    lengths = np.linalg.norm(rows, axis=1)
    return bool(np.all((np.abs(lengths - 1) < 1e-3) | (lengths == 0)))


def _write_codes(folder: Path, factory: str, count: int, dim: int) -> None:
    fine = open_fine(folder / FINE, count, dim)
    size = training_rows(factory, dim, count)
    chosen = np.sort(np.random.default_rng(0).choice(count, size, replace=False))
    sample = np.ascontiguousarray(fine[chosen], dtype=np.float32)
    index = build_coarse(factory, dim, sample, _blocks(fine))
    with atomic_file(folder / COARSE) as stream:
        write_coarse(index, stream)


def _blocks(fine: Array) -> Iterator[Vectors]:
    for start in range(0, len(fine), BLOCK):
        yield np.ascontiguousarray(fine[start : start + BLOCK], dtype=np.float32)
