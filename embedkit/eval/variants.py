"""Ways to use one model: fewer dimensions, fewer layers, fewer bits; and an encoder that gives such rows from the full ones.

A row of fewer dimensions is the first columns of the full row, and codes are made of a row, so a grid over dimensions and precisions
costs one encoding; only another number of layers is another pass through the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import numpy as np

from embedkit.encoder import Encoder
from embedkit.types import Kind, Vectors
from embedkit.vectors import DTYPES, Precision, Ranges, in_precision, sign_bits, truncate

SAMPLE = 2048  # rows that set the ranges of int8, as of `embedkit embed`


@dataclass(frozen=True)
class Variant:
    """One way to use a model; None is the model's own."""

    dim: int | None = None
    layers: int | None = None
    precision: Precision = "float32"  # of the rows that are compared

    @property
    def label(self) -> str:
        """ "dim=128 layers=3 int8"; empty for the model as it is."""
        parts = [f"{name}={value}" for name in ("dim", "layers") if (value := getattr(self, name)) is not None]
        return " ".join([*parts, *([self.precision] if self.precision != "float32" else [])])

    @property
    def folder(self) -> str:
        """The name of its folder in the results of a grid: "dim=128,layers=3,int8"."""
        return self.label.replace(" ", ",") or self.precision


def grid(dims: Sequence[int], layers: Sequence[int], precisions: Sequence[str]) -> list[Variant]:
    """All combinations, those of the same layers together; what is empty stays the model's own."""
    axes: tuple[Sequence[int | None], Sequence[int | None], Sequence[str]] = (
        list(dict.fromkeys(layers)) or [None],
        list(dict.fromkeys(dims)) or [None],
        list(dict.fromkeys(precisions)) or ["float32"],
    )
    return [Variant(dim, some, cast("Precision", precision)) for some, dim, precision in product(*axes)]


class Narrowed:
    """An Encoder with the rows of another one, cut to `dim` columns and brought to `precision`, as float32 again.

    Documents, and texts without a role, get what their codes stand for; queries stay in float32, as an index compares them. The
    ranges of int8 are those of the first SAMPLE rows that are not of queries: take a new one for each task.
    """

    def __init__(self, encoder: Encoder, dim: int | None, precision: Precision) -> None:
        self._encoder = encoder
        narrowed = getattr(encoder, "narrowed", None)
        named: Any = encoder if dim is None or narrowed is None else narrowed(dim)
        self.dim: int = dim or encoder.dim
        self.fingerprint: str = named.fingerprint
        self.similarity: str = encoder.similarity
        self.settings: Mapping[str, Any] = {**named.settings, **({} if dim is None else {"dim": dim})}
        self.compute: Mapping[str, str] = {**encoder.compute, **_named(precision)}
        self.precision: Precision = precision
        self._ranges: Ranges | None = None

    def __getattr__(self, name: str) -> Any:  # prompts and the like; windows of rows would be the full ones
        if name.startswith("_") or name in ("encode_windows", "narrowed"):
            raise AttributeError(name)
        return getattr(self._encoder, name)

    @property
    def bytes_per_row(self) -> int:
        """Of a document, in its precision."""
        return -(-self.dim // 8) if self.precision == "binary" else self.dim * DTYPES[self.precision].itemsize

    def encode(self, inputs: Sequence[Any], *, kind: Kind = "document", **options: Any) -> Vectors:
        """See `Encoder`; options: those of the encoder within."""
        rows = self._encoder.encode(inputs, kind=kind, **options)
        unit = bool(getattr(self._encoder, "unit", self.similarity == "cosine"))
        rows = truncate(rows, self.dim, unit=unit) if self.dim < rows.shape[1] else rows
        return rows if kind == "query" or not len(rows) else self._coded(rows)

    def _coded(self, rows: Vectors) -> Vectors:
        if self.precision == "float32":
            return rows
        if self.precision == "binary":  # +1 and -1 at the length of a unit row
            bits = np.unpackbits(sign_bits(rows), axis=1, count=self.dim)
            signs: Vectors = (2 * bits.astype(np.float32) - 1) / np.float32(np.sqrt(self.dim))
            return signs
        if self.precision == "float16":
            return in_precision(rows, "float16").astype(np.float32)
        if self._ranges is None:
            self._ranges = Ranges.of(rows[:SAMPLE])
        return self._ranges.decode(self._ranges.encode(rows))


def _named(precision: str) -> dict[str, str]:
    return {} if precision == "float32" else {"precision": precision}
