"""Adding, replacing, deleting and compacting, against a dict of what should be there."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedkit
from embedkit.errors import DataError, IntegrityError, ModelMismatch, Stopped, UsageError
from embedkit.index import Index
from embedkit.index.manifest import read_manifest
from embedkit.index.versions import writing
from embedkit.jobs import add_to_index
from embedkit.types import Document

from ..conftest import WordCounts, bent_rows
from ..engine.fakes import Plain, Windowed

FINES = ["float32", "float16", "int8"]
DIM = 24


def made(path: Path, count: int = 300, **layout: Any) -> Index:
    return embedkit.build_index(bent_rows(count, DIM), path, **layout)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_holds(index: Index, expected: dict[str, np.ndarray], atol: float = 1e-6) -> None:
    """These documents and no others, each with its row: found by it, and scored as numpy does."""
    for opened in (index, Index(index.path, check=True)):
        assert len(opened) == opened.info()["documents"] == len(expected)
        rows = np.array(list(expected.values())).reshape(-1, index.dim)
        hits = opened.search(rows[::7], k=len(expected) + 3, documents=False)
        for ids, scores, query in zip(hits.ids, hits.scores, rows[::7], strict=True):
            assert sorted(ids) == sorted(expected)
            products = np.array([float(expected[name] @ query) for name in ids])
            np.testing.assert_allclose(scores[: len(ids)], products, atol=atol)


@pytest.mark.parametrize("fine", FINES)
@pytest.mark.parametrize("coarse", ["none", "SQ8", "IVF4,SQ8"])
def test_an_index_holds_what_a_dict_would_hold(tmp_path: Path, coarse: str, fine: str) -> None:
    atol = {"float32": 1e-6, "float16": 5e-4, "int8": 5e-2}[fine]
    rows, more = bent_rows(300, DIM), bent_rows(200, DIM, seed=1)
    index = made(tmp_path / "x", coarse=coarse, fine=fine)
    expected = {str(i): row for i, row in enumerate(rows)}
    ids = [str(i) for i in range(280, 320)]  # 20 that are there, and 20 new ones
    assert index.add(more[:40], ids=ids) == 40
    expected |= dict(zip(ids, more, strict=False))
    assert_holds(index, expected, atol)
    assert index.delete(["0", "1", "310", "nobody", "0"]) == 3
    for name in ("0", "1", "310"):
        del expected[name]
    assert_holds(index, expected, atol)
    assert index.add(more[40:44], ids=["0", "7", "x", "310"]) == 4
    expected |= dict(zip(["0", "7", "x", "310"], more[40:], strict=False))
    assert_holds(index, expected, atol)
    index.compact()
    assert [segment.rows for segment in index.manifest.segments] == [len(expected)]
    assert_holds(index, expected, atol)


def test_a_document_that_comes_again_replaces_the_old_one_whole(tmp_path: Path) -> None:
    rows = [Document("a", "cat", metadata={"n": 1}), Document("b", "dog", title="one"), Document("c", "fish")]
    index = embedkit.build_index(rows, tmp_path / "x", model=WordCounts())
    assert index.add([{"id": "a", "text": "red bird", "m": 2}, {"id": "d", "text": "blue"}]) == 2
    new = [Document("a", "red bird", metadata={"m": 2}), Document("d", "blue"), *rows[1:]]
    for opened in (index, embedkit.open_index(tmp_path / "x", WordCounts())):
        assert opened.get(["a", "d", "b", "c"]) == new
        assert opened.search("cat", k=4).scores.tolist() == [[0, 0, 0, 0]]
        assert opened.search("red", k=1).ids == [["a"]]
        with pytest.raises(UsageError, match="'n', which no document has; the fields are"):  # it went with the document
            opened.search("red", k=9, where={"n": 1})
        assert opened.search("red", k=9, where={"m": 2}).ids == [["a"]]
        assert opened.info()["empty_texts"] == 0


def test_ids_may_be_one_several_or_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedkit.index.update.AT_ONCE", 7)
    index = made(tmp_path / "x")
    assert index.delete("17") == 1
    assert index.delete(str(number) for number in range(100)) == 99
    assert index.delete(("200", "201")) == 2
    assert len(index) == 198


def test_documents_are_deleted_by_what_they_say(tmp_path: Path) -> None:
    texts = [Document(str(i), "", metadata={"year": 1900 + i}) for i in range(300)]
    index = made(tmp_path / "x", documents=texts)
    index.add(bent_rows(1, DIM), ids=["new"])
    assert index.delete(where={"year": {"lt": 1950}}) == 50
    assert index.delete(where={"year": {"lt": 1951}}) == 1
    assert index.delete(where={"year": {"gt": 5000}}) == 0
    assert_holds(
        index,
        {str(i): row for i, row in enumerate(bent_rows(300, DIM)) if i > 50} | {"new": bent_rows(1, DIM)[0]},
        5e-4,
    )
    with pytest.raises(UsageError):
        index.delete(where={"year": {"about": 1}})


@pytest.mark.parametrize("arguments", [{}, {"ids": ["1"], "where": {"n": 1}}])
def test_what_is_deleted_is_said_once(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="Give either ids or where="):
        made(tmp_path / "x").delete(**arguments)


def test_what_changes_nothing_makes_no_version(tmp_path: Path) -> None:
    index = made(tmp_path / "x", documents=[Document(str(i), "", metadata={"n": 0}) for i in range(300)])
    before = files_of(index.path)
    assert index.delete(["nobody"]) == index.delete([]) == index.delete(where={"n": 1}) == 0
    index.compact()
    assert files_of(index.path) == before


@pytest.mark.parametrize("fine", FINES)
@pytest.mark.parametrize("coarse", ["none", "SQ8"])
def test_an_empty_index_is_one_and_can_be_filled_again(tmp_path: Path, coarse: str, fine: str) -> None:
    index = made(tmp_path / "x", coarse=coarse, fine=fine)
    assert index.delete(map(str, range(300))) == 300
    for opened in (index, Index(index.path, check=True)):
        assert (len(opened), opened.info()["rows"], opened.bytes_in_ram()) == (0, 0, 0)
        for group in ("best", "mean", None):
            hits = opened.search(bent_rows(2, DIM), k=3, group=group, explain=True)  # type: ignore[arg-type]
            assert (hits.ids, hits.documents, hits.scores.shape) == ([[], []], [[], []], (2, 0))
        assert opened.search(bent_rows(2, DIM), k=3, where={"n": 1}).ids == [[], []]
        with pytest.raises(UsageError, match="holds no document '1'"):
            opened.search(like="1")
    left = {path.name for path in index.path.iterdir()} - {"lock", "ranges-000001.npy"}
    assert left == {"manifest-000002.json"}
    index.compact()
    assert index.add(bent_rows(5, DIM), ids=list("abcde")) == 5
    atol = {"float32": 1e-6, "float16": 5e-4, "int8": 5e-2}[fine]
    assert_holds(index, dict(zip("abcde", bent_rows(5, DIM), strict=True)), atol)


def test_eighty_documents_one_by_one_make_few_segments(tmp_path: Path) -> None:
    rows = bent_rows(81, DIM)
    index = embedkit.build_index(rows[:1], tmp_path / "x", ids=["0"])
    for number in range(1, 81):
        index.add(rows[number : number + 1], ids=[str(number)])
        assert len(index.manifest.segments) <= math.log2(number + 1) + 1
        sizes = [segment.rows for segment in index.manifest.segments]
        assert all(size >= 2 * behind for size, behind in itertools.pairwise(sizes))
    assert_holds(index, {str(number): row for number, row in enumerate(rows)}, 5e-4)
    names = {path.name.split(".")[0] for path in index.path.iterdir()}
    segments = {f"segment-{segment.number:04}" for segment in index.manifest.segments}
    assert names == {"lock", f"manifest-{81:06}", *segments}  # nothing of older versions is left


def test_the_same_document_again_and_again_leaves_one(tmp_path: Path) -> None:
    rows = bent_rows(50, DIM)
    index = embedkit.build_index(rows[:1], tmp_path / "x", ids=["a"])
    for row in rows[1:]:
        index.add(row[None], ids=["a"])
        assert len(index) == len(index.manifest.segments) == 1
    assert_holds(index, {"a": rows[-1]}, 5e-4)


@pytest.mark.parametrize("fine", FINES)
def test_merging_keeps_rows_texts_and_metadata_bit_for_bit(tmp_path: Path, fine: str) -> None:
    texts = [
        Document(f"d{i}", f"text {i}", title=f"{i % 7}", metadata={"n": i, "tags": ["é", i % 3]}) for i in range(90)
    ]
    rows = bent_rows(90, DIM)
    index = embedkit.build_index(
        rows[:60], tmp_path / "x", ids=[d.id for d in texts[:60]], documents=texts[:60], fine=fine
    )
    for start in (60, 80):
        add_to_index(
            tmp_path / "x",
            rows[start : start + 10],
            ids=[d.id for d in texts[start : start + 10]],
            documents=texts[start : start + 10],
        )
    index = Index(tmp_path / "x")
    before = np.concatenate([segment.fine.stored for segment in index.snapshot.segments])
    found = {name: index.search(rows[:20], k=70, where=where) for name, where in (("a", None), ("b", {"tags": 1}))}
    index.delete(["d3", "d61"])
    index.compact()
    (segment,) = index.snapshot.segments
    held = [document for document in texts[:70] + texts[80:] if document.id not in ("d3", "d61")]
    np.testing.assert_array_equal(segment.fine.stored, np.delete(before, [3, 61], axis=0))
    assert list(segment.documents.stream()) == held
    assert list(segment.ids) == [document.id for document in held]
    for name, where in (("a", None), ("b", {"tags": 1})):
        again = index.search(rows[:20], k=70, where=where)
        for old_ids, old_scores, ids, scores in zip(
            found[name].ids, found[name].scores, again.ids, again.scores, strict=True
        ):
            kept = [(i, s) for i, s in zip(old_ids, old_scores, strict=False) if i not in ("d3", "d61")]
            assert list(zip(ids, scores, strict=False))[: len(kept)] == kept


def test_int8_rows_keep_the_ranges_of_the_first_ones(tmp_path: Path) -> None:
    index = embedkit.build_index(bent_rows(50, DIM), tmp_path / "x", fine="int8", metric="dot")
    ranges = np.load(tmp_path / "x" / "ranges-000001.npy", allow_pickle=False)
    np.testing.assert_allclose(ranges[0], bent_rows(50, DIM).min(axis=0))
    index.add(np.full((1, DIM), 100, np.float32), ids=["far out"])
    highest = bent_rows(50, DIM).max(axis=0)
    np.testing.assert_allclose(index.snapshot.stored_vectors(["far out"])[0], highest, atol=0.01)  # the nearest inside
    assert (tmp_path / "x" / "ranges-000001.npy").is_file()
    assert index.manifest.ranges == 1


@pytest.mark.parametrize(("scale", "drifts"), [(1.0, False), (1.5, True)])
def test_int8_rows_that_drift_are_said_once_with_the_way_out(
    tmp_path: Path, scale: float, drifts: bool, caplog: pytest.LogCaptureFixture
) -> None:
    index = embedkit.build_index(bent_rows(800, DIM), tmp_path / "x", fine="int8", metric="dot")
    assert not caplog.records
    rows = scale * bent_rows(300, DIM, seed=1)
    index.add(rows, ids=[f"n{i}" for i in range(300)])
    lowest, highest = bent_rows(800, DIM).min(axis=0), bent_rows(800, DIM).max(axis=0)
    share = 100 * float(((rows < lowest) | (rows > highest + (highest - lowest) / 255)).mean())
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == drifts
    if drifts:
        assert said[0].startswith(
            f"{share:.2f} % of the values of these rows lie outside the int8 ranges of {tmp_path / 'x'}"
        )
        assert "Build it again" in said[0]
    caplog.clear()
    index.compact()
    index.add(bent_rows(300, DIM, seed=2), ids=[f"m{i}" for i in range(300)])
    assert not caplog.records


# --- codes --------------------------------------------------------------------------------------------------------


def test_few_new_rows_are_searched_exactly_beside_codes(tmp_path: Path) -> None:
    """An IVF index cannot be trained on one row; the segment that it makes needs no codes."""
    index = made(tmp_path / "x", 2000, coarse="IVF16,SQ8", fine="float32")
    index.add(bent_rows(3, DIM, seed=5), ids=["a", "b", "c"])
    assert [segment.coarse for segment in index.manifest.segments] == ["IVF16,SQ8", None]
    assert index.search(bent_rows(3, DIM, seed=5), k=1).ids == [["a"], ["b"], ["c"]]
    index.compact()
    assert [(segment.coarse, segment.rows) for segment in index.manifest.segments] == [("IVF16,SQ8", 2003)]
    index.delete(map(str, range(1995)))
    index.compact()
    assert [(segment.coarse, segment.rows) for segment in index.manifest.segments] == [(None, 8)]
    assert index.search(bent_rows(3, DIM, seed=5), k=1).ids == [["a"], ["b"], ["c"]]


def test_many_new_rows_have_codes_of_their_own(tmp_path: Path) -> None:
    index = made(tmp_path / "x", 4000, coarse="SQ8")
    index.add(bent_rows(1500, DIM, seed=2), ids=[f"n{i}" for i in range(1500)])
    assert [segment.coarse for segment in index.manifest.segments] == ["SQ8", "SQ8"]
    queries = bent_rows(20, DIM, seed=3)
    truth = np.argsort(-(queries @ np.vstack([bent_rows(4000, DIM), bent_rows(1500, DIM, seed=2)]).T), axis=1)[:, :10]
    names = [*map(str, range(4000)), *(f"n{i}" for i in range(1500))]
    for _ in range(2):
        hits = index.search(queries, k=10)
        kept = [
            len({names[row] for row in rows} & set(ids)) for rows, ids in zip(truth.tolist(), hits.ids, strict=True)
        ]
        assert np.mean(kept) > 9.5
        index.compact()
    assert [segment.rows for segment in index.manifest.segments] == [5500]


def test_auto_gives_codes_once_there_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedkit.index.coarse.EXACT_UP_TO", 1500)
    index = made(tmp_path / "x", 1400)
    assert index.manifest.segments[0].coarse is None
    index.add(bent_rows(1250, DIM, seed=2), ids=[f"n{i}" for i in range(1250)])  # merged with the first
    assert [(segment.coarse, segment.rows) for segment in index.manifest.segments] == [("IVF64,SQ8", 2650)]
    index.delete("n0")
    with pytest.raises(UsageError, match=r"and --ram leaves 1,000; give more"):
        index.compact(ram=1000)
    assert len(index) == len(Index(index.path, check=True)) == 2649
    index.compact(ram=10**9)
    assert [(segment.coarse, segment.rows) for segment in index.manifest.segments] == [("IVF64,SQ8", 2649)]


def test_the_last_lists_that_are_visited_may_hold_deleted_rows_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedkit.index.segment.GATHER_COST", math.inf)
    rows = bent_rows(2000, DIM)
    index = made(tmp_path / "x", 2000, coarse="IVF16,SQ8", fine="float32")
    near = np.argsort(-(rows @ rows[0]))[:1988]
    index.delete(map(str, near))
    left = np.setdiff1d(np.arange(2000), near)
    expected = left[np.argsort(-(rows[left] @ rows[0]), kind="stable")][:10]
    hits = index.search(rows[:1], k=10, probes=1)
    np.testing.assert_allclose(hits.scores[0], rows[expected] @ rows[0], atol=1e-6)


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "ids", "error", "sentence"),
    [
        (
            np.ones((1, 3)),
            ["a"],
            DataError,
            r"An array of float64 of shape \(1, 3\) came; this index holds rows of width 24",
        ),
        (np.ones(DIM), ["a"], DataError, r"shape \(24,\) came"),
        (np.array([["a"] * DIM]), ["a"], DataError, "An array of <U1"),
        (np.full((1, DIM), np.nan), ["a"], DataError, "The vector of 'a' is not finite"),
        (np.ones((2, DIM)), ["a"], UsageError, "1 ids came with 2 vectors"),
        (np.ones((2, DIM)), None, UsageError, "0 ids came with 2 vectors"),
        (np.ones((2, DIM)), ["a", "a"], DataError, "the id 'a' came before"),
        (np.ones((2, DIM)), ["a", "b\nc"], DataError, "ids, row 2"),
        (np.ones((0, DIM)), [], DataError, "There are no rows to index"),
    ],
)
def test_what_cannot_be_added_changes_nothing(
    tmp_path: Path, rows: np.ndarray, ids: list[str] | None, error: type[Exception], sentence: str
) -> None:
    index = made(tmp_path / "x")
    manifest = (index.path / "manifest-000001.json").read_bytes()
    with pytest.raises(error, match=sentence):
        index.add(rows, ids=ids)
    assert (index.path / "manifest-000001.json").read_bytes() == manifest
    assert len(Index(index.path, check=True)) == len(index) == 300
    index.add(np.ones((1, DIM)), ids=["a"])  # and it can be changed afterwards
    left = {path.name.split(".")[0] for path in index.path.iterdir()}
    assert left == {"lock", "manifest-000002", "segment-0001", "segment-0002"}


def test_words_need_the_model_of_the_index(tmp_path: Path) -> None:
    index = embedkit.build_index(["cat", "dog"], tmp_path / "x", model=WordCounts())
    other = embedkit.open_index(tmp_path / "x", WordCounts(fingerprint="0" * 64))
    with pytest.raises(ModelMismatch, match="was built by ffffffffffff"):
        other.add(["fish"])
    with pytest.raises(UsageError, match="name no model"):
        made(tmp_path / "y").add(["fish"])
    assert index.add([Document("z", "fish")]) == 1
    assert index.search("fish", k=1).ids == [["z"]]


def test_an_addition_that_fails_in_the_middle_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedkit.index.embedding.WINDOW", 2)
    index = embedkit.build_index(["cat", "dog"], tmp_path / "x", model=Plain())

    def rows() -> Iterator[Document]:
        yield from (Document(f"n{i}", f"text {i}") for i in range(5))
        yield Document("last", "raise")

    with pytest.raises(RuntimeError, match="a screw is loose"):
        index.add(rows())
    assert (len(index), index.manifest.number, len(Index(index.path, check=True))) == (2, 1, 2)
    with pytest.raises(DataError, match="is empty; expected at least one row"):
        index.add([])
    assert index.add([Document(f"n{i}", f"text {i}") for i in range(5)]) == 5
    assert [document.text for document in index.get(["n4", "n0"])] == ["text 4", "text 0"]
    assert not any(path.name.startswith("add.") for path in index.path.iterdir())


@pytest.mark.parametrize("window", [1, 2, 100])
def test_added_texts_beyond_the_limit_are_treated_as_when_it_was_built(
    tmp_path: Path, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row every 12 characters."""
    monkeypatch.setattr("embedkit.index.embedding.WINDOW", window)
    texts = [Document(f"d{i}", "x" * 5 * i) for i in range(8)]
    built = embedkit.build_index(texts, tmp_path / "a", model=Windowed(), on_long="chunk", coarse="none")
    added = embedkit.build_index(texts[:3], tmp_path / "b", model=Windowed(), on_long="chunk", coarse="none")
    assert added.add(texts[3:]) == 5
    (one,), segments = built.snapshot.segments, added.snapshot.segments
    assert one.spans is not None
    np.testing.assert_array_equal(np.concatenate([s.spans for s in segments if s.spans is not None]), one.spans)
    np.testing.assert_array_equal(np.concatenate([s.fine.stored for s in segments]), one.fine.stored)
    for group in ("best", "mean", None):
        hits = [index.search("x" * 12, k=20, group=group) for index in (built, added)]  # type: ignore[arg-type]
        assert hits[0].ids == hits[1].ids and hits[0].passages == hits[1].passages


