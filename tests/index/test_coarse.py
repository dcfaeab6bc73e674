"""Light codes, by faiss, and the settings with which they are searched."""

from __future__ import annotations

import io
import logging
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest

from embedkit.errors import DataError, IntegrityError, MissingDependency, UsageError
from embedkit.index import calibration, coarse
from embedkit.index.calibration import Settings
from embedkit.index.coarse import Codes
from embedkit.index.faiss_import import faiss_threads, import_faiss
from embedkit.index.fine import Mask, kernel_over

from ..conftest import bent_rows

COUNT, DIM = 3000, 32
FACTORIES = [
    "SQ8",
    "PQ16x4fs",
    "IVF16,SQ8",
    "PCA24,IVF16,SQ8",
    "PCAR32,IVF16,PQ32x4fs",
    "HNSW16",
    "Flat",
    "PQ8x4",
    "OPQ16_32,PQ16x4fs",
]


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return bent_rows(COUNT, DIM)


@pytest.fixture(scope="module")
def codes_of(rows: np.ndarray) -> Callable[[str], Codes]:
    """Codes of the rows by a factory string, verified by float32 rows."""
    made: dict[str, Codes] = {}

    def codes(factory: str) -> Codes:
        if factory not in made:
            index = coarse.train(factory, DIM, rows.__getitem__, np.arange(COUNT))
            coarse.fill(index, factory, iter([rows[:1000], rows[1000:]]))
            made[factory] = Codes(index, kernel_over(rows, "float32", None), None)
        return made[factory]

    return codes


def neighbours(queries: np.ndarray, rows: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-(queries @ rows.T), axis=1, kind="stable")[:, :k]


