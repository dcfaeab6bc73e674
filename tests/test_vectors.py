"""Rows at unit length and cut rows, against loops over Python's own floats."""

from __future__ import annotations

import math

import numpy as np
import pytest

from embedkit.errors import UsageError
from embedkit.vectors import check_dim, truncate, unit_rows


def random_rows(count: int = 7, dim: int = 5) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(count, dim)).astype(np.float32)


def slow_unit(rows: np.ndarray) -> list[list[float]]:
    """Each number over the root of the sum of squares of its row; zero rows stay."""
    unit = []
    for row in rows.tolist():
        length = math.sqrt(math.fsum(x * x for x in row))
        unit.append([x / length for x in row] if length else row)
    return unit


def test_a_row_known_by_hand() -> None:
    assert unit_rows(np.array([[3, -4], [0, 2]], dtype=np.float32)).tolist() == [
        [pytest.approx(0.6, rel=1e-6), pytest.approx(-0.8, rel=1e-6)],
        [0, 1],
    ]


@pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
def test_unit_rows_are_those_of_a_slow_loop(scale: float) -> None:
    rows = random_rows() * np.float32(scale)
    np.testing.assert_allclose(unit_rows(rows), slow_unit(rows), rtol=1e-6)


def test_zero_rows_stay_zero_beside_others() -> None:
    rows = random_rows()
    rows[[0, 3]] = 0
    unit = unit_rows(rows)
    assert not unit[[0, 3]].any()
    np.testing.assert_allclose(np.linalg.norm(unit[[1, 2, 4, 5, 6]], axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_argument_is_not_changed_and_the_result_is_float32(dtype: type) -> None:
    rows = np.array([[3, 4], [0.6, 0.8], [0, 0]], dtype=dtype)
    before = rows.copy()
    unit = unit_rows(rows)
    unit[:] = 9
    assert unit.dtype == np.float32
    assert np.array_equal(rows, before)


def test_no_rows_give_no_rows() -> None:
    assert unit_rows(np.empty((0, 4), dtype=np.float32)).shape == (0, 4)


@pytest.mark.parametrize("dim", [1, 2, 4, 5])
def test_truncation_keeps_the_first_columns(dim: int) -> None:
    rows = random_rows()
    short = truncate(rows, dim, unit=False)
    assert short.tolist() == [row[:dim] for row in rows.tolist()]
    assert short.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("dim", [1, 2, 4, 5])
def test_truncated_rows_have_unit_length_again_when_asked(dim: int) -> None:
    rows = random_rows()
    before = rows.copy()
    short = truncate(rows, dim, unit=True)
    np.testing.assert_allclose(short, slow_unit(rows[:, :dim]), rtol=1e-6)
    assert short.dtype == np.float32
    assert np.array_equal(rows, before)


@pytest.mark.parametrize("dim", [0, 6, -1, 600])
def test_a_dim_outside_the_rows_is_refused(dim: int) -> None:
    for call in (lambda: truncate(random_rows(), dim, unit=True), lambda: check_dim(dim, 5)):
        with pytest.raises(UsageError) as error:
            call()
        assert str(error.value) == f"dim={dim} was asked for, the model gives 5 dimensions; choose 1 to 5."


@pytest.mark.parametrize("dim", [1, 3, 5])
def test_a_dim_within_the_rows_is_taken(dim: int) -> None:
    assert check_dim(dim, 5) is None


@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_huge_and_tiny_rows_get_unit_length_too(size: float) -> None:
    rows = np.array([[3 * size, 4 * size]], dtype=np.float32)
    np.testing.assert_allclose(unit_rows(rows), [[0.6, 0.8]], rtol=1e-6)
