"""How the rows of an index are kept, as its builder asks for it."""

from __future__ import annotations

from dataclasses import dataclass

from embedkit.errors import UsageError
from embedkit.index.coarse import automatic_factory, check_factory
from embedkit.index.fine import STORED
from embedkit.index.manifest import Metric, Recipe


@dataclass(frozen=True)
class Layout:
    metric: Metric = "cosine"
    coarse: str = "auto"  # "auto", "none" (exact), or a faiss factory string
    fine: str = "float16"
    bytes_per_vector: int | None = None  # in RAM, for "auto": a code and its row number
    recall: float | None = None  # of the 10 nearest neighbours, that a shortlist is to keep; None: 0.97, and a margin
    recipe: Recipe | None = None  # where these came from

    def check(self, dim: int) -> None:
        """Raises UsageError before any work is done."""
        if self.metric not in ("cosine", "dot"):
            raise UsageError(f"metric={self.metric!r} came; an index compares by 'cosine' or 'dot'.")
        if self.fine not in STORED:
            raise UsageError(f"fine={self.fine!r} came; expected {', '.join(STORED)}.")
        if self.recall is not None and not 0 < self.recall < 1:
            raise UsageError(f"recall={self.recall} came; expected a share between 0 and 1, such as 0.97.")
        if self.bytes_per_vector is not None and self.coarse != "auto":
            raise UsageError(
                "bytes_per_vector is what coarse='auto' chooses by; leave it out, or leave the choice to auto."
            )
        if self.coarse == "auto":
            automatic_factory(1 << 20, dim, self.bytes_per_vector)
        elif self.coarse != "none":
            check_factory(self.coarse, dim)

    def factory(self, rows: int, dim: int) -> str | None:
        """The faiss factory string for so many rows; None for exact search."""
        if self.coarse == "none":
            return None
        return automatic_factory(rows, dim, self.bytes_per_vector) if self.coarse == "auto" else self.coarse
