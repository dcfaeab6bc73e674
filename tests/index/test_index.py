"""An index as a whole: what goes in comes out, damage is found, another model is refused."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit.errors import DataError, IntegrityError, ModelMismatch, UsageError
from embedkit.index import Index, Layout, write_index
from embedkit.index import build as build_module
from embedkit.index.manifest import Source, read_manifest
from embedkit.storage import read_json, write_json
from embedkit.types import Document

from ..conftest import WordCounts

TEXTS = ["cat", "cat cat dog", "dog", "red fish swim", "blue bird", "", "one two", "two one"]


def documents(texts: list[str]) -> list[Document]:
    return [Document(f"d{i}", text, metadata={"n": i}) for i, text in enumerate(texts)]


def build(path: Path, encoder: Any, texts: list[str] = TEXTS, **layout: Any) -> Index:
    source = Source("counting", encoder.fingerprint, {}, encoder.compute)
    made = documents(texts)
    batches = [(made[start : start + 3], encoder.encode(texts[start : start + 3])) for start in range(0, len(texts), 3)]
    write_index(path, batches, encoder.dim, Layout(**layout), source)
    return Index(path, lambda: encoder)


@pytest.fixture
def index(tmp_path: Path, word_counts: Any) -> Index:
    return build(tmp_path / "an.index", word_counts)


def test_a_question_finds_documents_with_their_texts_and_metadata(index: Index) -> None:
    hits = index.search("cat dog", k=3)
    assert hits.ids == [["d1", "d2", "d0"]]  # cosines 3/sqrt(10), and two ties of 1/sqrt(2): the larger id first
    np.testing.assert_allclose(hits.scores, [[3 / 10**0.5, 0.5**0.5, 0.5**0.5]], atol=1e-3)
    assert hits.documents == [
        [
            Document("d1", "cat cat dog", metadata={"n": 1}),
            Document("d2", "dog", metadata={"n": 2}),
            Document("d0", "cat", metadata={"n": 0}),
        ]
    ]
    assert index.search("cat dog", k=3, documents=False).documents is None


def test_ties_go_to_the_larger_id_as_in_trec_eval(tmp_path: Path, word_counts: Any) -> None:
    same = build(tmp_path / "ties.index", word_counts, ["cat"] * 12)
    order = sorted((f"d{i}" for i in range(12)), reverse=True)  # d9, d8, ..., d11, d10, d1, d0
    for k in (1, 5, 12):
        assert same.search("cat", k=k).ids == [order[:k]]


def test_one_text_several_texts_and_vectors_give_the_same(index: Index, word_counts: Any) -> None:
    both = index.search(["fish", "bird"], k=2)
    assert [index.search("fish", k=2).ids[0], index.search("bird", k=2).ids[0]] == both.ids
    vectors = word_counts.encode(["fish", "bird"])
    assert index.search(vectors * 7, k=2).ids == both.ids  # cosine: the length of a query does not matter
    assert index.search(vectors[0], k=2).ids == both.ids[:1]
    np.testing.assert_allclose(index.search(vectors * 7, k=2).scores, both.scores, atol=1e-6)


def test_fewer_than_k_are_padded(index: Index) -> None:
    hits = index.search(["cat", "dog"], k=20)
    assert hits.scores.shape == (2, 20)
    assert [len(ids) for ids in hits.ids] == [8, 8]
    assert np.all(hits.scores[:, 8:] == -np.inf) and np.all(hits.scores[:, :8] > -np.inf)


@pytest.mark.parametrize("fine", ["float16", "float32"])
@pytest.mark.parametrize("coarse", ["none", "SQ8", "IVF8,SQ8", "PQ16x4fs"])
def test_any_coarse_level_finds_what_a_slow_loop_finds(tmp_path: Path, coarse: str, fine: str) -> None:
    generator = np.random.default_rng(0)
    bent = np.sin(generator.standard_normal((500, 5)) @ generator.standard_normal((5, 32))).astype(np.float32)
    rows = bent / np.linalg.norm(bent, axis=1, keepdims=True)
    made = [Document(f"d{i}", "") for i in range(500)]
    write_index(tmp_path / "x", [(made, rows)], 32, Layout(coarse=coarse, fine=fine), Source())
    index = Index(tmp_path / "x")
    hits = index.search(rows[:20], k=10)
    for q in range(20):
        exact = sorted(((float(np.dot(rows[q], row)), f"d{i}") for i, row in enumerate(rows)), reverse=True)[:10]
        assert len({i for _, i in exact} & set(hits.ids[q])) >= 9
        assert hits.ids[q][0] == f"d{q}"
        for score, i in zip(hits.scores[q], hits.ids[q], strict=True):
            assert abs(score - float(np.dot(rows[q], rows[int(i[1:])]))) < 1e-3
    assert (index.manifest.coarse, index.manifest.fine) == (None if coarse == "none" else coarse, fine)


def test_dot_keeps_the_lengths_and_cosine_does_not(tmp_path: Path) -> None:
    rows = np.array([[1, 0], [3, 0], [0, 2]], np.float32)
    made = [Document(name, "") for name in "abc"]
    write_index(tmp_path / "dot", [(made, rows)], 2, Layout(metric="dot"), Source())
    write_index(tmp_path / "cos", [(made, rows)], 2, Layout(metric="cosine"), Source())
    query = np.array([[2, 1]], np.float32)
    assert Index(tmp_path / "dot").search(query, k=3).scores.tolist() == [[6, 2, 2]]
    np.testing.assert_allclose(
        Index(tmp_path / "cos").search(query, k=3).scores, np.array([[2, 2, 1]]) / 5**0.5, atol=1e-3
    )
    assert not Index(tmp_path / "dot").manifest.unit_rows and Index(tmp_path / "cos").manifest.unit_rows


def test_documents_are_given_by_id(index: Index) -> None:
    assert [d.text for d in index.get(["d3", "d0", "d3"])] == ["red fish swim", "cat", "red fish swim"]
    with pytest.raises(KeyError, match="nobody"):
        index.get(["nobody"])


def test_a_query_from_another_model_is_refused_with_both_fingerprints(index: Index) -> None:
    other = WordCounts(fingerprint="0" * 64)
    with pytest.raises(ModelMismatch) as caught:
        Index(index.path, lambda: other).search("cat")
    assert caught.value.exit_code == 5
    assert "ffffffffffff" in str(caught.value) and "000000000000" in str(caught.value)


def test_the_model_is_opened_once_and_only_for_words(index: Index, word_counts: Any) -> None:
    opened = []
    lazy = Index(index.path, lambda: opened.append(1) or word_counts)  # type: ignore[func-returns-value]
    lazy.search(word_counts.encode(["cat"]))
    assert opened == []
    lazy.search("cat")
    lazy.search("dog")
    assert opened == [1]


def test_words_need_a_model(tmp_path: Path) -> None:
    write_index(tmp_path / "bare", [([Document("a", "")], np.ones((1, 2), np.float32))], 2, Layout(), Source())
    with pytest.raises(UsageError, match="built from vectors that name no model; search it with vectors"):
        Index(tmp_path / "bare").search("words")


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        (np.ones((1, 3), np.float32), r"Queries of shape \(1, 3\) came; this index holds rows of width 12"),
        (np.ones((1, 1, 12), np.float32), r"Queries of shape \(1, 1, 12\)"),
        (np.full((1, 12), np.nan, np.float32), "holds NaN or infinity"),
        (np.full((1, 12), np.inf, np.float32), "holds NaN or infinity"),
    ],
)
def test_a_vector_that_cannot_be_a_query_is_refused(index: Index, query: np.ndarray, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        index.search(query)


def test_k_is_at_least_one(index: Index) -> None:
    with pytest.raises(UsageError, match="k=0 came; expected at least 1"):
        index.search("cat", k=0)
    assert len(index.search("cat", k=1).ids[0]) == 1
    assert index.search(np.empty((0, 12), np.float32), k=3).ids == []


def test_the_shortlist_does_not_depend_on_k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small k is not worse than a large one: the same candidates are verified."""
    monkeypatch.setattr(build_module, "SHORTLIST", 20)
    rows = np.random.default_rng(0).standard_normal((400, 16)).astype(np.float32)
    write_index(
        tmp_path / "x", [([Document(str(i), "") for i in range(400)], rows)], 16, Layout(coarse="PQ4x4fs"), Source()
    )
    index = Index(tmp_path / "x")
    wide = index.search(rows[:30], k=20)
    for k in (1, 7):
        assert index.search(rows[:30], k=k).ids == [ids[:k] for ids in wide.ids]
    assert [len(ids) for ids in index.search(rows[:3], k=50).ids] == [50] * 3


