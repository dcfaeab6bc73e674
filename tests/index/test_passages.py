"""Documents with several rows: ranked by the best or the mean of them, or row by row, against slow loops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit.errors import DataError, IntegrityError
from embedkit.index import Index, Layout
from embedkit.index.ids import write_numbers
from embedkit.index.manifest import read_manifest
from embedkit.jobs import RowSource, index_vectors
from embedkit.storage import block_record

from ..conftest import bent_rows

GROUPS = ["best", "mean", None]
every_group = pytest.mark.parametrize("group", GROUPS)


class Passages:
    """Documents of one to six rows each, and their ranking by plain loops."""

    def __init__(self, rows: np.ndarray, counts: list[int], name: str = "d") -> None:
        self.rows = rows[: sum(counts)]
        self.owners = [f"{name}{number}" for number, count in enumerate(counts) for _ in range(count)]
        self.counts = {f"{name}{number}": count for number, count in enumerate(counts)}
        starts = [place for count in counts for place in range(count)]
        self.spans = np.array([(100 * place, 100 * place + 90) for place in starts], dtype="<u4")

    @property
    def source(self) -> RowSource:
        return RowSource(self.rows, self.owners, self.spans)

    def names(self) -> list[str]:
        """Of the rows."""
        seen: dict[str, int] = {}
        found = []
        for owner in self.owners:
            place = seen[owner] = seen.get(owner, -1) + 1
            found.append(f"{owner}#{place}" if self.counts[owner] > 1 else owner)
        return found

    def ranking(self, query: np.ndarray, group: str | None, gone: set[str] = frozenset()) -> list[tuple[str, float]]:  # type: ignore[assignment]
        """(document or passage, score), best first; of equal scores the larger id first, and of a document's own rows too."""
        scored: dict[str, list[float]] = {}
        for owner, name, row in zip(self.owners, self.names(), self.rows, strict=True):
            if owner not in gone:
                scored.setdefault(name if group is None else owner, []).append(float(np.dot(row, query)))
        value = {"best": max, "mean": lambda scores: float(np.float32(np.mean(scores))), None: max}[group]
        pairs = sorted(((value(scores), name) for name, scores in scored.items()), reverse=True)
        return [(name, score) for score, name in pairs]


def whole(count: int, dim: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-3, 4, size=(count, dim)).astype(np.float32)


