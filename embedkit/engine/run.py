"""A stream of documents through an Encoder, window by window, with a progress bar.

The windows are counted from the first document on and depend on nothing else, so that the same rows are computed in the
same company in every run: that is what makes a resumed job end with the same bits.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from embedkit.encoder import CONTENT, Encoded, Encoder, OnLong, WindowEncoder, window_of
from embedkit.errors import EmbedkitError, ModelError, UsageError
from embedkit.types import Content, Document, Kind, Vectors

logger = logging.getLogger(__name__)
WINDOW = 2048  # documents held at once; the encoder sorts them by length, so padding stays small


class Window(NamedTuple):
    """Documents that are held and encoded together."""

    number: int  # from 0
    row: int  # where it begins in the corpus
    documents: list[Document]


Held = deque[Window]  # that were taken and are not encoded yet; an encoder may take the next one in a thread of its own


def embed_documents(
    documents: Iterable[Document],
    encoder: Encoder,
    kind: Kind = "document",
    *,
    total: int | None = None,
    progress: bool = False,
) -> Iterator[tuple[list[Document], Vectors]]:
    """Windows of documents with their rows (n, dim), in order. progress: a bar on a terminal, nothing in a pipe.

    A warning says how many documents were cut. Raises ModelError that names the document where the model fails at one. Each window is
    also a log record of level DEBUG with `rows`, the count so far, for machine-readable progress.
    """
    held: Held = deque()

    def contents() -> Iterator[list[Content]]:
        for window in windows_of(documents):
            held.append(window)
            yield [document.content for document in window.documents]

    done = cut = 0
    with progress_bar(total, progress) as bar, closing(encode_windows(encoder, contents(), kind)) as encoded:
        while True:
            with naming_documents(held):
                found = next(encoded, None)
            if found is None:
                break
            cut += len(found.truncated)
            window = held.popleft().documents
            for position, reason in found.failed.items():
                raise ModelError(f"At the document {window[position].id!r}: {reason}")
            yield window, found.rows
            release_memory()
            done += len(window)
            bar.update(len(window))
            log_rows(done)
    if cut:
        most = getattr(encoder, "max_tokens", None) or "the model's"
        logger.warning("%s of %s documents are longer than %s tokens and were cut.", f"{cut:,}", f"{done:,}", most)


def windows_of(documents: Iterable[Document]) -> Iterator[Window]:
    """WINDOW documents each, or fewer, as `window_of` has them."""
    stream, row = iter(documents), 0
    for number in itertools.count():
        if not (window := window_of(stream, WINDOW, CONTENT)):
            return
        yield Window(number, row, window)
        row += len(window)


def encode_windows(
    encoder: Encoder | WindowEncoder,
    windows: Iterable[Sequence[Content]],
    kind: Kind,
    on_long: OnLong = "truncate",
    on_batch: Callable[[int, Sequence[int]], None] | None = None,
) -> Generator[Encoded, None, None]:
    """One Encoded a window, in order, by any Encoder: what WindowEncoder promises is done here for one that is none.

    Close it when it is not read to its end: an encoder may have a thread of its own, which ends with it."""
    if isinstance(encoder, WindowEncoder):
        yield from encoder.encode_windows(windows, kind=kind, on_long=on_long, on_batch=on_batch)
        return
    if on_long != "truncate":
        raise UsageError(f"on_long={on_long!r} is for models that embedkit loads; leave it out.")
    for number, window in enumerate(windows):
        if on_batch is not None:
            on_batch(number, range(len(window)))
        yield _halving(encoder, window, kind)


def _halving(encoder: Encoder, texts: Sequence[Content], kind: Kind) -> Encoded:
    """Where memory runs out, both halves are tried, down to one input, which is set aside."""
    try:
        return Encoded.whole(encoder.encode(texts, kind=kind))
    except MemoryError:
        if len(texts) == 1:
            nothing = np.empty((0, encoder.dim), dtype=np.float32)
            reason = "memory ran out for this input alone"
            return Encoded(nothing, np.empty(0, dtype=np.int64), failed={0: reason})
    middle = len(texts) // 2  # outside the except block, whose traceback would keep the failed attempt in memory
    left = _halving(encoder, texts[:middle], kind)
    try:
        right = _halving(encoder, texts[middle:], kind)
    except ModelError as error:
        if error.position is not None:
            error.position += middle
        raise
    return Encoded(
        np.concatenate([left.rows, right.rows]),
        np.concatenate([left.inputs, right.inputs + middle]),
        failed={**left.failed, **{position + middle: reason for position, reason in right.failed.items()}},
        halvings=left.halvings + right.halvings + 1,
    )


@contextmanager
def naming_documents(held: Held) -> Iterator[None]:
    """A block in which an error with a position is one at a document of the first window held, and names it."""
    try:
        yield
    except EmbedkitError as error:
        if error.position is None:
            raise
        raise type(error)(f"At the document {held[0].documents[error.position].id!r}: {error}") from error


@functools.cache
def _malloc_trim() -> Callable[[int], Any] | None:
    """glibc's, where there is one."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None


def release_memory() -> None:
    """Gives the blocks of past windows back to the system. glibc keeps freed blocks that lie between small ones: 100,000
    rows would take a sixth more memory than 10,000. Cost: some milliseconds."""
    if trim := _malloc_trim():
        trim(0)


def progress_bar(total: int | None, wanted: bool) -> tqdm:
    return tqdm(total=total, unit="text", desc="embedding", disable=None if wanted else True)


def log_rows(done: int) -> None:
    logger.debug("%d rows embedded", done, extra={"rows": done})
