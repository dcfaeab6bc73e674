"""A stream of documents through an Encoder, window by window, with a progress bar."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from embedkit.encoder import Encoder
from embedkit.errors import ModelError
from embedkit.types import Document, Kind, Vectors

logger = logging.getLogger(__name__)
WINDOW = 512  # documents held at once; the encoder sorts them by length, so padding stays small


def embed_documents(
    documents: Iterable[Document],
    encoder: Encoder,
    kind: Kind = "document",
    *,
    total: int | None = None,
    progress: bool = False,
) -> Iterator[tuple[list[Document], Vectors]]:
    """Windows of documents with their rows (n, dim), in order. progress: a bar on a terminal, nothing in a pipe.

    Raises ModelError that names the document where the model fails at one. Each window is also a log record of level
    DEBUG with `rows`, the count so far, for machine-readable progress.
    """
    stream, done = iter(documents), 0
    with tqdm(total=total, unit="text", desc="embedding", disable=None if progress else True) as bar:
        while window := list(itertools.islice(stream, WINDOW)):
            yield window, _encoded(window, encoder, kind)
            done += len(window)
            bar.update(len(window))
            logger.debug("%d rows embedded", done, extra={"rows": done})


def _encoded(window: list[Document], encoder: Encoder, kind: Kind) -> Vectors:
    try:
        return encoder.encode([document.full_text for document in window], kind=kind)
    except ModelError as error:
        if error.position is None:
            raise
        raise ModelError(f"At the document {window[error.position].id!r}: {error}") from error