def counts_of(documents: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(1, 7, documents).tolist()


def alike(counts: list[int]) -> np.ndarray:
    """Unit rows; those of a document are near each other, as passages of one text are."""
    rows = np.repeat(bent_rows(len(counts)), counts, axis=0)
    rows += 0.08 * np.random.default_rng(3).standard_normal(rows.shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


EXACT: dict[str, Any] = {"coarse": "none", "fine": "float32", "metric": "dot"}


@every_group
@pytest.mark.parametrize("k", [1, 3, 10, 150])
@pytest.mark.parametrize("dim", [2, 6], ids=["many ties", "few ties"])
def test_the_exact_order_is_that_of_a_slow_loop(tmp_path: Path, group: Any, k: int, dim: int) -> None:
    passages, queries = Passages(whole(800, dim, 1), counts_of(120)), whole(12, dim, 2)
    index = index_vectors(passages.source, tmp_path / "x", Layout(**EXACT))
    assert (len(index), index.info()["rows"]) == (120, sum(passages.counts.values()))
    for batch in (queries, queries[:1]):
        hits = index.search(batch, k=k, group=group)
        for q, query in enumerate(batch):
            expected = passages.ranking(query, group)[:k]
            assert hits.ids[q] == [name for name, _ in expected]
            np.testing.assert_array_equal(hits.scores[q, : len(expected)], np.float32([s for _, s in expected]))


@pytest.mark.parametrize("group", ["best", "mean"])
def test_a_document_with_very_many_equal_rows_leaves_room_for_the_next(tmp_path: Path, group: Any) -> None:
    """All rows that were fetched first belong to one document, and the other ties with it."""
    passages = Passages(np.tile(np.eye(4, dtype=np.float32)[:1], (400, 1)), [300, 60, 40])
    index = index_vectors(passages.source, tmp_path / "x", Layout(**EXACT))
    for k, expected in ((1, ["d2"]), (2, ["d2", "d1"]), (3, ["d2", "d1", "d0"])):
        assert index.search(passages.rows[:1], k=k, group=group).ids == [expected]


def test_the_passage_is_the_row_that_a_document_was_found_by(tmp_path: Path) -> None:
    passages = Passages(bent_rows(300), counts_of(80))
    index = index_vectors(passages.source, tmp_path / "x", Layout(coarse="none", fine="float32"))
    names = passages.names()
    hits = index.search(passages.rows[::20], k=5)
    assert hits.passages is not None and hits.spans is not None
    covered = {name: tuple(span) for name, span in zip(names, passages.spans.tolist(), strict=True)}
    assert hits.spans == [[covered[name] for name in found] for found in hits.passages]
    for query, ids, found in zip(passages.rows[::20], hits.ids, hits.passages, strict=True):
        for document, passage in zip(ids, found, strict=True):
            own = [row for row, owner in enumerate(passages.owners) if owner == document]
            assert passage == names[max(own, key=lambda row: float(np.dot(passages.rows[row], query)))]
    alone = index.search(passages.rows[:3], k=5, group=None)
    assert alone.passages == alone.ids
    documents = [[name.partition("#")[0] for name in ids] for ids in alone.ids]
    assert [[document.id for document in found] for found in alone.documents or []] == documents


@every_group
def test_codes_find_the_documents_that_the_rows_find(tmp_path: Path, group: Any) -> None:
    passages, queries = Passages(alike(counts_of(500)), counts_of(500)), bent_rows(20, seed=4)
    index = index_vectors(passages.source, tmp_path / "x", Layout(coarse="PQ32x4fs", fine="float32"))
    hits = index.search(queries, k=10, group=group)
    kept = 0
    for q, query in enumerate(queries):
        expected = passages.ranking(query, group)
        kept += len({name for name, _ in expected[:10]} & set(hits.ids[q]))
        assert len(hits.ids[q]) == 10
        for name, score in zip(hits.ids[q], hits.scores[q], strict=True):
            assert score == pytest.approx(dict(expected)[name], abs=1e-5)
    assert kept >= 0.9 * 200


@every_group
def test_like_leaves_all_passages_of_the_document_out(tmp_path: Path, group: Any) -> None:
    passages = Passages(whole(400, 5, 3), counts_of(80))
    index = index_vectors(passages.source, tmp_path / "x", Layout(**EXACT))
    for name in ("d0", "d1", "d17"):
        own = passages.rows[[row for row, owner in enumerate(passages.owners) if owner == name]].mean(axis=0)
        hits = index.search(like=name, k=10, group=group)
        expected = passages.ranking(own, group, gone={name})[:10]
        np.testing.assert_allclose(hits.scores[0], [score for _, score in expected], atol=1e-4)
        assert not {name} & {found.partition("#")[0] for found in hits.ids[0]}
        assert len(hits.ids[0]) == 10


@every_group
@pytest.mark.parametrize("coarse", ["none", "PQ32x4fs"])
def test_deleted_documents_are_gone_with_all_their_passages(tmp_path: Path, group: Any, coarse: str) -> None:
    passages, queries = Passages(alike(counts_of(200)), counts_of(200)), bent_rows(10, seed=4)
    index = index_vectors(passages.source, tmp_path / "x", Layout(coarse=coarse, fine="float32"))
    gone = {f"d{number}" for number in range(0, 200, 3)}
    assert index.delete(gone) == len(gone)
    assert len(index) == 200 - len(gone)
    for again in (index, Index(index.path)):
        for compacted in (False, True):
            if compacted and again is index:
                index.compact()
                assert index.info()["rows"] == sum(c for name, c in passages.counts.items() if name not in gone)
            hits = again.search(queries, k=10, group=group)
            for q, query in enumerate(queries):
                expected = [name for name, _ in passages.ranking(query, group, gone)[:10]]
                assert len(set(expected) & set(hits.ids[q])) >= (10 if coarse == "none" else 9)
                assert not gone & {name.partition("#")[0] for name in hits.ids[q]}


@every_group
def test_segments_with_and_without_passages_are_ranked_together(tmp_path: Path, group: Any) -> None:
    passages, queries = Passages(whole(600, 4, 1), counts_of(100)), whole(8, 4, 2)
    index = index_vectors(passages.source, tmp_path / "x", Layout(**EXACT))
    single = whole(30, 4, 5)
    index.add(single, ids=[f"s{number}" for number in range(30)])
    assert len(index.manifest.segments) == 2
    for _ in range(2):
        hits = index.search(queries, k=40, group=group)
        for q, query in enumerate(queries):
            expected = passages.ranking(query, group)
            expected += [(f"s{number}", float(np.dot(row, query))) for number, row in enumerate(single)]
            expected.sort(key=lambda pair: (pair[1], pair[0]), reverse=True)
            assert hits.ids[q] == [name for name, _ in expected[:40]]
        index.compact()
        assert len(index.manifest.segments) == 1


def test_merging_keeps_spans_and_rows_of_what_is_left(tmp_path: Path) -> None:
    """A row that covers its whole document has the span (0, 0)."""
    passages = Passages(bent_rows(300, 8), counts_of(60))
    index = index_vectors(passages.source, tmp_path / "x", Layout(fine="int8"))
    stored = np.array(index.snapshot.segments[0].fine.stored)
    index.add(passages.rows[:2], ids=["x", "y"])
    index.delete(["d0", "d5"])
    index.compact()
    (segment,) = index.snapshot.segments
    kept = [row for row, owner in enumerate(passages.owners) if owner not in ("d0", "d5")]
    assert segment.spans is not None and segment.starts is not None
    np.testing.assert_array_equal(segment.spans, np.vstack([passages.spans[kept], np.zeros((2, 2))]))
    np.testing.assert_array_equal(segment.fine.stored, np.vstack([stored[kept], stored[:2]]))
    left = [count for name, count in passages.counts.items() if name not in ("d0", "d5")]
    assert np.diff(segment.starts).tolist() == [*left, 1, 1]
    assert list(segment.ids) == [*(name for name in passages.counts if name not in ("d0", "d5")), "x", "y"]


def test_a_row_that_cannot_be_stored_is_told_by_its_document(tmp_path: Path) -> None:
    passages = Passages(bent_rows(60), [3, 1, 4, 2])
    for place, owner in ((0, "d0"), (3, "d1"), (4, "d2"), (9, "d3")):
        rows = passages.rows.copy()
        rows[place, 5] = np.nan
        with pytest.raises(DataError, match=f"The vector of '{owner}' is not finite"):
            index_vectors(RowSource(rows, passages.owners, passages.spans), tmp_path / "x", Layout())


@pytest.mark.parametrize("starts", [[0, 3, 4, 8, 9], [0, 5, 4, 8, 10]])
def test_starts_that_divide_the_rows_otherwise_are_refused(tmp_path: Path, starts: list[int]) -> None:
    """With checksums that fit, as a defect of a writer would leave them."""
    index_vectors(Passages(bent_rows(60), [3, 1, 4, 2]).source, tmp_path / "x", Layout()).close()
    path = tmp_path / "x" / "segment-0001.starts.npy"
    write_numbers(path, np.array(starts))
    manifest = read_manifest(tmp_path / "x")
    (segment,) = manifest.segments
    segment = replace(segment, files={**segment.files, "starts.npy": block_record(path)})
    (tmp_path / "x" / "manifest-000001.json").write_bytes(replace(manifest, segments=(segment,)).sealed())
    with pytest.raises(IntegrityError, match=r"starts\.npy does not divide 10 rows"):
        Index(tmp_path / "x")