def test_several_threads_may_search(tmp_path: Path, word_counts: Any) -> None:
    index = build(tmp_path / "threads", word_counts, TEXTS * 40, coarse="SQ8")
    questions = [TEXTS[i % 8] or "cat" for i in range(64)]
    expected = [index.search(question, k=5).ids for question in questions]
    fresh = Index(index.path, lambda: word_counts)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda question: fresh.search(question, k=5).ids, questions)) == expected


def test_info_says_what_is_in_it(tmp_path: Path, word_counts: Any) -> None:
    index = build(tmp_path / "facts", word_counts, TEXTS * 40, coarse="SQ8")
    info = index.info()
    assert (len(index), info["documents"], info["dim"], info["coarse"], info["fine"]) == (
        320,
        320,
        12,
        "SQ8",
        "float16",
    )
    assert info["fingerprint"] == word_counts.fingerprint and info["metric"] == "cosine" and info["unit_rows"]
    assert info["bytes_in_ram"] == (index.path / "coarse.faiss").stat().st_size
    on_disk = sum(p.stat().st_size for p in index.path.iterdir() if p.name != "manifest.json")
    assert info["bytes_on_disk"] == on_disk
    assert build(tmp_path / "exact", word_counts).info()["bytes_in_ram"] == 8 * 12 * 4


