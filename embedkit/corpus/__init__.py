"""Readers: whatever holds documents, as one iterator of Document."""

from embedkit.corpus.documents import Fields, read_corpus

__all__ = ["Fields", "read_corpus"]
