"""An index as a whole, searched: what goes in comes out, in the order of a slow loop; another model is refused."""

from __future__ import annotations

import math
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedkit
from embedkit.errors import DataError, IntegrityError, ModelMismatch, UsageError
from embedkit.index import Index, Layout
from embedkit.types import Document, Hits

from ..conftest import WordCounts, bent_rows

TEXTS = ["cat", "cat cat dog", "dog", "red fish swim", "blue bird", "", "one two", "two one"]
FINES = ["float32", "float16", "int8"]


def documents(texts: list[str]) -> list[Document]:
    return [Document(f"d{i}", text, metadata={"n": i}) for i, text in enumerate(texts)]


def build(path: Path, texts: list[str] = TEXTS, **layout: Any) -> Index:
    return embedkit.build_index(documents(texts), path, model=WordCounts(), **layout)


def whole_numbers(count: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    """Rows whose products are exact in float32 and in float16, so that ties are true ties."""
    return np.random.default_rng(seed).integers(-3, 4, size=(count, dim)).astype(np.float32)


def best(scored: dict[str, float], k: int) -> list[str]:
    """As trec_eval ranks: by score, then by the larger id."""
    return [name for _, name in sorted(((score, name) for name, score in scored.items()), reverse=True)[:k]]


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return build(tmp_path / "an.index")


# --- what is found ------------------------------------------------------------------------------------------------


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
    assert (hits.passages, hits.explanations) == (None, None)
    assert index.search("cat dog", k=3, documents=False).documents is None


def test_one_text_several_texts_and_vectors_give_the_same(index: Index, word_counts: Any) -> None:
    both = index.search(["fish", "bird"], k=2)
    assert [index.search("fish", k=2).ids[0], index.search("bird", k=2).ids[0]] == both.ids
    vectors = word_counts.encode(["fish", "bird"])
    assert index.search(vectors * 7, k=2).ids == both.ids  # cosine: the length of a query does not matter
    assert index.search(vectors[0], k=2).ids == both.ids[:1]
    assert index.search(vectors.astype(np.float64), k=2).ids == both.ids
    np.testing.assert_allclose(index.search(vectors * 7, k=2).scores, both.scores, atol=1e-6)


def test_fewer_than_k_are_padded(index: Index) -> None:
    hits = index.search(["cat", "dog"], k=7, min_score=0.5)
    assert hits.scores.shape == (2, 7)
    for ids, scores in zip(hits.ids, hits.scores, strict=True):
        assert 0 < len(ids) < 7
        assert np.all(scores[len(ids) :] == -np.inf) and np.all(scores[: len(ids)] >= 0.5)


@pytest.mark.parametrize("k", [8, 9, 1 << 40, 1 << 62, 10**23])
def test_k_ends_with_the_rows(index: Index, k: int) -> None:
    hits = index.search(["cat", "dog"], k=k)
    assert hits.scores.shape == (2, 8), "the list that comes takes memory by what there is, not by what was asked"
    assert [len(ids) for ids in hits.ids] == [8, 8]
    assert np.all(hits.scores > -np.inf)


@pytest.mark.parametrize("fine", FINES)
@pytest.mark.parametrize("coarse", ["none", "SQ8", "IVF8,SQ8", "PQ16x4fs", "PCAR16,IVF4,PQ16x4fs", "HNSW16"])
def test_any_coarse_level_finds_what_a_slow_loop_finds(tmp_path: Path, coarse: str, fine: str) -> None:
    rows = bent_rows(500)
    index = embedkit.build_index(rows, tmp_path / "x", coarse=coarse, fine=fine)
    hits = index.search(rows[:20], k=10)
    for q in range(20):
        exact = best({str(i): float(np.dot(rows[q], row)) for i, row in enumerate(rows)}, 10)
        assert len(set(exact) & set(hits.ids[q])) >= 9
        assert hits.ids[q][0] == str(q)
        for score, i in zip(hits.scores[q], hits.ids[q], strict=True):
            assert abs(score - float(np.dot(rows[q], rows[int(i)]))) < (2e-2 if fine == "int8" else 1e-3)
    assert (index.manifest.coarse, index.manifest.fine) == (coarse, fine)
    assert index.manifest.segments[0].coarse == (None if coarse == "none" else coarse)


def test_dot_keeps_the_lengths_and_cosine_does_not(tmp_path: Path) -> None:
    rows, query = np.array([[1, 0], [3, 0], [0, 2]], np.float32), np.array([[2, 1]], np.float32)
    dot = embedkit.build_index(rows, tmp_path / "dot", metric="dot")
    cosine = embedkit.build_index(rows, tmp_path / "cos", metric="cosine")
    assert dot.search(query, k=3).scores.tolist() == [[6, 2, 2]]
    np.testing.assert_allclose(cosine.search(query, k=3).scores, np.array([[2, 2, 1]]) / 5**0.5, atol=1e-3)
    assert not dot.manifest.unit_rows and cosine.manifest.unit_rows


def test_documents_are_given_by_id(index: Index) -> None:
    assert [d.text for d in index.get(["d3", "d0", "d3"])] == ["red fish swim", "cat", "red fish swim"]
    assert index.get([]) == []
    with pytest.raises(KeyError, match="nobody"):
        index.get(["d1", "nobody"])


# --- ties ---------------------------------------------------------------------------------------------------------


def test_ties_go_to_the_larger_id_as_in_trec_eval(tmp_path: Path) -> None:
    same = build(tmp_path / "ties.index", ["cat"] * 12)
    order = sorted((f"d{i}" for i in range(12)), reverse=True)  # d9, d8, ..., d11, d10, d1, d0
    for k in (1, 5, 12):
        assert same.search("cat", k=k).ids == [order[:k]]


def in_segments(path: Path, rows: np.ndarray, sizes: list[int], **layout: Any) -> Index:
    """Rows 0, 1, ... in segments of these sizes, each more than twice as large as the next."""
    index = embedkit.build_index(rows[: sizes[0]], path, **layout)
    start = sizes[0]
    for size in sizes[1:]:
        index.add(rows[start : start + size], ids=[str(row) for row in range(start, start + size)])
        start += size
    assert [segment.rows for segment in index.manifest.segments] == sizes
    return index


@pytest.mark.parametrize("fine", ["float32", "float16"])
@pytest.mark.parametrize("k", [1, 3, 10, 100, 1000])
def test_the_exact_order_is_that_of_a_slow_loop_across_segments(tmp_path: Path, fine: str, k: int) -> None:
    """Whole numbers, with hundreds of ties at every score."""
    rows, queries = whole_numbers(840, 3), whole_numbers(20, 3, seed=1)
    index = in_segments(tmp_path / "x", rows, [600, 200, 40], coarse="none", fine=fine, metric="dot")
    for batch in (queries, queries[:1]):
        hits = index.search(batch, k=k)
        for q, query in enumerate(batch):
            scored = {str(i): float(np.dot(row, query)) for i, row in enumerate(rows)}
            assert hits.ids[q] == best(scored, k)
            assert hits.scores[q, : len(hits.ids[q])].tolist() == [scored[name] for name in hits.ids[q]]


@pytest.mark.parametrize("fine", FINES)
def test_hundreds_of_identical_rows_are_ordered_by_id_across_segments(tmp_path: Path, fine: str) -> None:
    rows = bent_rows(760, 24)
    twins = np.random.default_rng(0).permutation(760)[:300]
    rows[twins] = rows[twins[0]]
    index = in_segments(tmp_path / "x", rows, [500, 200, 60], coarse="none", fine=fine)
    order = sorted((str(row) for row in twins), reverse=True)
    queries = rows[[twins[0], twins[0]]]
    for k in (1, 17, 299, 300, 310):
        for ids in index.search(queries, k=k).ids:
            assert ids[:300] == order[:k]


def test_ties_within_a_shortlist_go_to_the_larger_id(tmp_path: Path) -> None:
    rows = np.tile(bent_rows(1, 16), (15, 1))
    index = embedkit.build_index(np.vstack([rows, bent_rows(200, 16, seed=3)]), tmp_path / "x", coarse="SQ8")
    assert index.search(rows[:1], k=15).ids == [sorted((str(row) for row in range(15)), reverse=True)]


# --- like, where, min_score, explain ------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["best", "mean", None])
def test_like_leaves_the_document_itself_out(index: Index, word_counts: Any, group: Any) -> None:
    by_vector = index.search(word_counts.encode(["cat cat dog"]), k=8).ids[0]
    assert index.search(like="d1", k=7, group=group).ids == [[name for name in by_vector if name != "d1"]]
    assert index.search(like="d1", k=100, group=group).ids[0] == [name for name in by_vector if name != "d1"]
    several = index.search(like=["d1", "d4", "d1"], k=2, group=group)
    assert several.ids == [index.search(like=name, k=2).ids[0] for name in ("d1", "d4", "d1")]
    assert several.scores.shape == (3, 2)


def test_like_leaves_out_only_itself_where_others_are_the_same(tmp_path: Path) -> None:
    same = build(tmp_path / "x", ["cat"] * 40)
    order = sorted((f"d{i}" for i in range(40) if i != 7), reverse=True)
    assert same.search(like="d7", k=10).ids == [order[:10]]


def test_what_is_asked_for_is_said_once(index: Index) -> None:
    for arguments in ({}, {"queries": "cat", "like": "d1"}):
        with pytest.raises(UsageError, match="Give either queries or like="):
            index.search(**arguments)
    with pytest.raises(UsageError, match="holds no document 'nobody'"):
        index.search(like=["d1", "nobody"])
    with pytest.raises(UsageError, match="group='worst' came"):
        index.search("cat", group="worst")  # type: ignore[arg-type]


METADATA: list[dict[str, Any]] = [
    {"year": 1990 + i % 30, "kind": "ab"[i % 2], "tags": [f"t{i % 7}", f"t{i % 3}"], "size": {"mm": i * 0.5}}
    for i in range(300)
]
FILTERS: dict[str, tuple[dict[str, Any], Callable[[dict[str, Any]], bool]]] = {
    "equal": ({"kind": "a"}, lambda m: m["kind"] == "a"),
    "range": ({"year": {"gte": 1995, "lt": 2003}}, lambda m: 1995 <= m["year"] < 2003),
    "one of a list": ({"tags": "t5"}, lambda m: "t5" in m["tags"]),
    "both": ({"kind": "b", "size.mm": {"gt": 100}}, lambda m: m["kind"] == "b" and m["size"]["mm"] > 100),
    "nothing passes": ({"year": 3000}, lambda _: False),
    "all pass": ({"year": {"gte": 0}}, lambda _: True),
    "any of": ({"or": [{"year": 1991}, {"tags": "t6"}]}, lambda m: m["year"] == 1991 or "t6" in m["tags"]),
    "none of": ({"not": {"kind": "a"}}, lambda m: m["kind"] != "a"),
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("coarse", ["none", "SQ8", "PQ16x4fs", "IVF8,SQ8"])
def test_where_leaves_what_python_leaves(
    tmp_path: Path, name: str, coarse: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where few pass they are searched exactly; where many pass, through the codes."""
    where, passes = FILTERS[name]
    rows = bent_rows(300)
    texts = [Document(str(i), "", metadata=m) for i, m in enumerate(METADATA)]
    index = embedkit.build_index(rows, tmp_path / "x", documents=texts, coarse=coarse, fine="float32")
    passing = [i for i, m in enumerate(METADATA) if passes(m)]
    truth = [best({str(i): float(rows[q] @ rows[i]) for i in passing}, 10) for q in range(5)]
    for few in (0.0, math.inf):  # all that passes is compared; never
        monkeypatch.setattr("embedkit.index.segment.GATHER_COST", few)
        for _ in range(2):  # the second time the filter is known
            hits = index.search(rows[:5], k=10, where=where)
            for q in range(5):
                assert {int(i) for i in hits.ids[q]} <= set(passing)
                assert len(set(hits.ids[q]) & set(truth[q])) >= min(9, len(truth[q]))
                assert len(hits.ids[q]) == len(truth[q])


@pytest.mark.parametrize("coarse", ["none", "IVF8,SQ8"])
def test_where_may_ask_for_more_than_passes(tmp_path: Path, coarse: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedkit.index.segment.GATHER_COST", math.inf)
    texts = [Document(str(i), "", metadata={"n": i % 3}) for i in range(300)]
    index = embedkit.build_index(bent_rows(300), tmp_path / "x", documents=texts, coarse=coarse)
    hits = index.search(bent_rows(4), k=250, where={"n": 1}, probes=2)
    assert [sorted(map(int, ids)) for ids in hits.ids] == [list(range(1, 300, 3))] * 4
    assert np.all(hits.scores[:, 100:] == -np.inf) and np.all(hits.scores[:, :100] > -2)


def test_no_more_filters_are_kept_than_there_is_room_for(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedkit.index.segment.FILTERS_KEPT", 3)
    for number in (0, 1, 2, 3, 0, 4, 1):
        assert index.search("cat", k=9, where={"n": number}).ids == [[f"d{number}"]]
    assert len(index.snapshot.segments[0]._masks) == 3


def test_a_filter_that_cannot_be_read_is_refused(index: Index) -> None:
    with pytest.raises(UsageError):
        index.search("cat", where={"n": {"about": 3}})


@pytest.mark.parametrize("least", [-1.0, 0.5, 0.7072, 2.0])
def test_what_scores_less_than_the_least_is_left_out(index: Index, least: float) -> None:
    everything = index.search(["cat", "dog bird"], k=8)
    hits = index.search(["cat", "dog bird"], k=8, min_score=least)
    for q in range(2):
        kept = [name for name, score in zip(everything.ids[q], everything.scores[q], strict=True) if score >= least]
        assert hits.ids[q] == kept
        assert np.all(hits.scores[q, len(kept) :] == -np.inf)
        assert hits.documents is not None and [document.id for document in hits.documents[q]] == kept


@pytest.mark.parametrize("coarse", ["none", "SQ8"])
def test_an_explanation_gives_rank_and_score_of_both_levels(tmp_path: Path, coarse: str) -> None:
    rows = bent_rows(300)
    index = embedkit.build_index(rows, tmp_path / "x", coarse=coarse, fine="float32")
    index.add(bent_rows(2, seed=5), ids=["x", "y"])
    hits = index.search(rows[:3], k=6, explain=True)
    assert hits.explanations is not None and [len(said) for said in hits.explanations] == [6, 6, 6]
    for q in range(3):
        for rank, (name, said) in enumerate(zip(hits.ids[q], hits.explanations[q], strict=True), 1):
            assert said["fine"] == {"rank": rank, "score": float(hits.scores[q, rank - 1])}
            assert said["segment"] == (2 if name in "xy" else 1)
            if coarse == "none" or name in "xy":
                assert said["coarse"] is None
            else:
                assert 1 <= said["coarse"]["rank"] <= 20
                assert said["coarse"]["score"] == pytest.approx(rows[q] @ rows[int(name)], abs=0.02)
    assert [len(said) for said in index.search(rows[:3], k=6, explain=True, min_score=0.99).explanations or []] == [
        len(ids) for ids in index.search(rows[:3], k=6, min_score=0.99).ids
    ]


def test_shortlist_and_probes_can_be_given_with_the_question(tmp_path: Path) -> None:
    rows = bent_rows(2000)
    index = embedkit.build_index(rows, tmp_path / "x", coarse="IVF32,PQ4x4fs", fine="float32")
    truth = [best({str(i): float(rows[q] @ rows[i]) for i in range(2000)}, 10) for q in range(30)]

    def recall(hits: Hits) -> float:
        return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(hits.ids, truth, strict=True)]))

    assert recall(index.search(rows[:30], shortlist=2000, probes=32)) == 1
    assert recall(index.search(rows[:30], shortlist=15, probes=1)) < 0.9


def test_a_shortlist_holds_twice_as_many_as_are_asked_for(tmp_path: Path) -> None:
    index = embedkit.build_index(bent_rows(400, 16), tmp_path / "x", coarse="PQ4x4fs")
    segment = index.snapshot.segments[0]
    stored = segment.record.shortlist
    for k, given, expected in ((1, None, stored), (1, 77, 77), (300, None, 600), (300, 77, 600)):
        assert segment.shortlist_size(k, given) == expected
    assert [len(ids) for ids in index.search(bent_rows(3, 16), k=350).ids] == [350] * 3


@pytest.mark.parametrize("coarse", ["IVF32,SQ8", "PQ16x4fs", "HNSW16"])
def test_more_than_the_lists_visited_hold_are_found_all_the_same(tmp_path: Path, coarse: str) -> None:
    rows = bent_rows(2000)
    index = embedkit.build_index(rows, tmp_path / "x", coarse=coarse, fine="float32")
    hits = index.search(rows[:3], k=1500)
    assert [len(set(ids)) for ids in hits.ids] == [1500] * 3
    truth = -np.sort(-(rows[:3] @ rows.T), axis=1)[:, :1500]
    assert np.abs(hits.scores - truth).mean() < 0.02


# --- refusals -----------------------------------------------------------------------------------------------------


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
    lazy.search(like="d1")
    assert opened == []
    lazy.search("cat")
    lazy.search("dog")
    assert opened == [1]


def test_words_need_a_model(tmp_path: Path, index: Index) -> None:
    bare = embedkit.build_index(np.ones((1, 2), np.float32), tmp_path / "bare")
    for without in (bare, Index(index.path)):
        with pytest.raises(UsageError, match="built from vectors that name no model; search it with vectors"):
            without.search("words")


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        (np.ones((1, 3), np.float32), r"Queries of shape \(1, 3\) came; this index holds rows of width 12"),
        (np.ones((1, 1, 12), np.float32), r"Queries of shape \(1, 1, 12\)"),
        (np.full((1, 12), np.nan, np.float32), "holds NaN or infinity"),
        (np.full((1, 12), np.inf, np.float32), "holds NaN or infinity"),
        (np.eye(12, dtype=np.float32) + np.diag([0.0] * 11 + [np.nan]), "holds NaN or infinity"),
    ],
)
def test_a_vector_that_cannot_be_a_query_is_refused(index: Index, query: np.ndarray, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        index.search(query)


def test_k_is_at_least_one(index: Index) -> None:
    with pytest.raises(UsageError, match="k=0 came; expected at least 1"):
        index.search("cat", k=0)
    assert len(index.search("cat", k=1).ids[0]) == 1
    nothing = index.search(np.empty((0, 12), np.float32), k=3)
    assert (nothing.ids, nothing.scores.shape, nothing.documents) == ([], (0, 3), [])
    assert index.search([], k=3).ids == []


def test_a_query_of_length_zero_scores_nothing(index: Index) -> None:
    hits = index.search(np.zeros((1, 12), np.float32), k=3)
    assert hits.scores.tolist() == [[0, 0, 0]]
    assert hits.ids == [["d7", "d6", "d5"]]


# --- threads ------------------------------------------------------------------------------------------------------


def test_several_threads_may_search(tmp_path: Path, word_counts: Any) -> None:
    index = build(tmp_path / "threads", TEXTS * 40, coarse="SQ8")
    questions = [TEXTS[i % 8] or "cat" for i in range(64)]
    expected = [index.search(question, k=5).ids for question in questions]
    for threads in (None, 1):
        fresh = Index(index.path, lambda: word_counts, threads=threads)
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda question: fresh.search(question, k=5).ids, questions)) == expected  # noqa: B023


def test_searches_see_one_version_whatever_another_thread_writes(tmp_path: Path) -> None:
    """Each version has documents of one generation only: a mixture would be of two versions."""
    rows = bent_rows(40, 12)
    index = embedkit.build_index(rows, tmp_path / "x", ids=[f"0-{i}" for i in range(40)])
    done = threading.Event()
    wrong: list[list[str]] = []

    def search() -> int:
        count = 0
        while not done.is_set() or count < 5:
            hits = index.search(rows[:2], k=40)
            wrong.extend(ids for ids in hits.ids if len({name.partition("-")[0] for name in ids}) != 1)
            wrong.extend(ids for ids in hits.ids if len(ids) != 40)
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        searching = [pool.submit(search) for _ in range(4)]
        try:
            for generation in range(1, 16):
                with index._changed(None) as change:  # delete and add in one commit
                    change.delete([f"{generation - 1}-{i}" for i in range(40)])
                    writer = change.document_writer()
                    writer.append((Document(f"{generation}-{i}", "") for i in range(40)), texts=False)
                    writer.close()
                    change.add(rows, embedkit.index.writer.Content(40, 0))
        finally:
            done.set()
        assert all(future.result() >= 5 for future in searching)
    assert wrong == []
    assert index.manifest.number == 16


# --- facts and files ----------------------------------------------------------------------------------------------


def test_info_says_what_is_in_it(tmp_path: Path, word_counts: Any) -> None:
    index = build(tmp_path / "facts", TEXTS * 40, coarse="SQ8")
    info = index.info()
    assert (len(index), info["documents"], info["rows"], info["deleted"]) == (320, 320, 320, 0)
    assert (info["dim"], info["coarse"], info["fine"], info["version"]) == (12, "SQ8", "float16", 1)
    assert (info["segments"][0]["coarse"], info["fields"], info["empty_texts"]) == ("SQ8", ["n"], 40)
    assert info["fingerprint"] == word_counts.fingerprint and info["metric"] == "cosine" and info["unit_rows"]
    sizes = {path.name.removeprefix("segment-0001."): path.stat().st_size for path in index.path.iterdir()}
    assert info["bytes_in_ram"] == sum(sizes[part] for part in ("codes.faiss", "ids.npy", "ids.txt"))
    assert info["bytes_on_disk"] == sum(sizes.values()) - sizes["manifest-000001.json"] - sizes["built.json"]
    exact = build(tmp_path / "exact").info()
    assert exact["bytes_in_ram"] - 12 * 8 * 2 < 1000  # the rows are in it
    assert exact["bytes_in_ram"] > 12 * 8 * 2


def test_it_opens_anywhere_and_read_only(index: Index, word_counts: Any, tmp_path: Path) -> None:
    moved = shutil.copytree(index.path, tmp_path / "else where #1")
    for entry in moved.iterdir():
        entry.chmod(0o444)
    moved.chmod(0o555)
    try:
        with Index(moved, lambda: word_counts, check=True) as again:
            again.verify()
            assert again.search("cat", k=2).documents == index.search("cat", k=2).documents
        assert sorted(entry.name for entry in moved.iterdir()) == sorted(entry.name for entry in index.path.iterdir())
    finally:
        moved.chmod(0o755)


def test_a_flipped_bit_is_found_when_all_is_read(index: Index) -> None:
    path = index.path / "segment-0001.fine.npy"
    content = bytearray(path.read_bytes())
    content[200] ^= 4
    path.write_bytes(content)
    for look in (index.verify, lambda: Index(index.path, check=True)):
        with pytest.raises(IntegrityError, match=r"fine\.npy has changed"):
            look()


def test_damaged_codes_never_reach_faiss(tmp_path: Path, word_counts: Any) -> None:
    index = build(tmp_path / "x", TEXTS * 5, coarse="SQ8")
    path = index.path / "segment-0001.codes.faiss"
    content = bytearray(path.read_bytes())
    content[10] ^= 255
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"codes\.faiss has changed"):
        Index(index.path, lambda: word_counts).search("cat")


def test_a_foreign_file_is_found(index: Index) -> None:
    (index.path / "notes.txt").write_text("mine")
    with pytest.raises(IntegrityError, match=r"holds notes\.txt, which its manifest does not name"):
        index.verify()


# --- what is refused when it is built -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "layout", "error", "sentence"),
    [
        ([[1, 0], [np.nan, 0]], {}, DataError, "The vector of 'b' is not finite in float16"),
        ([[1, 0], [np.inf, 0]], {"fine": "int8"}, DataError, "The vector of 'b' is not finite in float32"),
        ([[1, 0], [1e6, 0]], {"metric": "dot"}, DataError, "'b' is not finite in float16 .* --fine float32"),
        ([[1, 0]], {}, UsageError, "2 ids came with 1 vectors"),
        ([[1, 0], [1, 0]], {"metric": "euclidean"}, UsageError, "metric='euclidean' came"),
        ([[1, 0], [1, 0]], {"fine": "int4"}, UsageError, "fine='int4' came"),
        ([[1, 0], [1, 0]], {"coarse": "nonsense"}, UsageError, "faiss makes no index of 'nonsense'"),
        ([[1, 0], [1, 0]], {"coarse": "IVF8,SQ8"}, DataError, "cannot be trained on 2 rows"),
        ([[1, 0], [1, 0]], {"coarse": "IDMap,Flat"}, UsageError, "faiss adds no rows"),
        ([[1, 0], [1, 0]], {"recall": 1}, UsageError, "recall=1 came; expected a share between 0 and 1"),
        ([[1, 0], [1, 0]], {"recall": 0.0}, UsageError, r"recall=0\.0 came"),
        ([[1, 0], [1, 0]], {"bytes_per_vector": 8}, UsageError, "bytes_per_vector=8 came; expected at least 9"),
        ([[1, 0], [1, 0]], {"bytes_per_vector": 9, "coarse": "SQ8"}, UsageError, "is what coarse='auto' chooses by"),
    ],
)
def test_what_cannot_be_indexed_leaves_nothing(
    tmp_path: Path, rows: Any, layout: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        embedkit.build_index(np.array(rows, dtype=float), tmp_path / "x", ids=["a", "b"], **layout)
    assert list(tmp_path.iterdir()) == []


def test_no_rows_are_no_index(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There are no rows to index"):
        embedkit.build_index(np.empty((0, 2), np.float32), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_large_numbers_fit_into_float32_rows(tmp_path: Path) -> None:
    index = embedkit.build_index(np.array([[1e6, 0]]), tmp_path / "x", metric="dot", fine="float32")
    assert index.search(np.array([[1, 0]], np.float32)).scores[0, 0] == 1e6


@pytest.mark.parametrize("coarse", ["SQ8", "IVF1,SQ8", "HNSW16", "Flat"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_codes_of_very_few_rows_are_no_harm(
    tmp_path: Path, coarse: str, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    index = embedkit.build_index(bent_rows(count), tmp_path / "x", coarse=coarse)
    assert (index.manifest.segments[0].recall, caplog.text) == ((1.0, 1.0), "")
    assert index.search(bent_rows(1), k=10).ids[0][0] == "0"
    assert len(index.search(bent_rows(1), k=10).ids[0]) == count


def test_auto_becomes_lists_of_codes_above_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedkit.index.coarse.EXACT_UP_TO", 300)
    assert build(tmp_path / "few", TEXTS * 37).manifest.segments[0].coarse is None
    for module in ("writer", "fine", "coarse"):
        monkeypatch.setattr(f"embedkit.index.{module}.BLOCK", 100)
    many = build(tmp_path / "many", TEXTS * 40)
    assert (many.manifest.coarse, many.manifest.segments[0].coarse) == ("auto", "IVF32,SQ8")
    exact = build(tmp_path / "exact", TEXTS * 40, coarse="none")
    assert many.search("red fish swim", k=40).ids == exact.search("red fish swim", k=40).ids


def test_rows_are_drawn_for_training_that_do_not_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from embedkit.index import writer

    monkeypatch.setattr(writer, "HELD_OUT", 50)
    sample, held_out = writer._sample(10_000, 3000)
    assert (len(sample), len(held_out)) == (3000, 50)
    assert not set(sample) & set(held_out)
    for drawn in (sample, held_out):
        assert np.all(np.diff(drawn) > 0)
        assert drawn.max() < 10_000
    everything, some = writer._sample(499, 3000)
    assert (everything.tolist(), len(some)) == (list(range(499)), 50)
    rows = bent_rows(4000)
    index = embedkit.build_index(rows, tmp_path / "x", coarse="IVF16,PQ32x4fs", recall=0.9)
    segment = index.manifest.segments[0]
    assert segment.recall is not None and segment.recall[0] >= segment.recall[1] >= 0.9


def test_the_settings_keep_the_recall_that_they_were_held_to(tmp_path: Path) -> None:
    """Measured on fresh queries, against brute force."""
    rows, queries = bent_rows(6000), bent_rows(200, seed=9)
    index = embedkit.build_index(rows, tmp_path / "x", coarse="IVF64,PQ32x4fs", recall=0.95, fine="float32")
    truth = np.argsort(-(queries @ rows.T), axis=1)[:, :10]
    hits = index.search(queries, k=10)
    kept = [len(set(map(str, a)) & set(b)) / 10 for a, b in zip(truth.tolist(), hits.ids, strict=True)]
    assert np.mean(kept) > 0.94


@pytest.mark.parametrize("share", [0.1, 0.4])
@pytest.mark.parametrize("drawn", ["at random", "far from the queries"])
def test_filters_and_deletions_keep_the_recall(tmp_path: Path, share: float, drawn: str) -> None:
    """Against brute force, whichever of the rows that pass or the codes is read."""
    rows = bent_rows(6000)
    axis = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[2][0]
    along = np.random.default_rng(1).random(6000) if drawn == "at random" else rows @ axis
    passes = along > np.quantile(along, 1 - share)
    queries = bent_rows(400, seed=9)
    queries = queries[queries @ axis < np.median(rows @ axis)][:150]
    texts = [Document(str(i), "", metadata={"in": int(one)}) for i, one in enumerate(passes)]
    index = embedkit.build_index(
        rows, tmp_path / "x", documents=texts, coarse="IVF64,PQ32x4fs", recall=0.95, fine="float32"
    )
    truth = np.argsort(-np.where(passes, queries @ rows.T, -np.inf), axis=1)[:, :10]
    filtered = index.search(queries, k=10, where={"in": 1}, documents=False).ids
    index.delete(where={"in": 0})
    for ids in (filtered, index.search(queries, k=10, documents=False).ids):
        kept = [len(set(map(str, a)) & set(b)) / 10 for a, b in zip(truth.tolist(), ids, strict=True)]
        assert np.mean(kept) > 0.94


def test_what_is_read_for_a_filter_grows_without_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that pass are compared where they are fewer bytes than the codes: from then on the codes are scanned."""
    texts = [Document(str(i), "", metadata={"n": i}) for i in range(6000)]
    index = embedkit.build_index(bent_rows(6000), tmp_path / "x", documents=texts, coarse="IVF64,PQ32x4fs")
    segment = index.snapshot.segments[0]
    compared: list[int] = []
    exact = segment.fine.search

    def counted(queries: Any, k: int, mask: Any = None) -> Any:
        compared.append(mask.count)
        return exact(queries, k, mask)

    monkeypatch.setattr(segment.fine, "search", counted)
    for count in range(200, 6001, 200):
        index.search(bent_rows(1), k=10, where={"n": {"lt": count}})
    width, codes = segment.fine.stored.strides[0], segment.record.files["codes.faiss"]["bytes"]
    assert compared == list(range(200, compared[-1] + 1, 200))
    assert 0 < compared[-1] * width <= codes + segment.record.shortlist * width


def test_many_queries_at_once_are_searched_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = embedkit.build_index(bent_rows(2000), tmp_path / "x", coarse="IVF16,SQ8")
    queries = bent_rows(100, seed=5)
    whole = index.search(queries, k=5)
    monkeypatch.setattr("embedkit.index.coarse.AT_ONCE", 7)
    parts = index.search(queries, k=5)
    assert parts.ids == whole.ids and np.array_equal(parts.scores, whole.scores)


def test_the_same_rows_make_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = bent_rows(700)
    for name, block in (("a", 16_384), ("b", 100)):
        monkeypatch.setattr("embedkit.index.writer.BLOCK", block)
        embedkit.build_index(rows, tmp_path / name, coarse="IVF8,SQ8", fine="int8").close()
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in names:
        if not name.startswith("manifest") and not name.endswith(".built.json"):  # these hold times
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_layout_is_asked_for_by_name() -> None:
    assert Layout().factory(20_000, 384) is None
    assert (Layout(coarse="none").factory(10**9, 384), Layout(coarse="SQ8").factory(1, 384)) == (None, "SQ8")
    Layout(coarse="IVF64,SQ8").check(384)
    Layout(bytes_per_vector=104).check(384)
