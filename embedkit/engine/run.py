"""A stream of documents through an Encoder, window by window, with a progress bar."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from embedkit.encoder import Encoder
from embedkit.types import Document, Kind, Vectors

WINDOW = 512  # documents held at once; the encoder sorts them by length, so padding stays small


def embed_documents(
    documents: Iterable[Document], encoder: Encoder, kind: Kind = "document", *, total: int | None = None, progress: bool = False
) -> Iterator[tuple[list[Document], Vectors]]:
    """Windows of documents with their rows (n, dim), in order. progress: a bar on a terminal, nothing in a pipe."""
    stream = iter(documents)
    with tqdm(total=total, unit="text", desc="embedding", disable=None if progress else True) as bar:
        while window := list(itertools.islice(stream, WINDOW)):
            yield window, encoder.encode([document.full_text for document in window], kind=kind)
            bar.update(len(window))
