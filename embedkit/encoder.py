"""What embedkit asks of a model. Whoever brings a new one writes `encode`; everything else is built on top of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from embedkit.types import Kind, Vectors


class Encoder(Protocol):
    """Turns inputs into rows of one vector space."""

    @property
    def dim(self) -> int:
        """Width of the rows."""
        ...

    @property
    def fingerprint(self) -> str:
        """Names the vector space: equal exactly when the same input gives the same row, up to rounding.

        Weights, tokenizer, max_tokens, pooling and all modules, prompts of both kinds, norm, similarity and dim are in
        it; path, device, batch size, backend and compute dtype are not.
        """
        ...

    @property
    def compute(self) -> Mapping[str, str]:
        """How the rows are computed (backend, dtype, threads, versions); it may move the last bits, not the space."""
        ...

    @property
    def similarity(self) -> str:
        """How two rows are compared: "cosine", "dot", "euclidean" or "manhattan"."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """The arguments with which `embedkit.load` opens this model again; empty for one that `load` cannot open."""
        ...

    def encode(self, inputs: Sequence[Any], *, kind: Kind = "document") -> Vectors:
        """float32 (len(inputs), dim), in input order."""
        ...