def test_it_opens_anywhere_and_read_only(index: Index, word_counts: Any, tmp_path: Path) -> None:
    moved = shutil.copytree(index.path, tmp_path / "else where #1")
    for entry in moved.iterdir():
        entry.chmod(0o444)
    moved.chmod(0o555)
    again = Index(moved, lambda: word_counts)
    again.verify()
    assert again.search("cat", k=2).documents == index.search("cat", k=2).documents
    assert sorted(entry.name for entry in moved.iterdir()) == sorted(entry.name for entry in index.path.iterdir())
    moved.chmod(0o755)


@pytest.mark.parametrize("name", ["manifest.json", "fine.npy", "coarse.faiss", "documents.sqlite"])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.999])
def test_a_flipped_bit_is_found_and_named(tmp_path: Path, word_counts: Any, name: str, place: float) -> None:
    index = build(tmp_path / "x", word_counts, TEXTS * 5, coarse="SQ8")
    content = bytearray((index.path / name).read_bytes())
    content[int(place * (len(content) - 3))] ^= 4
    (index.path / name).write_bytes(content)
    with pytest.raises(IntegrityError, match=name):
        Index(index.path).verify()


@pytest.mark.parametrize("name", ["fine.npy", "coarse.faiss", "documents.sqlite"])
def test_a_missing_or_shortened_file_is_found_at_once(tmp_path: Path, word_counts: Any, name: str) -> None:
    index = build(tmp_path / "x", word_counts, TEXTS * 5, coarse="SQ8")
    content = (index.path / name).read_bytes()
    (index.path / name).write_bytes(content[:-1])
    with pytest.raises(IntegrityError, match=f"{name} has {len(content) - 1} bytes, its manifest says {len(content)}"):
        Index(index.path)
    (index.path / name).unlink()
    with pytest.raises(IntegrityError, match=f"{name} is missing"):
        Index(index.path)


