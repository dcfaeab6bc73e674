"""Rows of numbers: unit length, truncation, and codes of fewer bits beside the calibration that they need. numpy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from embedkit.errors import DataError, UsageError
from embedkit.types import Array, Rows, Vectors

Precision = Literal["float32", "float16", "int8", "binary"]
DTYPES: dict[str, np.dtype[Any]] = {  # of the numbers that are stored; eight bits of "binary" in one
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "int8": np.dtype("u1"),
    "binary": np.dtype("u1"),
}
STEPS = 255  # between the lowest and the highest value of an int8 dimension
BLOCK = 16_384  # codes that are made float32 at once
# Share of values outside the ranges above which rows count as other than those that these were taken from. Of rows like them
# 2 / (n + 1) lie outside the extremes of n: 0.1 % of a window of 2,048. Texts of six other collections have 0.3 to 1.0 % outside the
# ranges of SciFact, and lose 0.01 to 0.06 of their neighbours by them (eval/README.md).
DRIFT = 0.003
BY_CHANCE = 100  # values outside, up to which a share says little


def unit_rows(vectors: Array) -> Vectors:
    """The rows (n, dim) at Euclidean length 1; an all-zero row stays zero. The argument is not changed."""
    if vectors.dtype.itemsize > 4:  # squares of float64 values beyond 1e154 or under 1e-162 are not numbers any more
        largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0)
        with np.errstate(invalid="ignore"):
            vectors = (vectors / np.where(largest == 0, 1, largest)).astype(np.float64, copy=False)
    # in float64: squares of float32 values beyond 1e19 or under 1e-23 are not numbers any more
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))[:, None]
    with np.errstate(invalid="ignore"):  # an infinite row becomes NaN, which the caller names
        return (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32, copy=False)


def truncate(vectors: Vectors, dim: int, *, unit: bool) -> Vectors:
    """The first `dim` columns, at length 1 again when `unit` (Matryoshka, Kusupati et al. 2022, section 3).

    Raises UsageError when `dim` is not between 1 and the width of the rows.
    """
    check_dim(dim, vectors.shape[1])
    shorter = vectors[:, :dim]
    return unit_rows(shorter) if unit else np.ascontiguousarray(shorter)


def check_dim(dim: int, width: int) -> None:
    if not 1 <= dim <= width:
        raise UsageError(f"dim={dim} was asked for, the model gives {width} dimensions; choose 1 to {width}.")


# --- fewer bits -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Ranges:
    """The calibration of int8 codes: a code c of a dimension, 0 to 255, stands for `lowest + (c + 0.5) * step`.

    It is taken once, from a sample of the documents, and stored beside their codes; documents that come later and queries are
    coded by the same one, so a row has the same code alone and in any batch. A value outside takes the nearest code inside.
    The ranges go from the lowest to the highest value of the sample: a finer step between quantiles costs more than it gives
    (of SciFact's exact neighbours the extremes of 2,048 rows keep 0.991, 0.1 % to 99.9 % 0.987, 1 % to 99 % 0.954).
    """

    lowest: Vectors  # (dim,)
    step: Vectors  # (dim,), above 0

    @classmethod
    def of(cls, sample: Vectors) -> Ranges:
        """From the lowest and the highest value of each dimension of a sample (n, dim).

        Raises UsageError where there is no row, DataError with the position of one that is not finite."""
        if sample.ndim != 2 or not len(sample):
            raise UsageError(f"A sample of shape {sample.shape} came; expected rows of documents, (n, dim).")
        _check_held(sample, "int8")
        lowest, highest = sample.min(axis=0), sample.max(axis=0)
        width = np.maximum(highest - lowest, 1e-12)
        return cls(lowest.astype(np.float32), (width / STEPS).astype(np.float32))

    @classmethod
    def read(cls, path: str | Path) -> Ranges:
        """From a NAME.ranges.npy. Raises UsageError where there is no such file, DataError where it holds something else."""
        if not Path(path).is_file():
            raise UsageError(f"{path} is not there; expected the NAME.ranges.npy that lies beside int8 vectors.")
        try:
            array: Array = np.lib.format.open_memmap(path, mode="r")
        except Exception as error:  # numpy meets a damaged file with ValueError, TokenError, EOFError, ...
            raise DataError(f"{path} is not an array of numbers ({error}); give a NAME.ranges.npy.") from None
        good = array.ndim == 2 and len(array) == 2 and array.shape[1] > 0 and array.dtype == np.float32
        if not good or not np.isfinite(array).all() or not (array[1] > 0).all():
            raise DataError(
                f"{path} holds {array.dtype} of shape {array.shape}; expected ranges: float32 (2, dim), the lowest value and the "
                f"step, above 0, of each dimension. They lie in the NAME.ranges.npy beside int8 vectors."
            )
        return cls(np.array(array[0]), np.array(array[1]))

    @property
    def dim(self) -> int:
        return len(self.lowest)

    @property
    def array(self) -> Vectors:
        """(2, dim), as it is stored: `lowest`, then `step`."""
        return np.stack([self.lowest, self.step]).astype("<f4", copy=False)

    def encode(self, rows: Vectors) -> Array:
        """uint8 (n, dim): the codes of finite rows."""
        clipped: Array = np.clip(self._steps(rows), 0, STEPS).astype(np.uint8)
        return clipped

    def decode(self, codes: Array) -> Vectors:
        """float32 (n, dim): what the codes stand for."""
        self._check(codes, codes=True)
        decoded: Vectors = self.lowest + (codes + np.float32(0.5)) * self.step
        return decoded

    def outside(self, rows: Vectors) -> int:
        """How many of the n * dim values lie outside the ranges; see `is_drift`."""
        steps = self._steps(rows)
        return int(np.count_nonzero((steps < 0) | (steps > STEPS)))

    def scores(self, queries: Vectors, codes: Array) -> Vectors:
        """float32 (q, n): inner products of queries (q, dim) with what the codes (n, dim) stand for.

        The step goes into the query, and nothing is decoded: q·(lowest + (c + 0.5) step) = (q step)·c + q·(lowest + 0.5 step).
        Without the step, as raw codes are often multiplied, a dimension counts by how small its range is.
        """
        self._check(queries)
        self._check(codes, codes=True)
        constant = queries @ (self.lowest + np.float32(0.5) * self.step)
        products = _products(queries * self.step, codes, lambda block: block.astype(np.float32))
        products += constant[:, None]
        return products

    def _check(self, rows: Array, codes: bool = False) -> None:
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise UsageError(f"An array of shape {rows.shape} came; these ranges are of rows of {self.dim} numbers.")
        if codes and rows.dtype != np.uint8:
            raise UsageError(f"Codes in {rows.dtype} came; expected uint8: to signed ones, from -128 on, add 128.")

    def _steps(self, rows: Vectors) -> Vectors:
        self._check(rows)
        with np.errstate(over="ignore"):  # infinitely many steps are more than 255, too
            steps: Vectors = np.floor((rows - self.lowest) / self.step)
        return steps


def is_drift(outside: int, values: int) -> bool:
    """Whether so many of the values outside the ranges say that the rows are unlike those that the ranges come from."""
    return outside > max(BY_CHANCE, DRIFT * values)


def sign_bits(rows: Vectors) -> Array:
    """uint8 (n, ceil(dim / 8)): a bit a value, set where it is above 0, the first value in the highest bit; zeros fill up."""
    return np.packbits(rows > 0, axis=1)


def sign_scores(queries: Vectors, bits: Array) -> Vectors:
    """float32 (q, n): inner products of queries (q, dim) with the signs, +1 or -1, that `sign_bits` keeps of documents."""
    return _products(queries, bits, lambda block: _signs(block, queries.shape[1]))


def hamming(queries: Array, bits: Array) -> Rows:
    """(q, n) how many bits differ between rows of `sign_bits`; smaller is nearer."""
    width = 8 * bits.shape[1]  # bits that fill up differ nowhere
    agreement = sign_scores(_signs(queries, width), bits)  # of whole numbers, so exact
    differing: Rows = ((width - agreement) / 2).astype(np.int64)
    return differing


def _signs(bits: Array, dim: int) -> Vectors:
    signs: Vectors = np.unpackbits(bits, axis=1, count=dim).astype(np.float32) * 2 - 1
    return signs


def _products(queries: Vectors, codes: Array, opened: Callable[[Array], Vectors]) -> Vectors:
    """(q, n) of queries and opened codes, BLOCK of these at a time."""
    products = np.empty((len(queries), len(codes)), np.float32)
    for start in range(0, len(codes), BLOCK):
        products[:, start : start + BLOCK] = queries @ opened(codes[start : start + BLOCK]).T
    return products


def in_precision(rows: Vectors, precision: str, ranges: Ranges | None = None) -> Array:
    """float32 rows (n, dim) as they are stored: float32, float16, int8 codes by `ranges`, or the bits of their signs.

    Raises DataError with the position of a row that the precision cannot hold, UsageError for int8 without ranges."""
    if precision == "float32":
        return rows
    _check_held(rows, precision)
    if precision == "binary":
        return sign_bits(rows)
    if precision == "float16":
        return rows.astype(DTYPES[precision])
    if ranges is None:
        raise UsageError(
            "precision='int8' came without ranges; give those of the documents, the NAME.ranges.npy beside their vectors, or "
            "Ranges.of(a sample of them)."
        )
    return ranges.encode(rows)


def check_precision(precision: str, ranges: Ranges | None, dim: int) -> None:
    """Raises UsageError for a precision that is none, and for ranges that do not belong to it or to such rows."""
    if precision not in DTYPES:
        raise UsageError(f"precision={precision!r} came; expected {', '.join(DTYPES)}.")
    if ranges is not None and precision != "int8":
        raise UsageError(f"Ranges and precision={precision!r} came; ranges belong to int8: leave them out.")
    if ranges is not None and ranges.dim != dim:
        raise UsageError(
            f"Ranges of {ranges.dim} dimensions came for rows of {dim}; give those of the same model and dim."
        )


def _check_held(rows: Vectors, precision: str) -> None:
    with np.errstate(over="ignore"):  # what overflows is named
        held = np.isfinite(rows.astype(np.float16) if precision == "float16" else rows).all(axis=1)
    if not held.all():
        place = int(np.argmin(held))
        raise DataError(
            f"The row has a value of {np.abs(rows[place]).max():g}, which {precision} cannot hold"
            f"{' (it ends at 65504)' if precision == 'float16' else ''}; choose the precision float32.",
            position=place,
        )
