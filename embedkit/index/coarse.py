"""The coarse level: light codes in RAM, any faiss factory string.

faiss is used for what it is good at, codes and kernels; ids, texts and checksums are ours. Its import is late: exact
search needs no faiss.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

from embedkit.errors import DataError, IntegrityError, MissingDependency, UsageError
from embedkit.types import Rows, Vectors

EXACT_UP_TO = 50_000  # rows; below, exact search answers a query in milliseconds
TRAINING_PER_LIST = 64  # faiss warns under 39 rows a centroid and uses no more than 256
TRAINING_AT_LEAST, TRAINING_AT_MOST = 65_536, 524_288
# Inverted lists that a query visits: at least 48, else an eighth. The neighbours of a question are spread over many lists:
# on SciFact's training queries 16 of 64 lists lose 0.028 nDCG@10 against all of them, 32 lose 0.004, 48 lose 0.001.
PROBED_AT_LEAST, PROBED_SHARE = 48, 1 / 8


def import_faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ImportError:
        raise MissingDependency(
            'faiss is not installed; from the project\'s folder, run pip install -e ".[cpu]" or, for a GPU, pip install -e ".[gpu]".'
        ) from None


def automatic_factory(count: int) -> str | None:
    """Exact search for small collections, else inverted lists over 8-bit codes (dim bytes a row)."""
    if count <= EXACT_UP_TO:
        return None
    return f"IVF{2 ** round(math.log2(4 * math.sqrt(count)))},SQ8"


def check_factory(factory: str, dim: int) -> None:
    """Raises UsageError when faiss cannot make an inner-product index of this string and dimension."""
    _new(factory, dim)


def _new(factory: str, dim: int) -> Any:
    faiss = import_faiss()
    try:
        return faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise UsageError(
            f"faiss makes no index of {factory!r} in {dim} dimensions ({_reason(error)}); try for example 'IVF64,SQ8' or 'PQ48x4fs'."
        ) from None


def _reason(error: RuntimeError) -> str:
    """What faiss says, without its C++ signatures and source lines."""
    return re.split(r"failed: |\.cpp:\d+: ", str(error))[-1].strip()


def training_rows(factory: str, dim: int, count: int) -> int:
    """How many rows are drawn to train on: a bounded sample, whatever the count."""
    ivf = inverted_lists(_new(factory, dim))
    lists = ivf.nlist if ivf is not None else 0
    return min(count, TRAINING_AT_MOST, max(TRAINING_AT_LEAST, TRAINING_PER_LIST * lists))


def build_coarse(factory: str, dim: int, sample: Vectors, blocks: Iterable[Vectors]) -> Any:
    """Trains on the sample and adds all blocks in order; a row's position is its number.

    Raises DataError when the factory needs more rows to train on than there are.
    """
    index = _new(factory, dim)
    try:
        index.train(sample)
    except RuntimeError as error:
        raise DataError(
            f"{factory!r} cannot be trained on {len(sample)} rows ({_reason(error)}); choose fewer lists or centroids, or "
            f"--coarse none."
        ) from None
    try:
        for block in blocks:
            index.add(block)
    except RuntimeError as error:
        raise UsageError(f"faiss adds no rows to an index of {factory!r} ({_reason(error)}); choose another.") from None
    if (ivf := inverted_lists(index)) is not None:
        ivf.nprobe = min(ivf.nlist, max(PROBED_AT_LEAST, round(ivf.nlist * PROBED_SHARE)))
    return index


def inverted_lists(index: Any) -> Any | None:
    """The IVF part of an index, whatever stands in front of it; None where there is none."""
    faiss = import_faiss()
    return faiss.try_extract_index_ivf(index)


def write_coarse(index: Any, stream: IO[bytes]) -> None:
    faiss = import_faiss()
    writer = faiss.PyCallbackIOWriter(stream.write)
    faiss.write_index(index, writer)
    del writer  # flushes what it buffered


def read_coarse(path: Path, count: int) -> Any:
    """The codes, in RAM. The file's checksum has been verified: faiss trusts what it reads."""
    faiss = import_faiss()
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise IntegrityError(
            f"{path} cannot be read by this faiss ({_reason(error)}); build the index again."
        ) from None
    if index.ntotal != count:
        raise IntegrityError(f"{path} holds {index.ntotal} rows, its manifest says {count}; build the index again.")
    return index


def shortlist(index: Any, queries: Vectors, size: int) -> Rows:
    """(q, size) candidate rows; -1 where the codes offer fewer."""
    rows: Rows = index.search(np.ascontiguousarray(queries), min(size, index.ntotal))[1]
    return rows
