"""An index in other formats: what was put in comes out there, by the other library alone, and an export that answers otherwise
is not kept."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedkit
from embedkit.errors import IntegrityError, MissingDependency, Stopped, UsageError
from embedkit.export import FORMATS, export_index
from embedkit.export.exporting import Format
from embedkit.index import Index, Layout
from embedkit.jobs import RowSource, add_to_index, index_vectors
from embedkit.storage import locked_file
from embedkit.types import Document

from ..conftest import bent_rows

DIM, GONE = 8, {"d1", "d4", "e2"}


def needs(package: str) -> Any:
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None, reason=f"{package} is not here (extra 'stores')"
    )


every_format = pytest.mark.parametrize(
    "format",
    [
        "numpy",
        "faiss",
        pytest.param("lancedb", marks=needs("lancedb")),
        pytest.param("qdrant", marks=needs("qdrant_edge")),
    ],
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    """Several blocks a segment, and no network."""
    monkeypatch.setattr("embedkit.export.blocks.BLOCK", 7)
    monkeypatch.setattr("embedkit.export.arrays.AT_ONCE", 11)


Row = tuple[str, str, str, str, dict[str, Any]]  # id, document, title, text, metadata


def passages_of(document: Document, count: int) -> list[tuple[int, int]]:
    """Spans of a document's full text, in so many pieces."""
    length = len(document.full_text)
    cuts = [length * place // count for place in range(count + 1)]
    return list(pairwise(cuts)) if count > 1 else [(0, 0)]


def build(path: Path, fine: str = "float16", metric: str = "dot") -> tuple[np.ndarray, list[Row]]:
    """An index of two segments, the first with passages, some documents of both deleted; the rows that are left, and what each
    stands for, in order."""
    generator = np.random.default_rng(0)
    first = [
        Document(f"d{n}", f"the text of number {n}, é", f"title {n}" if n % 2 else "", {"year": 1990 + n})
        for n in range(20)
    ]
    second = [Document(f"e{n}", f"more {n}", "", {"year": 2020 + n, "tags": ["a", n]}) for n in range(4)]
    counts = [1 + n % 3 for n in range(20)]
    vectors = generator.integers(-9, 10, size=(sum(counts) + 4, DIM)).astype(np.float32)  # exact in float16
    spans = [span for document, count in zip(first, counts, strict=True) for span in passages_of(document, count)]
    owners = [document.id for document, count in zip(first, counts, strict=True) for _ in range(count)]
    source = RowSource(vectors[:-4], owners, np.array(spans, "<u4"))
    index_vectors(source, path, Layout(metric, "none", fine), first).close()
    add_to_index(path, vectors[-4:], ids=[document.id for document in second], documents=second)
    with Index(path) as index:
        assert index.delete(sorted(GONE)) == 3
        assert len(index.manifest.segments) == 2
    rows: list[Row] = []
    kept = []
    place = 0
    for document, count in zip(first + second, counts + [1] * 4, strict=True):
        for number, (start, end) in enumerate(passages_of(document, count)):
            if document.id not in GONE:
                name = f"{document.id}#{number}" if count > 1 else document.id
                text = document.full_text[start:end] if count > 1 else document.text
                rows.append((name, document.id, document.title, text, dict(document.metadata)))
                kept.append(place)
            place += 1
    return vectors[kept], rows


def plain(table: pa.Table) -> list[Row]:
    """Rows of a table as they were put in."""
    found = []
    for row in table.to_pylist():
        metadata = {"year": row["year"], **json.loads(row["metadata"])}
        found.append((row["id"], row["document"], row["title"], row["text"], metadata))
    return found


# --- what comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fine", ["float16", "float32"])
def test_numpy_has_every_row_bit_for_bit_and_what_it_stands_for(tmp_path: Path, fine: str) -> None:
    vectors, rows = build(tmp_path / "an.index", fine)
    facts = export_index(tmp_path / "an.index", tmp_path / "out", "numpy")
    written = np.load(tmp_path / "out/vectors.npy")
    assert written.dtype == np.dtype(fine)
    np.testing.assert_array_equal(written, vectors)
    assert plain(pq.read_table(tmp_path / "out/rows.parquet")) == rows
    assert (tmp_path / "out/vectors.ids.txt").read_text().split("\n")[:-1] == [row[0] for row in rows]
    assert (facts["rows"], facts["documents"], facts["version"]) == (len(rows), 21, 3)
    assert json.loads((tmp_path / "out/export.json").read_text())["parity"] == {"queries": len(rows), "neighbours": 10}
    assert {path.name for path in tmp_path.iterdir()} == {"an.index", "out"}


def test_int8_rows_come_out_decoded(tmp_path: Path) -> None:
    vectors, _ = build(tmp_path / "an.index", "int8")
    export_index(tmp_path / "an.index", tmp_path / "out", "numpy")
    written = np.load(tmp_path / "out/vectors.npy")
    assert written.dtype == np.float32
    np.testing.assert_allclose(written, vectors, atol=18 / 255)  # values from -9 to 9 in 255 steps


def test_plain_faiss_opens_the_file_and_finds_what_a_slow_loop_finds(tmp_path: Path) -> None:
    rows = bent_rows(300)
    embedkit.build_index(rows, tmp_path / "an.index", ids=[f"v{n}" for n in range(300)], coarse="IVF8,SQ8").close()
    export_index(tmp_path / "an.index", tmp_path / "out", "faiss")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"index.faiss", "rows.parquet", "export.json"}
    index = faiss.read_index(str(tmp_path / "out/index.faiss"))
    assert (type(index), index.ntotal, index.metric_type) == (faiss.IndexFlatIP, 300, faiss.METRIC_INNER_PRODUCT)
    ids = pq.read_table(tmp_path / "out/rows.parquet").column("id").to_pylist()
    queries = bent_rows(5, seed=1)
    scores, found = index.search(queries, 3)
    for query, some_scores, some in zip(queries, scores, found, strict=True):
        exact = sorted(((float(np.dot(query, row)), f"v{n}") for n, row in enumerate(rows)), reverse=True)[:3]
        assert [ids[row] for row in some] == [name for _, name in exact]
        np.testing.assert_allclose(some_scores, [score for score, _ in exact], atol=1e-3)


