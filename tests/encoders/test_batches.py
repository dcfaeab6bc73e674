"""Batches under one token budget."""

from __future__ import annotations

import numpy as np
import pytest

from embedkit.encoders.batches import token_batches


@pytest.mark.parametrize("seed", range(5))
def test_every_row_is_in_one_batch_and_no_batch_passes_the_budget(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 50, size=200).tolist()
    batches = list(token_batches(lengths, budget=64))
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    for batch in batches:
        assert len(batch) * max(lengths[i] for i in batch) <= 64
    order = [lengths[i] for batch in batches for i in batch]
    assert order == sorted(order, reverse=True)


def test_a_batch_is_as_full_as_the_budget_allows() -> None:
    assert list(token_batches([4, 4, 4, 4, 4], budget=12)) == [[0, 1, 2], [3, 4]]
    assert list(token_batches([4, 4, 4], budget=11)) == [[0, 1], [2]]


def test_a_row_longer_than_the_budget_stands_alone() -> None:
    assert list(token_batches([100, 1, 1], budget=10)) == [[0], [1, 2]]


def test_rows_of_a_batch_are_limited_too() -> None:
    assert list(token_batches([1, 1, 1], budget=100, max_rows=2)) == [[0, 1], [2]]


def test_no_rows_give_no_batches() -> None:
    assert list(token_batches([], budget=10)) == []
