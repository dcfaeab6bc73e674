"""Rows at unit length, cut rows and codes of fewer bits, against loops over Python's own numbers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from embedkit import vectors
from embedkit.errors import DataError, UsageError
from embedkit.vectors import (
    Ranges,
    check_dim,
    check_precision,
    hamming,
    in_precision,
    is_drift,
    sign_bits,
    sign_scores,
    truncate,
    unit_rows,
)


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


@pytest.mark.parametrize("dtype", [np.float64, np.longdouble])
@pytest.mark.parametrize("scale", [5e-324, 1e-300, 1e-200, 1e200, 1e307])
def test_rows_beyond_the_squares_of_their_numbers_have_length_one(scale: float, dtype: type) -> None:
    rows = np.array([[3, -4, 0], [0, 0, 1], [1, 1, 1]], dtype) * dtype(scale)
    expected = [[0.6, -0.8, 0], [0, 0, 1], [math.sqrt(1 / 3)] * 3]
    np.testing.assert_allclose(unit_rows(rows), expected, rtol=1e-6)


def test_subnormal_rows_of_float32_have_length_one() -> None:
    np.testing.assert_allclose(
        unit_rows(np.array([[3e-45, -4e-45]], np.float32)), [slow_unit(np.array([[2.0, -3.0]]))[0]]
    )


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


# --- int8 -----------------------------------------------------------------------------------------------------------


def spread_rows(count: int, dim: int, seed: int = 0, spread: float = 0.7) -> np.ndarray:
    """Unit rows whose dimensions have very different widths, as those of trained models do."""
    widths = np.exp(spread * np.random.default_rng(99).normal(size=dim))
    return unit_rows((np.random.default_rng(seed).normal(size=(count, dim)) * widths).astype(np.float32))


def test_codes_known_by_hand() -> None:
    ranges = Ranges.of(np.array([[0, -1], [255, 254]], dtype=np.float32))
    assert (ranges.lowest.tolist(), ranges.step.tolist()) == ([0, -1], [1, 1])
    values = [[0, -1], [0.99, 254], [1, 0], [254.5, 300], [255, -2], [400, 0.5]]
    codes = ranges.encode(np.array(values, dtype=np.float32))
    assert codes.tolist() == [[0, 0], [0, 255], [1, 1], [254, 255], [255, 0], [255, 1]]
    assert codes.dtype == np.uint8
    assert ranges.decode(codes)[:, 0].tolist() == [0.5, 0.5, 1.5, 254.5, 255.5, 255.5]


@pytest.mark.parametrize("dim", [1, 7, 64])
def test_codes_are_those_of_sentence_transformers_by_the_same_extremes(dim: int) -> None:
    from sentence_transformers.util.quantization import quantize_embeddings

    sample, rows = spread_rows(200, dim), spread_rows(500, dim, seed=1)
    theirs = quantize_embeddings(rows, "uint8", ranges=np.stack([sample.min(axis=0), sample.max(axis=0)]))
    np.testing.assert_array_equal(Ranges.of(sample).encode(rows), theirs)
    np.testing.assert_array_equal(sign_bits(rows), quantize_embeddings(rows, "ubinary"))


@pytest.mark.parametrize("dim", [1, 7, 64])
def test_a_code_stands_for_what_is_half_a_step_away_at_most(dim: int) -> None:
    rows = spread_rows(300, dim)
    ranges = Ranges.of(rows)
    assert np.all(np.abs(ranges.decode(ranges.encode(rows)) - rows) <= 0.501 * ranges.step)
    assert ranges.outside(rows) == 0


@pytest.mark.parametrize("seed", range(8))
def test_a_row_has_one_code_alone_and_in_any_batch(seed: int) -> None:
    """Also in another order, within a wider array, and where values lie outside the ranges."""
    draw = np.random.default_rng(seed)
    dim = int(draw.integers(1, 80))
    ranges = Ranges.of(spread_rows(50, dim, seed))
    rows = 1.5 * spread_rows(200, dim, seed + 1000)
    whole = ranges.encode(rows)
    alone = np.concatenate([ranges.encode(rows[number : number + 1]) for number in range(200)])
    np.testing.assert_array_equal(whole, alone)
    order, size = draw.permutation(200), int(draw.integers(1, 50))
    parts = [ranges.encode(rows[order][start : start + size]) for start in range(0, 200, size)]
    np.testing.assert_array_equal(np.concatenate(parts), whole[order])
    np.testing.assert_array_equal(ranges.encode(np.asfortranarray(rows)[::3]), whole[::3])


def test_a_dimension_that_never_changes_keeps_its_value() -> None:
    ranges = Ranges.of(np.array([[3, 0], [3, 1]], np.float32))
    codes = ranges.encode(np.array([[3, 0.5], [3e30, 0], [-3e30, 0]], np.float32))
    np.testing.assert_allclose(ranges.decode(codes)[:, 0], 3)


def test_values_outside_are_counted_one_by_one() -> None:
    ranges = Ranges.of(spread_rows(40, 6))
    rows = spread_rows(500, 6, seed=1)
    highest = (ranges.lowest.astype(float) + 256 * ranges.step.astype(float)).tolist()
    slow = sum(
        not low <= value < high
        for row in rows.tolist()
        for value, low, high in zip(row, ranges.lowest.tolist(), highest, strict=True)
    )
    assert 0 < slow < rows.size / 10
    assert ranges.outside(rows) == slow
    assert ranges.outside(np.full((2, 6), 1e30, np.float32)) == 12


def test_drift_is_a_share_that_chance_does_not_make() -> None:
    """Rows like the sample of a window, drawn anew, are none, many or few; rows a little wider are."""
    ranges = Ranges.of(spread_rows(2048, 64, spread=0))
    for count in (1, 10, 5000):
        rows = spread_rows(count, 64, seed=count, spread=0)
        assert not is_drift(ranges.outside(rows), rows.size)
    assert is_drift(ranges.outside(1.2 * rows), rows.size)
    assert [is_drift(outside, 10**6) for outside in (3000, 3001)] == [False, True]
    assert [is_drift(outside, 400) for outside in (100, 101)] == [False, True]


@pytest.mark.parametrize("block", [1, 7, 10_000])
def test_folded_scores_are_products_with_the_decoded_rows(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "BLOCK", block)
    rows, queries = spread_rows(100, 24), spread_rows(9, 24, seed=1)
    ranges = Ranges.of(rows)
    codes = ranges.encode(rows)
    slow = [
        [math.fsum(a * b for a, b in zip(q, d, strict=True)) for d in ranges.decode(codes).tolist()]
        for q in queries.tolist()
    ]
    scores = ranges.scores(queries, codes)
    np.testing.assert_allclose(scores, slow, atol=1e-5)
    assert scores.dtype == np.float32
    assert ranges.scores(queries[:0], codes).shape == (0, 100)
    assert ranges.scores(queries, codes[:0]).shape == (9, 0)


def test_folded_scores_find_what_float_finds_and_raw_codes_do_not() -> None:
    rows, queries = spread_rows(4000, 96), spread_rows(50, 96, seed=1)
    ranges = Ranges.of(rows[:2000])
    codes = ranges.encode(rows)
    raw = queries @ codes.astype(np.float32).T
    assert recall(queries @ rows.T, ranges.scores(queries, codes)) > 0.97
    assert recall(queries @ rows.T, raw) < 0.7


def recall(truth: np.ndarray, found: np.ndarray, k: int = 10) -> float:
    best, kept = (np.argsort(-scores, axis=1)[:, :k] for scores in (truth, found))
    return float(np.mean([len(set(b) & set(f)) / k for b, f in zip(best, kept, strict=True)]))


@pytest.mark.parametrize("shape", [(0, 4), (4,)])
def test_ranges_need_rows(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"A sample of shape .* came; expected rows of documents"):
        Ranges.of(np.zeros(shape, np.float32))


def test_ranges_are_read_as_they_were_written(tmp_path: Path) -> None:
    ranges = Ranges.of(spread_rows(20, 5))
    np.save(tmp_path / "a.ranges.npy", ranges.array)
    again = Ranges.read(str(tmp_path / "a.ranges.npy"))
    np.testing.assert_array_equal(again.array, ranges.array)
    assert (again.dim, again.array.dtype, again.array.shape) == (5, np.dtype("<f4"), (2, 5))


@pytest.mark.parametrize(
    "array",
    [
        np.ones((3, 4), np.float32),
        np.ones((2, 0), np.float32),
        np.ones(2, np.float32),
        np.ones((2, 4), np.float64),
        np.zeros((2, 4), np.float32),
        np.array([[0, np.nan], [1, 1]], np.float32),
        np.array([[0, 0], [1, np.inf]], np.float32),
    ],
    ids=["rows", "no columns", "1d", "float64", "no step", "nan", "infinite"],
)
def test_what_is_no_ranges_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=r"expected ranges: float32 \(2, dim\)"):
        Ranges.read(tmp_path / "a.npy")


def test_a_file_that_is_missing_or_no_array_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a\.npy is not there; expected the NAME\.ranges\.npy"):
        Ranges.read(tmp_path / "a.npy")
    for content in (b"nothing", b"PK\x03\x04" + bytes(40)):  # the second is what numpy takes for several arrays
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.npy is not an array of numbers"):
            Ranges.read(tmp_path / "a.npy")


def test_other_widths_and_signed_codes_are_refused() -> None:
    rows = spread_rows(20, 5)
    ranges = Ranges.of(rows)
    codes = ranges.encode(rows)
    for call in (
        lambda: ranges.encode(rows[0]),
        lambda: ranges.outside(rows[:, :4]),
        lambda: ranges.decode(codes[:, :4]),
        lambda: ranges.scores(rows[:, :4], codes),
        lambda: ranges.scores(rows, codes[:, :4]),
    ):
        with pytest.raises(UsageError, match=r"An array of shape .* came; these ranges are of rows of 5 numbers"):
            call()
    for call in (lambda: ranges.decode(codes.astype(np.int8)), lambda: ranges.scores(rows, rows)):
        with pytest.raises(UsageError, match=r"Codes in (int8|float32) came; expected uint8"):
            call()


# --- bits -----------------------------------------------------------------------------------------------------------


def test_bits_known_by_hand() -> None:
    rows = np.array([[1, -1, 0.5, 0, -3, 2, 9, -9, 4], [-1] * 8 + [0]], np.float32)
    assert sign_bits(rows).tolist() == [[0b10100110, 0b10000000], [0, 0]]


@pytest.mark.parametrize("dim", [1, 8, 13, 64])
@pytest.mark.parametrize("block", [3, 10_000])
def test_scores_of_bits_are_those_of_slow_loops(dim: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "BLOCK", block)
    rows, queries = spread_rows(20, dim), spread_rows(5, dim, seed=1)
    bits = sign_bits(rows)
    assert bits.shape == (20, math.ceil(dim / 8))
    signs = [[1 if value > 0 else -1 for value in row] for row in rows.tolist()]
    products = [[math.fsum(a * b for a, b in zip(q, d, strict=True)) for d in signs] for q in queries.tolist()]
    np.testing.assert_allclose(sign_scores(queries, bits), products, atol=1e-5)
    asked = [[value > 0 for value in row] for row in queries.tolist()]
    differing = [[sum(a != (b > 0) for a, b in zip(q, d, strict=True)) for d in signs] for q in asked]
    assert hamming(sign_bits(queries), bits).tolist() == differing


# --- stored ---------------------------------------------------------------------------------------------------------


def test_rows_in_each_precision() -> None:
    rows = spread_rows(10, 12)
    ranges = Ranges.of(rows)
    assert in_precision(rows, "float32") is rows
    np.testing.assert_array_equal(in_precision(rows, "float16"), rows.astype(np.float16))
    np.testing.assert_array_equal(in_precision(rows, "int8", ranges), ranges.encode(rows))
    np.testing.assert_array_equal(in_precision(rows, "binary"), np.packbits(rows > 0, axis=1))
    with pytest.raises(UsageError, match="precision='int8' came without ranges"):
        in_precision(rows, "int8")


@pytest.mark.parametrize(
    ("precision", "value", "words"),
    [
        (
            "float16",
            70000.0,
            "a value of 70000, which float16 cannot hold (it ends at 65504); choose the precision float32",
        ),
        ("float16", -70000.0, "a value of 70000, which float16"),
        ("float16", math.nan, "a value of nan, which float16"),
        ("int8", math.nan, "a value of nan, which int8 cannot hold; choose"),
        ("int8", math.inf, "a value of inf, which int8"),
        ("binary", math.nan, "a value of nan, which binary"),
    ],
)
def test_a_value_that_does_not_fit_is_named_and_never_written(precision: str, value: float, words: str) -> None:
    rows = spread_rows(5, 4)
    ranges = Ranges.of(rows)
    rows[3, 2] = value
    with pytest.raises(DataError) as error:
        in_precision(rows, precision, ranges)
    assert words in str(error.value) and error.value.position == 3
    if precision == "int8":
        with pytest.raises(DataError, match="which int8"):
            Ranges.of(rows)


def test_the_largest_value_of_float16_fits() -> None:
    assert in_precision(np.array([[65504, -65504]], np.float32), "float16").tolist() == [[65504, -65504]]


def test_ranges_and_precision_must_fit() -> None:
    ranges = Ranges.of(spread_rows(5, 4))
    check_precision("int8", ranges, 4)
    check_precision("int8", None, 4)
    with pytest.raises(UsageError, match="precision='int4' came; expected float32, float16, int8, binary"):
        check_precision("int4", None, 4)
    with pytest.raises(UsageError, match="ranges belong to int8"):
        check_precision("float16", ranges, 4)
    with pytest.raises(UsageError, match="Ranges of 4 dimensions came for rows of 5"):
        check_precision("int8", ranges, 5)
