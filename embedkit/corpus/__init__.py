"""Readers: whatever holds documents, as one iterator of Document."""

from embedkit.corpus.documents import Fields, check_source, read_corpus

__all__ = ["Fields", "check_source", "read_corpus"]