@needs("lancedb")
def test_lancedb_opens_a_table_that_holds_all_and_can_be_filtered(tmp_path: Path) -> None:
    import lancedb

    vectors, rows = build(tmp_path / "an.index")
    export_index(tmp_path / "an.index", tmp_path / "out", "lancedb")
    table = lancedb.connect(tmp_path / "out").open_table("documents")
    found = table.to_arrow().sort_by("row")
    assert plain(found) == rows
    np.testing.assert_array_equal(np.array(found.column("vector").to_pylist(), np.float32), vectors)
    best = table.search(vectors[5]).distance_type("dot").where("year >= 2020").limit(2).to_list()
    expected = sorted(
        ((float(vectors[5] @ v), r[0]) for v, r in zip(vectors, rows, strict=True) if r[0][0] == "e"), reverse=True
    )
    assert [1 - hit["_distance"] for hit in best] == [score for score, _ in expected[:2]]


@needs("qdrant_edge")
def test_qdrant_opens_a_shard_that_holds_all_and_can_be_filtered(tmp_path: Path) -> None:
    import qdrant_edge as edge

    vectors, rows = build(tmp_path / "an.index")
    export_index(tmp_path / "an.index", tmp_path / "out", "qdrant")
    shard = edge.EdgeShard.load(str(tmp_path / "out/shard"))
    points = shard.retrieve(list(range(len(rows))), with_payload=True, with_vector=True)
    held = {point.id: point for point in points}
    for number, (vector, (name, document, title, text, metadata)) in enumerate(zip(vectors, rows, strict=True)):
        payload = held[number].payload
        assert [payload[key] for key in ("id", "document", "title", "text", "metadata")] == [
            name,
            document,
            title,
            text,
            metadata,
        ]
        assert held[number].vector == vector.tolist()
    late = edge.Filter(must=[edge.FieldCondition(key="metadata.year", range=edge.RangeFloat(gte=2020))])
    assert shard.count(edge.CountRequest(filter=late)) == 3
    shard.close()


def test_metadata_of_one_type_are_columns_and_the_rest_is_json(tmp_path: Path) -> None:
    metadata: list[dict[str, Any]] = [
        {"year": 1, "rating": 1, "flag": True, "lang": "de", "nothing": None, "mixed": 1, "id": "x", "big": 1 << 60},
        {"rating": 2.5, "flag": False, "lang": "", "mixed": "a", "deep": {"a": [1]}, "two words": 1, "_score": 2},
    ]
    documents = [Document(f"d{n}", "cat", metadata=some) for n, some in enumerate(metadata)]
    vectors = np.eye(2, dtype=np.float32)
    source = RowSource(vectors, ["d0", "d1"])
    index_vectors(source, tmp_path / "an.index", Layout("cosine", "none", "float16"), documents).close()
    export_index(tmp_path / "an.index", tmp_path / "out", "numpy")
    table = pq.read_table(tmp_path / "out/rows.parquet")
    kinds = {"year": "int64", "rating": "double", "flag": "bool", "lang": "string", "metadata": "string"}
    assert {field.name: str(field.type) for field in table.schema} == {
        **dict.fromkeys(["id", "title", "text"], "string"),
        **kinds,
    }
    for before, row in zip(metadata, table.to_pylist(), strict=True):
        rest = json.loads(row["metadata"])
        assert set(rest) == set(before) - set(kinds)
        assert {**{name: row[name] for name in kinds if name in before}, **rest} == before
    assert table.column("year").to_pylist() == [1, None]


