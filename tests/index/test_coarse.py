"""Light codes, by faiss."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest

from embedkit.errors import DataError, IntegrityError, MissingDependency, UsageError
from embedkit.index import coarse


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Low intrinsic dimension, then a non-linearity: neither noise nor trivial."""
    generator = np.random.default_rng(0)
    plain = generator.standard_normal((3000, 6)) @ generator.standard_normal((6, 32))
    bent = np.sin(plain).astype(np.float32)
    return bent / np.linalg.norm(bent, axis=1, keepdims=True)


@pytest.mark.parametrize("factory", ["SQ8", "PQ16x4fs", "IVF16,SQ8", "PCA16,IVF16,SQ8", "HNSW16", "Flat", "PQ8x4"])
def test_any_factory_string_offers_the_neighbours(factory: str, rows: np.ndarray) -> None:
    index = coarse.build_coarse(factory, 32, rows, [rows[:1000], rows[1000:]])
    found = coarse.shortlist(index, rows[:50], 200)
    assert found.shape == (50, 200)
    truth = np.argsort(-(rows[:50] @ rows.T), axis=1)[:, :10]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), truth.tolist(), strict=True)])
    assert recall > 0.95


@pytest.mark.filterwarnings("ignore")
def test_a_query_visits_48_lists_or_an_eighth(rows: np.ndarray) -> None:
    for factory, probes in (("IVF16,Flat", 16), ("PCA8,IVF64,SQ8", 48), ("IVF392,Flat", 49), ("IVF1,SQ8", 1)):
        index = coarse.build_coarse(factory, 32, rows, [rows])
        assert coarse.inverted_lists(index).nprobe == probes
    assert coarse.inverted_lists(coarse.build_coarse("SQ8", 32, rows, [rows])) is None


def test_fewer_rows_than_asked_for_are_padded_with_minus_one(rows: np.ndarray) -> None:
    index = coarse.build_coarse("IVF4,Flat", 32, rows[:40], [rows[:40]])
    coarse.inverted_lists(index).nprobe = 1
    found = coarse.shortlist(index, rows[:3], 100)
    assert found.shape == (3, 40)
    assert (found == -1).any()  # one list of four was visited


@pytest.mark.parametrize(
    ("count", "factory"),
    [(1, None), (50_000, None), (50_001, "IVF1024,SQ8"), (10**6, "IVF4096,SQ8"), (10**8, "IVF32768,SQ8")],
)
def test_auto_is_exact_for_few_rows_and_lists_of_codes_for_many(count: int, factory: str | None) -> None:
    assert coarse.automatic_factory(count) == factory


def test_the_training_sample_is_bounded() -> None:
    assert coarse.training_rows("IVF16,SQ8", 32, 1000) == 1000
    assert coarse.training_rows("IVF16,SQ8", 32, 10**9) == 65_536
    assert coarse.training_rows("PCA16,IVF4096,SQ8", 32, 10**9) == 64 * 4096
    assert coarse.training_rows("SQ8", 32, 10**9) == 65_536
    assert coarse.training_rows("IVF16384,SQ8", 32, 10**9) == 524_288


@pytest.mark.parametrize(
    ("factory", "reason"), [("nonsense", "could not parse index string nonsense"), ("PQ5", "multiple of the number")]
)
def test_a_string_that_faiss_refuses_is_one_sentence(factory: str, reason: str) -> None:
    with pytest.raises(UsageError, match=f"faiss makes no index of '{factory}' in 32 dimensions .*{reason}") as caught:
        coarse.check_factory(factory, 32)
    assert "/" not in str(caught.value) and "\n" not in str(caught.value)


def test_an_index_that_takes_no_rows_is_one_sentence(rows: np.ndarray) -> None:
    with pytest.raises(UsageError, match="faiss adds no rows to an index of 'IDMap,Flat'"):
        coarse.build_coarse("IDMap,Flat", 32, rows, [rows])


def test_too_few_rows_to_train_on_are_one_sentence(rows: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"'IVF64,SQ8' cannot be trained on 20 rows \(Number of training points"):
        coarse.build_coarse("IVF64,SQ8", 32, rows[:20], [rows[:20]])


def test_codes_are_the_same_after_writing_and_reading(rows: np.ndarray, tmp_path: Path) -> None:
    index = coarse.build_coarse("IVF16,SQ8", 32, rows, [rows])
    stream = io.BytesIO()
    coarse.write_coarse(index, stream)
    assert stream.getvalue() == faiss.serialize_index(index).tobytes()
    (tmp_path / "c.faiss").write_bytes(stream.getvalue())
    again = coarse.read_coarse(tmp_path / "c.faiss", 3000)
    np.testing.assert_array_equal(coarse.shortlist(again, rows[:5], 20), coarse.shortlist(index, rows[:5], 20))
    with pytest.raises(IntegrityError, match="holds 3000 rows, its manifest says 2999"):
        coarse.read_coarse(tmp_path / "c.faiss", 2999)
    (tmp_path / "c.faiss").write_bytes(b"xxxx")
    with pytest.raises(IntegrityError, match="cannot be read by this faiss"):
        coarse.read_coarse(tmp_path / "c.faiss", 3000)


def test_without_faiss_both_extras_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingDependency) as caught:
        coarse.import_faiss()
    assert 'pip install -e ".[cpu]"' in str(caught.value) and 'pip install -e ".[gpu]"' in str(caught.value)
