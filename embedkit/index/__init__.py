"""Vectors in, Hits out: coarse codes in RAM, fine vectors on disk, in segments under one manifest."""

from embedkit.index.index import Index
from embedkit.index.layout import Layout

__all__ = ["Index", "Layout"]