def test_a_text_that_the_model_cannot_take_is_named(tmp_path: Path) -> None:
    index = embedkit.build_index(["cat", "dog"], tmp_path / "x", model=Windowed())
    with pytest.raises(DataError, match="At the document 'n1': it is bad"):
        index.add([Document("n0", "good"), Document("n1", "bad")])
    assert len(index) == 2


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    index = made(tmp_path / "x")
    with writing(index.path):
        for change in (lambda: index.delete("1"), index.compact, lambda: index.add(np.ones((1, DIM)), ids=["a"])):
            with pytest.raises(Stopped, match="Another thread of this process is writing"):
                change()
    assert index.delete("1") == 1


def test_a_change_starts_from_the_newest_version(tmp_path: Path) -> None:
    """Not from the one that is open."""
    one, other = made(tmp_path / "x"), Index(tmp_path / "x")
    assert one.delete(["1", "2"]) == 2
    assert len(other) == 300 and other.search(bent_rows(2, DIM)[1:], k=1).ids == [["1"]]  # its own version
    assert other.delete(["2", "3"]) == 1
    assert (len(other), len(one), read_manifest(tmp_path / "x").number) == (297, 298, 3)


def test_a_folder_that_cannot_be_written_to_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = made(tmp_path / "x")

    opened = os.open

    def refused(path: Any, flags: int, *mode: int, **options: Any) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise PermissionError(13, "Permission denied")
        return opened(path, flags, *mode, **options)

    monkeypatch.setattr("embedkit.storage.os.open", refused)
    with pytest.raises(UsageError, match=r"cannot be written to .*; copy the index to where it can"):
        index.delete("1")


def test_nothing_can_be_added_to_a_damaged_index(tmp_path: Path) -> None:
    index = made(tmp_path / "x")
    path = index.path / "segment-0001.fine.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=r"fine\.npy has .* bytes, its manifest says"):
        index.delete("1")
