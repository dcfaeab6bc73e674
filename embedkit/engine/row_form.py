"""How the rows of one output are stored: in which precision, and for int8 by which ranges.

Ranges that nobody gave are taken from the first window that has rows. They stand in its record of the ledger, which counts once
it is durable, as the codes before it do: a job that was stopped after that goes on with the same ranges, one that was
stopped earlier computes the same rows again.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from embedkit.engine.ledger import AFRESH
from embedkit.errors import IntegrityError, UsageError
from embedkit.types import Kind, Vectors
from embedkit.vectors import DTYPES, Ranges, check_precision, in_precision


class RowForm:
    """Rows of `dim` numbers become `columns` numbers of `dtype`."""

    def __init__(self, precision: str, dim: int, ranges: Ranges | None) -> None:
        check_precision(precision, ranges, dim)
        self.precision, self.ranges = precision, ranges
        self.dtype = DTYPES[precision]
        self.columns = -(-dim // 8) if precision == "binary" else dim

    @property
    def width(self) -> int:
        """Bytes a row."""
        return self.columns * self.dtype.itemsize

    def stored(self, rows: Vectors) -> tuple[bytes, dict[str, Any]]:
        """The bytes of the rows of a window, and what its record says of them: how many values lie outside the ranges of int8, and
        the ranges themselves where they were taken from these rows. Raises DataError with the position of a row that cannot be."""
        rows = np.ascontiguousarray(rows, dtype="<f4")
        facts: dict[str, Any] = {}
        if self.precision == "int8" and len(rows):
            if self.ranges is None:
                self.ranges = Ranges.of(rows)
                facts["ranges"] = base64.b64encode(self.ranges.array.tobytes()).decode()
            facts["outside"] = self.ranges.outside(rows)
        if not len(rows):
            return b"", facts
        return in_precision(rows, self.precision, self.ranges).tobytes(), facts

    def go_on_with(self, ranges: str) -> None:
        """Takes the ranges that an earlier run recorded. Raises IntegrityError for what can be none."""
        try:
            array = np.frombuffer(base64.b64decode(ranges, validate=True), "<f4").reshape(2, self.columns)
        except ValueError:
            array = np.zeros((2, self.columns), np.float32)
        if not np.isfinite(array).all() or not (array[1] > 0).all():
            raise IntegrityError(f"The ledger records no int8 ranges of {self.columns} dimensions; {AFRESH}.")
        self.ranges = Ranges(*array)


def check_calibration(precision: str, given: bool, kind: Kind, sharded: bool) -> None:
    """Raises UsageError for int8 codes that would have ranges of their own, where they are compared or put together with others."""
    if precision != "int8" or given:
        return
    if kind == "query":
        raise UsageError(
            "int8 queries need the ranges of the documents that they are compared with: give the NAME.ranges.npy beside these "
            "with --ranges, or leave the queries in float32, which loses nothing."
        )
    if sharded:
        raise UsageError(
            "int8 parts need the same ranges: embed the first rows alone (--limit 2048), and give the NAME.ranges.npy that comes "
            "of it to every part with --ranges."
        )
