"""Vectors in, Hits out: coarse codes in RAM, fine vectors on disk."""

from embedkit.index.build import Layout, write_index
from embedkit.index.index import Index

__all__ = ["Index", "Layout", "write_index"]
