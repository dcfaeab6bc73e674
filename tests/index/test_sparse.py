"""The sparse leg and hybrid search, against BM25 from a dict, products of sparse matrices and fusion by hand."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit.corpus import Fields
from embedkit.errors import DataError, ModelError, ModelMismatch, UsageError
from embedkit.index import Index, postings
from embedkit.index.faiss_import import faiss_threads
from embedkit.index.fusion import Fusion, ranks
from embedkit.index.manifest import SPARSE_PARTS, read_manifest
from embedkit.index.sparse import best
from embedkit.jobs import add_to_index, build_index, open_index
from embedkit.types import Document

from ..engine.fakes import Windowed
from .lexical import Weigher, bm25, minmax, products, weights_of

WORDS = "whale ship sea island storm captain sail harbour wreck coast the and lighthouse keeper tide"
VOCABULARY = WORDS.split()
DRAW = random.Random(4)
DOCUMENTS = [
    Document(f"d{n}", " ".join(DRAW.choices(VOCABULARY, k=DRAW.choice([1, 3, 8, 20]))), metadata={"n": n})
    for n in range(120)
]
TEXTS = {document.id: document.text for document in DOCUMENTS}
QUERIES = ["whale", "a storm at the coast", "ships and captains sailing sailing", "lighthouse keeper tide harbour"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with faiss_threads(1):
        yield


def built(path: Path, documents: list[Document] = DOCUMENTS, **options: Any) -> Index:
    return build_index(documents, path, model=Windowed(), **{"sparse": "bm25", **options})


def by_id(hits: Any, number: int) -> dict[str, float]:
    return dict(zip(hits.ids[number], hits.scores[number].tolist(), strict=False))


def assert_scores(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_title_that_is_one_of_the_texts_counts_once(tmp_path: Path) -> None:
    rows = [{"id": f"d{n}", "title": VOCABULARY[n], "body": DOCUMENTS[n].text} for n in range(9)]
    fields = Fields(text=("title", "body"))
    with build_index(rows, tmp_path / "x", model=Windowed(), sparse="bm25", fields=fields) as index:
        found = by_id(index.search(QUERIES[1], 9, mode="sparse"), 0)
    assert_scores(found, bm25({row["id"]: f"{row['title']} {row['body']}" for row in rows}, QUERIES[1]))


@pytest.mark.parametrize("settings", [{}, {"k1": 1.5, "b": 0.75}, {"k1": 0.0, "b": 0.0}, {"k1": 2.0, "b": 1.0}])
def test_scores_are_those_of_bm25(tmp_path: Path, settings: dict[str, float]) -> None:
    asked = ",".join(f"{name}={value}" for name, value in settings.items())
    with built(tmp_path / "x", sparse=f"bm25:{asked}" if asked else "bm25") as index:
        hits = index.search(QUERIES, 200, mode="sparse")
        for number, query in enumerate(QUERIES):
            assert_scores(by_id(hits, number), bm25(TEXTS, query, **settings))


def test_a_score_by_hand(tmp_path: Path) -> None:
    """Two documents of 1 and 3 terms; "whale" is in both, twice in the longer."""
    corpus = [Document("a", "whale"), Document("b", "whale whale ship")]
    with built(tmp_path / "x", corpus) as index:
        found = by_id(index.search("whale", 2, mode="sparse"), 0)
    idf = np.log(1 + 0.5 / 2.5)
    assert found["a"] == pytest.approx(idf * 1 / (1 + 0.9 * (0.6 + 0.4 * 1 / 2)), abs=1e-6)
    assert found["b"] == pytest.approx(idf * 2 / (2 + 0.9 * (0.6 + 0.4 * 3 / 2)), abs=1e-6)


def test_parts_and_deletions_do_not_show_in_the_scores(tmp_path: Path) -> None:
    """Added in ten parts, a third deleted and added again: the bits of a fresh build."""
    built(tmp_path / "parts", DOCUMENTS[::10]).close()
    for part in range(1, 10):
        add_to_index(tmp_path / "parts", DOCUMENTS[part::10], model=Windowed())
    with built(tmp_path / "whole") as whole, open_index(tmp_path / "parts", Windowed()) as parts:
        expected = whole.search(QUERIES, 200, mode="sparse")
        parts.delete([document.id for document in DOCUMENTS[::3]])
        left = {document.id: document.text for document in DOCUMENTS if document not in DOCUMENTS[::3]}
        for number, query in enumerate(QUERIES):
            assert_scores(by_id(parts.search(QUERIES, 200, mode="sparse"), number), bm25(left, query))
        parts.add(DOCUMENTS[::3])
        for _ in range(2):
            found = parts.search(QUERIES, 200, mode="sparse")
            assert found.ids == expected.ids and np.array_equal(found.scores, expected.scores)
            parts.compact()


def test_a_merge_writes_the_bytes_of_a_fresh_build(tmp_path: Path) -> None:
    built(tmp_path / "a", DOCUMENTS[:50]).close()
    with open_index(tmp_path / "a", Windowed()) as index:
        index.add(DOCUMENTS[50:80])
        index.add([*DOCUMENTS[80:], Document("gone", "lost")])
        index.delete("gone")
        index.compact()
        merged = {part: index.path / index.manifest.segments[0].name(part) for part in SPARSE_PARTS}
    built(tmp_path / "b").close()
    for part, path in merged.items():
        assert path.read_bytes() == (tmp_path / "b" / f"segment-0001.{part}").read_bytes(), part


def test_entries_that_are_sorted_in_many_blocks_are_those_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(tmp_path / "one").close()
    monkeypatch.setattr(postings, "SPOOLED", 7)
    built(tmp_path / "many").close()
    for part in SPARSE_PARTS:
        one, many = (tmp_path / name / f"segment-0001.{part}" for name in ("one", "many"))
        assert one.read_bytes() == many.read_bytes(), part
    with open_index(tmp_path / "many", Windowed()) as index:
        index.add([Document("z", "tide")])
        index.delete("z")
        index.compact()
        last = index.manifest.segments[0]
        for part in SPARSE_PARTS:
            one = (tmp_path / "one" / f"segment-0001.{part}").read_bytes()
            assert (index.path / last.name(part)).read_bytes() == one, part


def test_without_a_sparse_leg_an_index_is_of_format_2_and_says_how_to_get_one(tmp_path: Path) -> None:
    with built(tmp_path / "x", sparse=None) as index:
        body = json.loads((tmp_path / "x" / "manifest-000001.json").read_text())
        assert body["version"] == 2 and "sparse" not in body
        assert not SPARSE_PARTS & set(index.manifest.segments[0].files)
        for mode in ("sparse", "hybrid"):
            with pytest.raises(UsageError, match="has no sparse leg; build it with --sparse"):
                index.search("whale", mode=mode)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="has no sparse leg"):
            index.set_fusion("rrf", 0.5)
    built(tmp_path / "y").close()
    assert json.loads((tmp_path / "y" / "manifest-000001.json").read_text())["version"] == 3


def test_bare_vectors_have_no_terms_and_do_not_move_the_statistics(tmp_path: Path) -> None:
    with built(tmp_path / "x") as index:
        before = index.search(QUERIES, 200, mode="sparse")
        index.add(np.ones((30, Windowed.dim), np.float32), ids=[f"bare{n}" for n in range(30)])
        after = index.search(QUERIES, 200, mode="sparse")
        width = before.scores.shape[1]  # all rows there were
        assert after.ids == before.ids and np.array_equal(after.scores[:, :width], before.scores)
    with pytest.raises(UsageError, match="A sparse leg is made of texts"):
        build_index(np.ones((3, 2), np.float32), tmp_path / "y", sparse="bm25")


def test_a_document_with_passages_is_scored_whole(tmp_path: Path) -> None:
    with built(tmp_path / "x", on_long="chunk") as index:
        hits = index.search(QUERIES[:1], 200, mode="sparse")
        assert_scores(by_id(hits, 0), bm25(TEXTS, QUERIES[0]))
        assert hits.passages is None and hits.spans is None
        both = index.search(QUERIES[0], 5, mode="hybrid")
        assert both.passages is not None and any("#" in name for name in both.passages[0])
        assert [name.partition("#")[0] for name in both.passages[0]] == both.ids[0]


@pytest.mark.parametrize("method", ["minmax", "rrf"])
@pytest.mark.parametrize("weight", [0.5, 0.2, 1.0])
def test_hybrid_scores_follow_from_those_of_both_legs(tmp_path: Path, method: Any, weight: float) -> None:
    """There are fewer than 100 documents that pass, so that all are candidates."""
    where = {"n": {"lt": 90}}
    with built(tmp_path / "x", fine="float32") as index:
        dense = by_id(index.search(QUERIES[1], 90, where=where), 0)
        sparse = by_id(index.search(QUERIES[1], 90, where=where, mode="sparse"), 0)
        hits = index.search(QUERIES[1], 90, where=where, mode="hybrid", fusion=method, weight=weight, explain=True)
        stored = index.search(QUERIES[1], 3, mode="hybrid", min_score=0.7)
        assert all(score >= 0.7 for score in by_id(stored, 0).values())
    both = [(name, dense[name], sparse.get(name, 0.0)) for name in dense]
    if method == "minmax":
        parts = zip(minmax([d for _, d, _ in both]), minmax([s for _, _, s in both]), strict=True)
    else:
        rank = [(1 + sum(e > d for _, e, _ in both), 1 + sum(t > s for _, _, t in both)) for _, d, s in both]
        parts = ((1 / (60 + r), 1 / (60 + t) if s else 0.0) for (r, t), (_, _, s) in zip(rank, both, strict=True))
    expected = {name: weight * d + (1 - weight) * s for (name, _, _), (d, s) in zip(both, parts, strict=True)}
    assert by_id(hits, 0) == pytest.approx(expected, abs=1e-5)
    assert hits.explanations is not None
    for name, said in zip(hits.ids[0], hits.explanations[0], strict=True):
        assert said["fine"]["score"] == pytest.approx(dense[name], abs=1e-6)
        assert (said["sparse"] is None) == (name not in sparse)
        if said["sparse"]:
            assert sum(said["sparse"]["terms"].values()) == pytest.approx(sparse[name], abs=1e-5)
            assert said["sparse"]["rank"] == 1 + sum(other > sparse[name] + 1e-9 for other in sparse.values())


def test_what_only_one_leg_finds_is_scored_by_both(tmp_path: Path) -> None:
    """400 documents, one of them alone with the term, and far from the query."""
    rows = np.random.default_rng(1).standard_normal((400, 6)).astype(np.float32)
    query = rows[:1]
    worst = int(np.argmin(rows @ query[0] / np.linalg.norm(rows, axis=1)))
    corpus = [Document(str(n), "plain" if n != worst else "rare plain") for n in range(400)]
    with build_index(rows, tmp_path / "x", documents=corpus, sparse="bm25", fine="float32") as index:
        hits = index.search(query, 5, mode="hybrid", sparse_queries="rare", explain=True)
        assert {"0", str(worst)} <= set(hits.ids[0])
        assert hits.explanations is not None
        said = hits.explanations[0][hits.ids[0].index(str(worst))]
        dense = index.search(query, 400)
        assert said["fine"]["score"] == pytest.approx(by_id(dense, 0)[str(worst)], abs=1e-6)
        assert said["fine"]["rank"] == 101  # behind the 100 candidates of its leg


def test_fusion_is_stored_as_a_new_version(tmp_path: Path) -> None:
    with built(tmp_path / "x") as index:
        equal = index.search(QUERIES, 10, mode="hybrid")
        index.set_fusion("rrf", 0.25)
        stored = index.search(QUERIES, 10, mode="hybrid")
        assert np.array_equal(stored.scores, index.search(QUERIES, 10, mode="hybrid", fusion="rrf", weight=0.25).scores)
        assert not np.array_equal(stored.scores, equal.scores)
        index.add([Document("more", "whale")])
        with pytest.raises(UsageError, match=r"weight=1\.5 came"):
            index.set_fusion("rrf", 1.5)
    manifest = read_manifest(tmp_path / "x")
    assert manifest.number == 3 and manifest.sparse is not None
    assert (manifest.sparse.fusion, manifest.sparse.weight) == ("rrf", 0.25)


def test_equal_scores_are_not_spread_by_rounding() -> None:
    almost = np.array([1.0, 1.0 + 1e-7, 1.0], np.float32)
    assert Fusion("minmax", 1.0).of(almost, np.zeros(3)).tolist() == [0.0, 0.0, 0.0]
    assert ranks(np.array([3.0, 5.0, 3.0, 1.0])).tolist() == [2, 1, 2, 4]
    assert Fusion().of(np.zeros(0), np.zeros(0)).shape == (0,)


# --- learned weights ------------------------------------------------------------------------------------------------------


def test_weights_of_a_model_are_multiplied(tmp_path: Path) -> None:
    model = Weigher(VOCABULARY)
    with built(tmp_path / "x", sparse=model) as index:
        index.add([Document("new", "whale tide")])
        index.delete("d3")
        texts = {**{name: text for name, text in TEXTS.items() if name != "d3"}, "new": "whale tide"}
        hits = index.search(QUERIES, 200, mode="sparse")
        for number, query in enumerate(QUERIES):
            known = " ".join(word for word in query.split() if word in VOCABULARY)
            assert_scores(by_id(hits, number), products(texts, known))
    with open_index(tmp_path / "x", Windowed()) as index, pytest.raises(UsageError, match="no sparse leg by a model"):
        index.search("whale", mode="sparse")
    other = Weigher(VOCABULARY)
    other.fingerprint = "0" * 64
    with open_index(tmp_path / "x", Windowed(), sparse_model=other) as index, pytest.raises(ModelMismatch):
        index.search("whale", mode="sparse")


def test_a_model_with_negative_weights_is_refused(tmp_path: Path) -> None:
    class Negative(Weigher):
        def encode(self, inputs: Any, *, kind: str = "document") -> Any:
            return -super().encode(inputs, kind=kind)

    with pytest.raises(ModelError, match="weights that are negative"):
        built(tmp_path / "x", sparse=Negative(VOCABULARY))
    assert not (tmp_path / "x").exists() or not list((tmp_path / "x").glob("manifest*"))


def weights_file(path: Path, documents: list[Document]) -> Path:
    rows = [{"id": document.id, "weights": weights_of(document.text)} for document in documents]
    path.write_text("\n".join(json.dumps(row) for row in DRAW.sample(rows, len(rows))))
    return path


def test_weights_from_a_file_are_asked_with_weights(tmp_path: Path) -> None:
    file = weights_file(tmp_path / "w.jsonl", [*DOCUMENTS, Document("x", "other")])
    more = [Document("new", "whale tide"), Document("d3", "ship ship")]
    weights_file(tmp_path / "more.jsonl", more)
    with built(tmp_path / "x", sparse=file) as index:
        with pytest.raises(UsageError, match="was built from a file; give the weights"):
            index.add(more)
        index.add(more, sparse=tmp_path / "more.jsonl")
        texts = {**TEXTS, **{document.id: document.text for document in more}}
        for query in ("whale", "storm coast"):
            hits = index.search(mode="sparse", k=200, sparse_queries=[weights_of(query)])
            assert_scores(by_id(hits, 0), products(texts, query))
        both = index.search(["whale"], 3, mode="hybrid", sparse_queries=[weights_of("whale")])
        assert len(both.ids[0]) == 3
        with pytest.raises(UsageError, match="no sparse leg by a model"):
            index.search("whale", mode="sparse")
    add_to_index(tmp_path / "x", more[:1], model=Windowed(), sparse=tmp_path / "more.jsonl")


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"id": "d0", "weights": {"a": -1}}, "expected a number of at least 0"),
        ({"id": "d0", "weights": {"a": "heavy"}}, "expected a number of at least 0"),
        ({"id": "d0", "weights": {"a": 1e39}}, "expected a number of at least 0"),
        ({"id": "d0"}, "w.jsonl, line 1: expected"),
        ({"id": "d1", "weights": {}}, "no weights of the document 'd0'"),
    ],
)
def test_weights_that_are_none_are_named(tmp_path: Path, row: Any, sentence: str) -> None:
    (tmp_path / "w.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=sentence):
        built(tmp_path / "x", DOCUMENTS[:1], sparse=tmp_path / "w.jsonl")
    (tmp_path / "w.jsonl").write_text('{"id": "d0", "weights": {}}\n{"id": "d0", "weights": {}}')
    with pytest.raises(DataError, match="line 2: the id 'd0' came before"):
        built(tmp_path / "y", DOCUMENTS[:1], sparse=tmp_path / "w.jsonl")


# --- wrong use ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ("bm25:k1=-1", "expected k1 from 0 to 1000"),
        ("bm25:k1=1e300", "expected k1 from 0 to 1000"),
        ("bm25:k1=nan", "expected k1 from 0 to 1000"),
        ("bm25:b=2", "b from 0 to 1"),
        ("bm25:k1=much", "k1=much came"),
        ("bm25:k2=1", "expected for example bm25:k1=1.2"),
        ("bm25:stem=klingon", "stem='klingon' came; expected none, arabic"),
        ("bm25:stop=french", "stop='french' came; expected none or english"),
        ("nowhere.jsonl", "nowhere.jsonl is not there"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(
    tmp_path: Path, asked: str, sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        built(tmp_path / "x", DOCUMENTS[:2], sparse=asked)
    assert not list(tmp_path.glob("x/manifest*"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"queries": "whale", "mode": "both"}, "mode='both' came; expected dense, sparse, hybrid"),
        ({"queries": "whale", "mode": "sparse", "group": None}, "ranks documents; passages"),
        ({"like": "d1", "mode": "hybrid"}, "like= is answered by the dense leg"),
        ({"queries": np.ones(5, np.float32), "mode": "sparse"}, "needs texts, or sparse_queries="),
        ({"queries": np.ones(5, np.float32), "mode": "hybrid"}, "needs texts, or sparse_queries="),
        ({"sparse_queries": "whale", "mode": "hybrid"}, "needs queries for the dense leg"),
        ({"queries": ["a", "b"], "sparse_queries": "whale", "mode": "hybrid"}, "1 sparse queries came with 2 queries"),
        ({"queries": "whale", "mode": "hybrid", "fusion": "sum"}, "fusion='sum' came; expected minmax or rrf"),
        ({"queries": Path("cat.jpg"), "mode": "sparse"}, "An image has no terms; give a text beside it"),
        ({"queries": "whale", "mode": "hybrid", "weight": -1.0}, "weight=-1.0 came"),
    ],
    ids=str,
)
def test_searches_that_mean_nothing_are_refused(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    with built(tmp_path / "x", DOCUMENTS[:5]) as index, pytest.raises(UsageError, match=sentence):
        index.search(**options)


@pytest.mark.parametrize("count", [0, 1, 127, 128, 1000, 5000])
def test_the_best_are_those_of_a_sort_with_all_that_tie(count: int) -> None:
    draw = np.random.default_rng(count)
    for distinct, zeros in ((3, 0.5), (10**6, 0.9), (10**6, 0.0)):
        scores = (draw.integers(1, distinct + 1, count) * (draw.random(count) >= zeros)).astype(np.float32)
        for k in (1, 2, 10, 100, 1000):
            least = np.sort(scores)[-k] if k <= count else 0.0
            assert best(scores, k).tolist() == np.flatnonzero((scores >= least) & (scores > 0)).tolist()


def test_a_query_without_any_known_term_finds_nothing(tmp_path: Path) -> None:
    with built(tmp_path / "x", DOCUMENTS[:5]) as index:
        assert index.search([], 3, mode="sparse").ids == index.search([], 3, mode="hybrid").ids == []
        hits = index.search(["", "the", "zebra"], 3, mode="sparse")
        assert hits.ids == [[], [], []] and np.isneginf(hits.scores).all()
        assert len(index.search("zebra", 3, mode="hybrid").ids[0]) == 3
        index.delete([document.id for document in DOCUMENTS[:5]])
        assert index.search("whale", 3, mode="sparse").ids == [[]]
        assert index.search("whale", 3, mode="hybrid").ids == [[]]
