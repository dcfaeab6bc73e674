"""Batches under one token budget.

Rows are sorted by length, longest first, and cut wherever the padded size (rows x longest) would pass the budget: little
padding, and a batch of long texts no larger in memory than a batch of short ones. The cut depends on the lengths alone,
so the same call computes the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Literal

# texts of a batch: of any lengths, padded to the longest; of one length; or one
Batching = Literal["padded", "equal", "alone"]


def token_batches(lengths: Sequence[int], budget: int, max_rows: int | None = None) -> Iterator[list[int]]:
    """Lists of positions that together name every position once; a row longer than the budget stands alone.

    lengths: tokens of each row. max_rows: at most so many rows a batch, whatever the budget.

    >>> list(token_batches([3, 9, 4], budget=9))
    [[1], [2, 0]]
    """
    batch: list[int] = []
    longest = 0
    for position in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        full = longest * (len(batch) + 1) > budget or len(batch) == max_rows
        if batch and full:
            yield batch
            batch = []
        if not batch:
            longest = lengths[position]
        batch.append(position)
    if batch:
        yield batch


def equal_batches(lengths: Sequence[int], budget: int, max_rows: int | None = None) -> Iterator[list[int]]:
    """The same, each batch of rows of one length.

    >>> list(equal_batches([3, 9, 3, 3], budget=9))
    [[1], [0, 2, 3]]
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for _, group in groupby(order, key=lengths.__getitem__):
        places = list(group)
        for batch in token_batches([lengths[i] for i in places], budget, max_rows):
            yield [places[i] for i in batch]


def stepped(length: int) -> int:
    """The next length up in steps of an eighth of a power of two: 1 to 16, 18, 20, ..., 32, 36, ..., 64, 72, ...

    Lengths that are cut and padded to steps give batches of few shapes, and up to 2 % more padding.

    >>> [stepped(length) for length in (7, 16, 17, 33, 250)]
    [7, 16, 18, 36, 256]
    """
    step = 1 << max((length - 1).bit_length() - 4, 0)
    return -(-length // step) * step
