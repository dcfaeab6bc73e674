"""Vectors in, Hits out: coarse codes in RAM, fine vectors on disk."""

from embedkit.index.build import write_index
from embedkit.index.index import Index

__all__ = ["Index", "write_index"]