def test_damaged_codes_never_reach_faiss(tmp_path: Path, word_counts: Any) -> None:
    index = build(tmp_path / "x", word_counts, TEXTS * 5, coarse="SQ8")
    content = bytearray((index.path / "coarse.faiss").read_bytes())
    content[10] ^= 255
    (index.path / "coarse.faiss").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"coarse\.faiss has changed"):
        Index(index.path, lambda: word_counts).search("cat")


def test_a_foreign_file_is_found(index: Index) -> None:
    (index.path / "notes.txt").write_text("mine")
    with pytest.raises(IntegrityError, match=r"holds notes\.txt, which its manifest does not name"):
        index.verify()


def test_another_format_is_refused(index: Index, tmp_path: Path) -> None:
    manifest = index.path / "manifest.json"
    body = read_json(manifest)
    for change, sentence in (
        ({"version": 2}, "has index format 2, this embedkit reads format 1"),
        ({"format": "other"}, "describes something else than an index"),
        ({"colour": "red"}, "has other fields than format 1"),
    ):
        write_json(manifest, {**body, **change})
        with pytest.raises(IntegrityError, match=sentence):
            Index(index.path)
    with pytest.raises(UsageError, match="holds no index"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("rows", "layout", "error", "sentence"),
    [
        (np.array([[1, 0], [np.nan, 0]]), {}, DataError, "The vector of 'b' is not finite in float16"),
        (
            np.array([[1, 0], [1e6, 0]]),
            {"metric": "dot"},
            DataError,
            "The vector of 'b' is not finite in float16 .* --fine float32",
        ),
        (np.array([[1, 0]]), {}, DataError, "2 ids came with 1 vectors"),
        (np.array([[1, 0], [1, 0]]), {"metric": "euclidean"}, UsageError, "metric='euclidean' came"),
        (np.array([[1, 0], [1, 0]]), {"fine": "int4"}, UsageError, "fine='int4' came"),
        (np.array([[1, 0], [1, 0]]), {"coarse": "nonsense"}, UsageError, "faiss makes no index of 'nonsense'"),
        (np.array([[1, 0], [1, 0]]), {"coarse": "IVF8,SQ8"}, DataError, "cannot be trained on 2 rows"),
    ],
)
def test_what_cannot_be_indexed_leaves_nothing(
    tmp_path: Path, rows: np.ndarray, layout: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    made = [Document("a", ""), Document("b", "")]
    with pytest.raises(error, match=sentence):
        write_index(tmp_path / "x", [(made, rows)], 2, Layout(**layout), Source())
    assert list(tmp_path.iterdir()) == []


def test_large_numbers_fit_into_float32_rows(tmp_path: Path) -> None:
    write_index(
        tmp_path / "x", [([Document("a", "")], np.array([[1e6, 0]]))], 2, Layout(metric="dot", fine="float32"), Source()
    )
    assert Index(tmp_path / "x").search(np.array([[1, 0]], np.float32)).scores[0, 0] == 1e6


def test_no_rows_are_no_index(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There are no rows to index"):
        write_index(tmp_path / "x", [], 2, Layout(), Source())
    assert list(tmp_path.iterdir()) == []


def test_auto_becomes_lists_of_codes_above_its_limit(
    tmp_path: Path, word_counts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedkit.index.coarse.EXACT_UP_TO", 300)
    assert build(tmp_path / "few", word_counts, TEXTS * 37).manifest.coarse is None
    monkeypatch.setattr(build_module, "BLOCK", 100)
    many = build(tmp_path / "many", word_counts, TEXTS * 40)
    assert many.manifest.coarse == "IVF64,SQ8"
    assert (
        many.search("red fish swim", k=40).ids
        == build(tmp_path / "exact", word_counts, TEXTS * 40, coarse="none").search("red fish swim", k=40).ids
    )