# --- factories ----------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("factory", FACTORIES)
def test_any_factory_offers_the_neighbours_and_the_rows_rank_them(
    factory: str, rows: np.ndarray, codes_of: Callable[[str], Codes]
) -> None:
    scores, found = codes_of(factory).search(rows[:50], 10, 200, probes=8)
    truth = neighbours(rows[:50], rows, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), truth.tolist(), strict=True)])
    assert recall > 0.95
    assert found.shape == (50, 10) and np.all(np.diff(scores, axis=1) <= 0)
    products = np.take_along_axis(rows[:50] @ rows.T, found, axis=1)
    np.testing.assert_allclose(scores, products, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("factory", FACTORIES)
def test_the_candidates_are_those_of_faiss_itself(
    factory: str, rows: np.ndarray, codes_of: Callable[[str], Codes]
) -> None:
    """The best 10 by the rows, among the best 30 by the codes."""
    codes = codes_of(factory)
    candidates = codes.coarse_scores(rows[:20], 30)[1]
    found = codes.search(rows[:20], 10, 30)[1]
    for query in range(20):
        real = candidates[query][candidates[query] >= 0]
        expected = real[np.argsort(-(rows[real] @ rows[query]), kind="stable")][:10]
        same = np.isclose(rows[expected] @ rows[query], rows[found[query][: len(expected)]] @ rows[query], atol=1e-6)
        assert same.all()


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 7, 16, 31, 33, 96, 100, 384, 768, 1000, 1024, 4096])
@pytest.mark.parametrize("given", [None, 9, 10, 12, 20, 24, 40, 57, 104, 136, 300, 1100, 9000])
def test_auto_names_codes_that_faiss_makes_and_that_fit(dim: int, given: int | None) -> None:
    least = coarse.ROW_NUMBER + min(dim, 3)  # up to three dimensions are not cut further
    for count in (20_001, 70_000, 10**6, 10**7, 10**9):
        factory = coarse.automatic_factory(count, dim, given)
        assert factory is not None
        lists = next(part for part in factory.split(",") if part.startswith("IVF"))
        assert 0.7 < int(lists[3:]) / (1.5 * math.sqrt(count)) < 1.5
        index = coarse.new_codes(factory.replace(lists, "IVF16"), dim)  # as many lists as it says take long to make
        code = int(coarse.inverted_lists(index).code_size)
        assert coarse.ROW_NUMBER + code <= (max(dim // 8, 32) + 8 if given is None else max(given, least))


@pytest.mark.parametrize("dim", [2, 384])
@pytest.mark.parametrize("count", [1, 20_000])
def test_auto_is_exact_for_few_rows(count: int, dim: int) -> None:
    assert coarse.automatic_factory(count, dim, None) is None


def test_auto_refuses_less_room_than_a_code_takes() -> None:
    for given in (-1, 0, 8):
        with pytest.raises(UsageError, match=f"bytes_per_vector={given} came; expected at least 9"):
            coarse.automatic_factory(10**6, 384, given)


@pytest.mark.parametrize(
    ("factory", "reason"), [("nonsense", "could not parse index string nonsense"), ("PQ5", "multiple of the number")]
)
def test_a_string_that_faiss_refuses_is_one_sentence(factory: str, reason: str) -> None:
    with pytest.raises(UsageError, match=f"faiss makes no index of '{factory}' in 32 dimensions .*{reason}") as caught:
        coarse.check_factory(factory, 32)
    assert "/" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("factory", ["x" * 100_000, "OPQ" * 1000, "IVF4194305,Flat", f"IVF{'9' * 5000},Flat"])
def test_a_string_that_would_crash_faiss_or_take_all_memory_does_not_reach_it(factory: str) -> None:
    with pytest.raises(
        UsageError, match="came for a faiss factory; expected at most 200 characters and numbers up to 4,"
    ):
        coarse.check_factory(factory, 32)


# --- training -----------------------------------------------------------------------------------------------------


def test_the_training_sample_is_bounded() -> None:
    assert coarse.sample_size("IVF16,SQ8", 32, 1000, None) == 1000
    assert coarse.sample_size("IVF16,SQ8", 32, 10**9, None) == coarse.SAMPLE_AT_LEAST
    assert coarse.sample_size("SQ8", 32, 10**9, None) == coarse.SAMPLE_AT_LEAST
    assert coarse.sample_size("PCA16,IVF4096,SQ8", 32, 10**9, None) == 40 * 4096
    assert coarse.sample_size("IVF16384,SQ8", 32, 10**9, None) == coarse.SAMPLE_AT_MOST


def test_the_training_sample_fits_in_the_memory_that_is_given() -> None:
    """Three copies of 4 bytes a dimension."""
    assert coarse.sample_size("IVF16,SQ8", 100, 10**9, 10**12) == coarse.SAMPLE_AT_LEAST
    assert coarse.sample_size("IVF16,SQ8", 100, 10**9, 10_000 * 3 * 4 * 100) == 10_000
    assert coarse.sample_size("IVF16,SQ8", 100, 500, 640 * 3 * 4 * 100) == 500
    assert coarse.sample_size("SQ8", 100, 10**9, 1000 * 3 * 4 * 100) == 1000
    for factory, least in (("IVF16,SQ8", 640), ("SQ8", 1000)):
        bytes_needed = least * 3 * 4 * 100
        with pytest.raises(UsageError, match=rf"at least {least} rows, {bytes_needed:,} bytes, and --ram leaves"):
            coarse.sample_size(factory, 100, 10**9, bytes_needed - 1)


@pytest.mark.parametrize(
    ("factory", "least"),
    [
        ("SQ8", 1000),
        ("HNSW16", 1000),
        ("IVF16,SQ8", 1000),
        ("IVF64,SQ8", 2560),
        ("PQ8x4fs", 1000),
        ("PQ8", 40 * 256),
        ("PCA16,PQ8", 40 * 256),
        ("PCA16,IVF64,PQ8x12", 40 * 4096),
    ],
)
def test_fewer_rows_than_the_centroids_ask_for_are_too_few(factory: str, least: int) -> None:
    assert coarse.least_rows(factory, 32) == least


def test_too_few_rows_to_train_on_are_one_sentence(rows: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"'IVF64,SQ8' cannot be trained on 20 rows \(Number of training points"):
        coarse.train("IVF64,SQ8", DIM, rows.__getitem__, np.arange(20))


def test_an_index_that_takes_no_rows_is_one_sentence(rows: np.ndarray) -> None:
    index = coarse.train("IDMap,Flat", DIM, rows.__getitem__, np.arange(COUNT))
    with pytest.raises(UsageError, match="faiss adds no rows to an index of 'IDMap,Flat'"):
        coarse.fill(index, "IDMap,Flat", iter([rows]))


# --- files --------------------------------------------------------------------------------------------------------


def test_codes_are_the_same_after_writing_and_reading(
    rows: np.ndarray, codes_of: Callable[[str], Codes], tmp_path: Path
) -> None:
    codes, stream = codes_of("IVF16,SQ8"), io.BytesIO()
    coarse.write_codes(codes.index, stream)
    assert stream.getvalue() == faiss.serialize_index(codes.index).tobytes()
    (tmp_path / "c.faiss").write_bytes(stream.getvalue())
    again = Codes.read(tmp_path / "c.faiss", kernel_over(rows, "float32", None), 4)
    for one, other in zip(again.search(rows[:5], 20, 60), codes.search(rows[:5], 20, 60, probes=4), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("other", [np.ones((COUNT - 1, DIM), np.float32), np.ones((COUNT, DIM - 1), np.float32)])
def test_codes_of_other_rows_are_refused(codes_of: Callable[[str], Codes], tmp_path: Path, other: np.ndarray) -> None:
    (tmp_path / "c.faiss").write_bytes(faiss.serialize_index(codes_of("SQ8").index).tobytes())
    with pytest.raises(IntegrityError, match="holds codes of other rows than its manifest says"):
        Codes.read(tmp_path / "c.faiss", kernel_over(other, "float32", None), None)


def test_what_faiss_cannot_read_is_refused(rows: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "c.faiss").write_bytes(b"xxxx")
    with pytest.raises(IntegrityError, match="cannot be read by this faiss"):
        Codes.read(tmp_path / "c.faiss", kernel_over(rows, "float32", None), None)
    distances = faiss.IndexFlatL2(DIM)
    distances.add(rows)
    (tmp_path / "c.faiss").write_bytes(faiss.serialize_index(distances).tobytes())
    with pytest.raises(IntegrityError, match="holds codes of other rows"):
        Codes.read(tmp_path / "c.faiss", kernel_over(rows, "float32", None), None)


# --- searching ----------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("factory", [*FACTORIES, "PQ8x4fs", "PCA16,HNSW16,Flat", "RR32,PQ16x4fs"])
def test_a_mask_leaves_only_its_rows(
    factory: str, share: float, rows: np.ndarray, codes_of: Callable[[str], Codes]
) -> None:
    """Those that know a selector search with it, others search longer lists."""
    passing = np.random.default_rng(1).random(COUNT) < share
    scores, found = codes_of(factory).search(rows[:20], 10, 200, Mask(passing), probes=16)
    assert passing[found[found >= 0]].all() and (found >= 0).mean() > 0.9
    assert np.all(scores[found < 0] < -1e30)
    products = np.where(passing, rows[:20] @ rows.T, -np.inf)
    truth = np.argsort(-products, axis=1, kind="stable")[:, :10]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), truth.tolist(), strict=True)])
    assert recall > (0.8 if "HNSW" in factory else 0.9)
    np.testing.assert_allclose(scores[found >= 0], np.take_along_axis(products, found, axis=1)[found >= 0], atol=1e-5)


