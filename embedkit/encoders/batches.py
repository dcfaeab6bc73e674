"""Batches under one token budget.

Rows are sorted by length, longest first, and cut wherever the padded size (rows x longest) would pass the budget: little
padding, and a batch of long texts no larger in memory than a batch of short ones. The cut depends on the lengths alone,
so the same call computes the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence


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
