"""What runs a batch of pieces, and when it ran out of memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from embedkit.encoders.pieces import Piece
from embedkit.types import Vectors

T = TypeVar("T")


class SetAside(Exception):
    """Pieces of a batch that cannot be computed, whatever their company: place in the batch -> why."""

    def __init__(self, reasons: Mapping[int, str]) -> None:
        super().__init__("; ".join(reasons.values()))
        self.reasons = reasons


class Batch(NamedTuple, Generic[T]):
    """Pieces that are computed together, longest first, and what the caller wants to find them by again."""

    pieces: list[Piece]
    prompt: str
    kind: str
    tag: T


class Backend(Protocol):
    """Computes the rows of batches."""

    @property
    def compute(self) -> Mapping[str, str]:
        """Backend, device, dtype, threads, token budget and versions."""
        ...

    def run(
        self, batches: Iterable[Batch[T]], *, hurried: bool = False
    ) -> Iterator[tuple[Batch[T], Vectors | Exception]]:
        """Each batch, in order, with its rows (len(pieces), width), or with the error that memory ran out,
        or a SetAside.

        hurried: somebody waits for the answer, so a batch on its own may be computed in another way, and in other bits,
        than beside others.
        """
        ...

    def in_float32(self) -> Backend:
        """The same model, computing in float32."""
        ...


def compute_settings(**settings: Any) -> dict[str, str]:
    """Settings as an Encoder states them in `compute`."""
    return {name: str(value) for name, value in settings.items()}