@pytest.mark.parametrize("factory", ["PQ16x4fs", "SQ8", "IVF16,SQ8", "HNSW16"])
def test_a_mask_with_less_than_k_rows_gives_all_of_them(
    factory: str, rows: np.ndarray, codes_of: Callable[[str], Codes]
) -> None:
    passing = np.zeros(COUNT, bool)
    passing[[5, 700, 2999]] = True
    scores, found = codes_of(factory).search(rows[:4], 10, 3000, Mask(passing), probes=16)
    assert [sorted(row[row >= 0].tolist()) for row in found] == [[5, 700, 2999]] * 4
    assert np.all(scores[:, 3:] < -1e30) and np.all(np.abs(scores[:, :3]) <= 1.001)


def test_the_shortlist_does_not_depend_on_k(rows: np.ndarray, codes_of: Callable[[str], Codes]) -> None:
    """A small k is not worse than a large one: the same candidates are verified, also where k * k_factor is no whole number."""
    codes = codes_of("PQ8x4fs")
    for shortlist in (100, 140, 400):
        wide = codes.search(rows[:30], shortlist, shortlist)[1]
        for k in (1, 3, 7, 11, 97):
            np.testing.assert_array_equal(codes.search(rows[:30], k, shortlist)[1], wide[:, :k])