def test_metadata_come_back_in_a_new_build(tmp_path: Path) -> None:
    """Lists, mappings and texts that look like these, wherever they stood."""
    metadata: list[dict[str, Any]] = [
        {
            "tags": ["sea"],
            "author": {"name": "H", "born": [1819, None]},
            "json": '{"a": 1}',
            "year": 1851,
            "two words": "x",
        },
        {"tags": ["island"], "metadata": "a text", "json": "[", "year": None, "empty": {}},
    ]
    documents = [Document(f"d{n}", "cat", metadata=some) for n, some in enumerate(metadata)]
    source = RowSource(np.eye(2, dtype=np.float32), ["d0", "d1"])
    index_vectors(source, tmp_path / "an.index", Layout("cosine", "none", "float16"), documents).close()
    export_index(tmp_path / "an.index", tmp_path / "out", "numpy")
    with embedkit.build_index(tmp_path / "out", tmp_path / "again.index") as again:
        for before, after in zip(metadata, again.get(["d0", "d1"]), strict=True):
            known = {name: value for name, value in after.metadata.items() if value is not None}
            assert known == {name: value for name, value in before.items() if value is not None}
        assert again.search(np.ones(2), where={"tags": "island"}).ids == [["d1"]]
        assert again.search(np.ones(2), where={"author.name": "H"}).ids == [["d0"]]


def test_an_index_of_bare_vectors_has_ids_alone(tmp_path: Path) -> None:
    embedkit.build_index(bent_rows(3), tmp_path / "an.index").close()
    export_index(tmp_path / "an.index", tmp_path / "out", "numpy")
    assert pq.read_table(tmp_path / "out/rows.parquet").to_pylist() == [{"id": "0"}, {"id": "1"}, {"id": "2"}]


# --- what is checked --------------------------------------------------------------------------------------------------


@every_format
def test_any_format_answers_as_the_index_does(tmp_path: Path, format: str) -> None:
    """All rows equal but for a few: every neighbour ties, and the export is right in whatever order it has them."""
    rows = np.concatenate([bent_rows(150), np.repeat(bent_rows(1, seed=9), 40, axis=0)])
    embedkit.build_index(rows, tmp_path / "an.index", fine="int8").close()
    facts = export_index(tmp_path / "an.index", tmp_path / "out", format)
    assert (facts["rows"], facts["parity"]) == (190, {"queries": 100, "neighbours": 10})
    assert {path.name for path in tmp_path.iterdir()} == {"an.index", "out"}


def turned_round(folder: Path) -> None:
    rows = np.load(folder / "vectors.npy")
    np.save(folder / "vectors.npy", rows[::-1])


def one_short(folder: Path) -> None:
    np.save(folder / "vectors.npy", np.load(folder / "vectors.npy")[:-1])


def other_ids(folder: Path) -> None:
    table = pq.read_table(folder / "rows.parquet")
    ids = table.column("id").to_pylist()
    pq.write_table(table.set_column(0, "id", pa.array([*ids[1:], ids[0]])), folder / "rows.parquet")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [(turned_round, "finds"), (other_ids, "finds 0.0%"), (one_short, "holds 37 rows, the index 38")],
)
def test_an_export_that_answers_otherwise_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None], sentence: str
) -> None:
    numpy = FORMATS["numpy"]

    def write(folder: Path, stream: Any) -> None:
        numpy.write(folder, stream)
        damage(folder)

    monkeypatch.setitem(FORMATS, "numpy", Format(write, numpy.opened))
    build(tmp_path / "an.index")
    with pytest.raises(IntegrityError, match=sentence):
        export_index(tmp_path / "an.index", tmp_path / "out", "numpy")
    assert {path.name for path in tmp_path.iterdir()} == {"an.index"}


def test_what_cannot_be_is_refused_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedkit.build_index(bent_rows(3), tmp_path / "an.index").close()
    with pytest.raises(UsageError, match="format='csv' came; expected numpy, faiss, lancedb, qdrant"):
        export_index(tmp_path / "an.index", tmp_path / "out", "csv")
    with pytest.raises(UsageError, match="there already"):
        export_index(tmp_path / "an.index", tmp_path / "an.index", "numpy")
    for package, format in (("lancedb", "lancedb"), ("qdrant_edge", "qdrant")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingDependency, match=r"\.\[stores\]"):
            export_index(tmp_path / "an.index", tmp_path / "out", format)
    lock = tmp_path / "out.lock"
    with locked_file(lock, tmp_path / "out"), pytest.raises(Stopped, match="Another thread of this process is writing"):
        export_index(tmp_path / "an.index", tmp_path / "out", "numpy")
    lock.unlink()
    with Index(tmp_path / "an.index") as index:
        index.delete(["0", "1", "2"])
    with pytest.raises(UsageError, match="holds no documents"):
        export_index(tmp_path / "an.index", tmp_path / "out", "numpy")
    assert {path.name for path in tmp_path.iterdir()} == {"an.index"}
