"""Documents and their rows, embedded window by window into a file, for a change of the index that holds the lock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from embedkit.encoder import CONTENT, Encoded, Encoder, OnLong, WindowEncoder, window_of
from embedkit.errors import DataError
from embedkit.index.update import Change
from embedkit.index.writer import Content
from embedkit.storage import new_file, remove
from embedkit.types import Array, Document

WINDOW = 2048  # documents embedded at once, at most
SPOOL = "add.rows"


@contextmanager
def embedded(
    change: Change, documents: Iterator[Document], encoder: Encoder, on_long: OnLong
) -> Iterator[tuple[Array, Content]]:
    """The rows (n, dim) in a file that goes when the block ends, and what they belong to.

    Raises DataError that names a document which the model cannot take."""
    spool, writer = change.folder / SPOOL, change.document_writer()
    counts, spans, empty, rows = [], [], 0, 0
    with new_file(spool) as file:
        while window := window_of(documents, WINDOW, CONTENT):
            found = _encoded(encoder, window, on_long)
            file.write(rows * change.old.dim * 4, np.ascontiguousarray(found.rows, np.float32).data)
            writer.append(window, texts=change.old.texts)
            rows += len(found.rows)
            counts.append(np.bincount(found.inputs, minlength=len(window)))
            spans.append(found.spans)
            empty += sum(change.old.texts and not document.full_text for document in window)
    writer.close()
    several = np.concatenate(counts) if on_long == "chunk" else None
    covered = np.concatenate([s for s in spans if s is not None]) if on_long == "chunk" else None
    yield _mapped(spool, rows, change.old.dim), Content(writer.count, empty, several, covered)
    remove(spool)


def _mapped(path: Path, rows: int, dim: int) -> Array:
    return np.memmap(path, np.float32, mode="r", shape=(rows, dim)) if rows else np.empty((0, dim), np.float32)


def _encoded(encoder: Encoder, window: list[Document], on_long: OnLong) -> Encoded:
    contents = [document.content for document in window]
    if not isinstance(encoder, WindowEncoder):
        return Encoded.whole(encoder.encode(contents, kind="document"))
    found = _only(encoder.encode_windows([contents], kind="document", on_long=on_long))
    for position, reason in found.failed.items():
        raise DataError(f"At the document {window[position].id!r}: {reason}")
    return found


def _only(encoded: Iterable[Encoded]) -> Encoded:
    (found,) = encoded
    return found