def test_lists_that_are_not_visited_leave_places_empty(rows: np.ndarray, codes_of: Callable[[str], Codes]) -> None:
    codes = codes_of("IVF16,SQ8")
    one, all_of_them = codes.search(rows[:9], 1000, 3000, probes=1), codes.search(rows[:9], 1000, 3000, probes=99)
    assert (one[1] < 0).any() and (all_of_them[1] >= 0).all()
    assert np.all(one[0][one[1] < 0] < -1e30)


def test_more_than_there_is_gives_what_there_is(rows: np.ndarray, codes_of: Callable[[str], Codes]) -> None:
    for factory in ("SQ8", "HNSW16", "PQ16x4fs"):
        assert codes_of(factory).search(rows[:2], 5000, 9000)[1].shape == (2, COUNT)
        assert codes_of(factory).coarse_scores(rows[:2], 9000)[1].shape == (2, COUNT)


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [15, 100, 401])
def test_kept_is_the_share_of_neighbours_among_the_first_candidates(width: int) -> None:
    """A query's own row does not count as a candidate; neighbours that are not among the candidates are lost."""
    generator = np.random.default_rng(width)
    found = np.array([generator.permutation(600)[:width] for _ in range(30)])
    found[:5, width // 2 :] = -1  # lists that were not visited
    own = np.array([generator.choice(row[row >= 0]) if query % 3 else 999 for query, row in enumerate(found)])
    truth = np.array([generator.permutation(600)[:10] for _ in range(30)])
    truth[10:] = [row[generator.permutation(width)[:10]] for row in found[10:]]
    measured = dict(calibration._kept(found, own, truth))
    assert list(measured) == list(calibration.SHORTLISTS)
    for size, kept in measured.items():
        for query in range(30):
            candidates = [row for row in found[query].tolist() if row != own[query]]
            expected = sum(row in candidates[:size] for row in truth[query].tolist() if row != own[query])
            same = (truth[query] == own[query]).sum()  # a query is nobody's neighbour; the loop above leaves it out
            assert abs(kept[query] * 10 - expected) <= same


def recall_of(
    codes: Codes, queries: np.ndarray, own: np.ndarray, truth: np.ndarray, probes: int | None, size: int
) -> np.ndarray:
    found = codes.coarse_scores(queries, 401, probes)[1]
    kept = []
    for query in range(len(queries)):
        candidates = [row for row in found[query].tolist() if row != own[query]][:size]
        kept.append(len(set(candidates) & set(truth[query].tolist())) / 10)
    return np.array(kept)


@pytest.mark.long
@pytest.mark.parametrize("target", [0.5, 0.9, 0.97])
@pytest.mark.parametrize("factory", ["IVF64,PQ16x4fs", "PCA28,IVF16,SQ8", "PQ8x4fs", "HNSW16"])
def test_the_cheapest_settings_that_reach_the_target_are_chosen(
    factory: str, target: float, rows: np.ndarray, codes_of: Callable[[str], Codes]
) -> None:
    """Against every setting, one after the other."""
    codes = codes_of(factory)
    own = np.arange(0, COUNT, 50)
    truth = np.array(
        [row[row != number][:10] for row, number in zip(neighbours(rows[own], rows, 11), own, strict=True)]
    )
    ivf = coarse.inverted_lists(codes.index)
    probes = [None] if ivf is None else sorted({*(p for p in calibration.PROBES if p < ivf.nlist), ivf.nlist})
    reaching = {}
    for probe in probes:
        for size in calibration.SHORTLISTS:
            kept = recall_of(codes, rows[own], own, truth, probe, size)
            if kept.mean() - 1.645 * kept.std(ddof=1) / math.sqrt(len(kept)) >= target:
                scanned = 0 if probe is None else probe / ivf.nlist * COUNT * ivf.code_size
                reaching[probe, size] = calibration.SCAN_NS_PER_BYTE * scanned + calibration.VERIFY_NS * size
    assert reaching, "no settings reach the target; the test shows nothing"
    chosen = calibration.calibrated(codes, rows[own], own, truth, target)
    assert reaching[chosen.probes, chosen.shortlist] == pytest.approx(min(reaching.values()))
    kept = recall_of(codes, rows[own], own, truth, chosen.probes, chosen.shortlist)
    # a longer list may order codes of equal scores otherwise
    assert chosen.recall[0] == pytest.approx(kept.mean(), abs=5e-3)


def test_codes_that_do_not_reach_the_target_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    noise = np.random.default_rng(0).standard_normal((COUNT, DIM)).astype(np.float32)
    index = coarse.train("PQ2x4fs", DIM, noise.__getitem__, np.arange(COUNT))
    coarse.fill(index, "PQ2x4fs", iter([noise]))
    codes = Codes(index, kernel_over(noise, "float32", None), None)
    own = np.arange(60)
    truth = np.array(
        [row[row != number][:10] for row, number in zip(neighbours(noise[own], noise, 11), own, strict=True)]
    )
    with caplog.at_level(logging.WARNING):
        chosen = calibration.calibrated(codes, noise[own], own, truth, 0.97)
    assert isinstance(chosen, Settings)
    assert (chosen.probes, chosen.shortlist) == (None, calibration.SHORTLISTS[-1])
    kept = recall_of(codes, noise[own], own, truth, None, chosen.shortlist).mean()
    assert f"These codes keep {kept:.3f} of the exact neighbours at best, 0.970 were asked for" in caplog.text


@pytest.mark.parametrize(
    ("found", "expected"), [((4, 20), (48, 100)), ((60, 140), (60, 140)), ((None, 30), (None, 100))]
)
def test_settings_are_widened_for_questions_that_are_no_documents(
    found: tuple[int | None, int],
    expected: tuple[int | None, int],
    rows: np.ndarray,
    codes_of: Callable[[str], Codes],
) -> None:
    codes, own = codes_of("PQ8x4fs" if found[0] is None else "IVF64,PQ16x4fs"), np.arange(0, COUNT, 100)
    truth = np.array(
        [row[row != number][:10] for row, number in zip(neighbours(rows[own], rows, 11), own, strict=True)]
    )
    wide = calibration.widened(codes, Settings(*found, (0.5, 0.4)), rows[own], own, truth)
    assert (wide.probes, wide.shortlist) == expected
    kept = recall_of(codes, rows[own], own, truth, *expected)
    assert wide.recall[0] == pytest.approx(kept.mean(), abs=5e-3)
    assert wide.recall[1] == pytest.approx(kept.mean() - 1.645 * kept.std(ddof=1) / math.sqrt(len(kept)), abs=5e-3)


def test_a_pca_keeps_the_mean_in_the_products(rows: np.ndarray) -> None:
    """Where all dimensions are kept it is a rotation: products with it are products without it."""
    far = rows + np.float32(0.3)
    index = coarse.train(f"PCA{DIM},SQfp16", DIM, far.__getitem__, np.arange(COUNT))
    coarse.fill(index, "", iter([far]))
    scores, found = index.search(far[:20], 10)
    assert scores == pytest.approx(np.take_along_axis(far[:20] @ far.T, found, axis=1), rel=2e-3)


# --- faiss --------------------------------------------------------------------------------------------------------


def test_without_faiss_both_extras_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingDependency) as caught:
        import_faiss()
    assert 'pip install -e ".[cpu]"' in str(caught.value) and 'pip install -e ".[gpu]"' in str(caught.value)


@pytest.fixture
def threads() -> Iterator[int]:
    before = faiss.omp_get_max_threads()
    yield before
    faiss.omp_set_num_threads(before)


def test_threads_are_as_before_when_the_block_ends(threads: int) -> None:
    with pytest.raises(KeyError), faiss_threads(3):
        assert faiss.omp_get_max_threads() == 3
        with faiss_threads(None):
            assert faiss.omp_get_max_threads() == 3
        raise KeyError
    assert faiss.omp_get_max_threads() == threads
