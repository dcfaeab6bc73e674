"""What lies beside vectors: made by us, or by somebody who sealed something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedkit
from embedkit.engine import embed_to_file
from embedkit.errors import DataError, IntegrityError, UsageError
from embedkit.jobs import RowSource, add_to_index
from embedkit.storage import file_record, sealed_json
from embedkit.types import Document

from .engine.fakes import Windowed

DOCUMENTS = [Document("a", "a text of twenty chars"), Document("b", "it is bad"), Document("c", "short")]
Lines = list[dict[str, Any]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    embed_to_file(DOCUMENTS, tmp_path / "v.npy", Windowed(), on_long="chunk")
    return tmp_path / "v.npy"


def resealed(path: Path, suffix: str, change: Callable[[Lines], Any]) -> None:
    """One file beside the vectors, changed, with a manifest that knows it so."""
    beside, sealed = path.with_suffix(suffix), path.with_suffix(".manifest.json")
    lines = [json.loads(line) for line in beside.read_text().splitlines()]
    changed = change(lines)
    text = "".join(json.dumps(line) + "\n" for line in lines) if not isinstance(changed, bytes) else changed
    beside.write_bytes(text if isinstance(text, bytes) else text.encode())
    manifest = json.loads(sealed.read_text())
    del manifest["checksum"]
    manifest["files"][beside.name] = file_record(beside)
    sealed.write_bytes(sealed_json(manifest))


def test_passages_and_what_was_set_aside_are_read(path: Path) -> None:
    source = RowSource.of(path)
    assert (source.ids, source.set_aside) == (["a", "a", "c"], frozenset("b"))
    assert source.spans is not None and source.spans.tolist() == [[0, 12], [12, 22], [0, 5]]


@pytest.mark.parametrize(
    ("suffix", "change", "words"),
    [
        (".chunks.jsonl", lambda lines: lines[0].pop("document"), "line 1: document is missing"),
        (".chunks.jsonl", lambda lines: lines[1].update(start="0"), "line 2: start is '0', not a whole number"),
        (".chunks.jsonl", lambda lines: lines[2].update(end=1 << 40), "which no text has"),
        (".chunks.jsonl", lambda lines: lines[2].update(start=-1), "which no text has"),
        (".chunks.jsonl", lambda lines: lines.pop(), "has 2 rows, 3 were expected"),
        (".chunks.jsonl", lambda _: b"[1]\n", "line 1: a JSON list came"),
        (".chunks.jsonl", lambda _: b"\xff\n", "is not UTF-8"),
        (".quarantine.jsonl", lambda lines: lines[0].update(id=7), "line 1: id is 7, not a text"),
        (".quarantine.jsonl", lambda lines: lines[0].pop("id"), "line 1: id is missing"),
    ],
)  # fmt: skip
def test_files_beside_vectors_that_hold_something_else_are_damage(
    path: Path, suffix: str, change: Callable[[Lines], Any], words: str
) -> None:
    resealed(path, suffix, change)
    with pytest.raises(IntegrityError) as caught:
        RowSource.of(path)
    assert words in str(caught.value)


@pytest.mark.parametrize("suffix", [".chunks.jsonl", ".quarantine.jsonl"])
def test_a_file_that_the_manifest_tells_of_and_does_not_name_is_not_read(path: Path, suffix: str) -> None:
    sealed = path.with_suffix(".manifest.json")
    manifest = json.loads(sealed.read_text())
    del manifest["checksum"], manifest["files"][f"v{suffix}"]
    sealed.write_bytes(sealed_json(manifest))
    with pytest.raises(IntegrityError, match=f"tells of v{suffix}, and names no such file"):
        RowSource.of(path)


# --- numbers that float32 cannot hold ---------------------------------------------------------------------------------

TINY = np.array([[3, 4], [0, 1], [1, 0]]) * 1e-300


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_cosine_knows_no_lengths(tmp_path: Path, scale: float) -> None:
    """Of rows and of queries."""
    np.save(tmp_path / "v.npy", TINY / 1e-300 * scale)
    index = embedkit.build_index(tmp_path / "v.npy", tmp_path / "x")
    for asked in (1e-300, 1.0, 1e300):
        hits = index.search(np.array([4.0, 3.0]) * asked, k=3)
        assert hits.ids == [["0", "2", "1"]]
        np.testing.assert_allclose(hits.scores, [[0.96, 0.8, 0.6]], atol=1e-3)


@pytest.mark.parametrize(("rows", "fine"), [(TINY, "float32"), (TINY * 1e291, "float16")])
def test_a_row_that_would_become_zero_is_named(tmp_path: Path, rows: np.ndarray, fine: Any) -> None:
    with pytest.raises(DataError, match=f"The vector of '0' is too small for {fine}, where it becomes zero"):
        embedkit.build_index(rows, tmp_path / "x", metric="dot", fine=fine)
    zero = embedkit.build_index(np.zeros((2, 3)), tmp_path / "y", metric="dot", fine=fine)
    assert len(zero) == 2, "what is zero stays so"


def test_a_query_that_would_become_zero_is_refused(tmp_path: Path) -> None:
    index = embedkit.build_index(np.eye(2), tmp_path / "x", metric="dot")
    with pytest.raises(UsageError, match="so small that it is zero in float32"):
        index.search(TINY[:1])
    with pytest.raises(UsageError, match="NaN or infinity"):
        index.search(TINY[:1] * 1e300 * 1e300)
    with pytest.raises(UsageError, match="Queries of <U1 came; expected numbers"):
        index.search(np.array([["a", "b"]]))


# --- vectors of other programs ----------------------------------------------------------------------------------------

OTHERS = np.random.default_rng(0).standard_normal((4, 8))


def others(path: Path, kind: Any, vectors: Any = None, name: str = "embedding") -> Path:
    columns = {
        "id": list("abcd"),
        "text": ["one", "two", "three", "four"],
        "year": [1, 2, 3, 4],
        name: pa.array(OTHERS.tolist() if vectors is None else vectors, kind),
    }
    pq.write_table(pa.table(columns), path, row_group_size=3)
    return path


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.float32()), pa.list_(pa.float64(), 8), pa.large_list(pa.float64()), pa.list_(pa.float32(), 8)],
    ids=str,
)
def test_a_column_of_parquet_is_taken_as_it_is(tmp_path: Path, kind: Any) -> None:
    index = embedkit.build_index(
        others(tmp_path / "o.parquet", kind), tmp_path / "x", vectors="embedding", fine="float32", sparse="bm25"
    )
    expected = OTHERS / np.linalg.norm(OTHERS, axis=1, keepdims=True)
    np.testing.assert_allclose(index.search(OTHERS[2], k=4).scores[0], sorted(expected @ expected[2])[::-1], atol=1e-6)
    (document,) = index.get(["c"])
    assert (document.text, document.metadata) == ("three", {"year": 3})
    assert index.search("four", mode="sparse").ids == [["d"]]
    assert index.manifest.source.fingerprint is None


def test_a_folder_of_parquet_is_read_file_by_file_and_may_be_limited(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    for number, letters in enumerate(["ab", "cd"]):
        rows = OTHERS[2 * number : 2 * number + 2].astype(np.float32)
        pq.write_table(pa.table({"id": list(letters), "v": list(rows)}), tmp_path / f"parts/{number}.parquet")
    source = RowSource.of(tmp_path / "parts", vectors="v", limit=3)
    assert (source.ids, source.documents is not None) == (["a", "b", "c"], True)
    np.testing.assert_array_equal(np.asarray(source.rows), OTHERS[:3].astype(np.float32))
    with pytest.raises(DataError, match="holds vectors of 3 numbers"):
        pq.write_table(pa.table({"id": ["e"], "v": [[1.0, 2.0, 3.0]]}), tmp_path / "parts/2.parquet")
        RowSource.of(tmp_path / "parts", vectors="v")


@pytest.mark.parametrize(
    ("vectors", "kind", "words"),
    [
        ([[1.0] * 3, [1.0] * 5, [1.0] * 4, [1.0] * 4], pa.list_(pa.float32()), "row 2 has a list of 5, others have"),
        ([[1.0] * 4, [1.0] * 4, [1.0] * 4, [1.0] * 5], pa.list_(pa.float32()), "expected a column of lists"),
        ([[1.0] * 4, None, [1.0] * 4, [1.0] * 4], pa.list_(pa.float32()), "row 2 has no list, others have 4 numbers"),
        ([[1.0] * 4, None, [1.0] * 4, [1.0] * 4], pa.list_(pa.float32(), 4), "row 2 has no list"),
        ([[], [], [], []], pa.list_(pa.float32()), "row 1 has a list of 0"),
        ([["a"]] * 4, pa.list_(pa.string()), "it holds lists of string"),
        ([1.0, 2.0, 3.0, 4.0], pa.float32(), "expected a column of lists of numbers"),
    ],
)
def test_columns_that_are_no_vectors_are_refused(tmp_path: Path, vectors: Any, kind: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        RowSource.of(others(tmp_path / "o.parquet", kind, vectors), vectors="embedding")
    with pytest.raises(DataError, match="holds no vectors in 'nowhere'"):
        RowSource.of(tmp_path / "o.parquet", vectors="nowhere")


def test_a_list_with_a_hole_is_named_by_its_document(tmp_path: Path) -> None:
    holed = [[1.0, None], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]
    with pytest.raises(DataError, match="The vector of 'a' is not finite"):
        embedkit.build_index(
            others(tmp_path / "o.parquet", pa.list_(pa.float32()), holed), tmp_path / "x", vectors="embedding"
        )


def test_vectors_that_are_embedded_anew_are_spoken_of(
    tmp_path: Path, word_counts: Any, caplog: pytest.LogCaptureFixture
) -> None:
    embedkit.build_index(others(tmp_path / "o.parquet", pa.list_(pa.float32())), tmp_path / "x", model=word_counts)
    assert "holds vectors already, in the column 'embedding'; its texts are embedded anew" in caplog.text
    caplog.clear()
    boxes = [[1.0, 2.0, 3.0, 4.0]] * 4
    embedkit.build_index(
        others(tmp_path / "b.parquet", pa.list_(pa.float32()), boxes, "box"), tmp_path / "y", model=word_counts
    )
    assert "vectors already" not in caplog.text


def test_an_index_without_a_model_takes_the_vectors_of_a_file_that_is_added(tmp_path: Path) -> None:
    embedkit.build_index(np.eye(8), tmp_path / "x").close()
    assert add_to_index(tmp_path / "x", others(tmp_path / "o.parquet", pa.list_(pa.float32()))).documents == 4
    with embedkit.open_index(tmp_path / "x") as index:
        assert index.search(OTHERS[1], k=1).ids == [["b"]]
        assert index.get(["b"])[0].metadata == {"year": 2}
    with pytest.raises(UsageError, match="is no parquet file, nor a folder of such"):
        add_to_index(tmp_path / "x", tmp_path / "x", vectors="v")
    with pytest.raises(UsageError, match="vectors= names a column of a parquet file"):
        add_to_index(tmp_path / "x", np.eye(8), ids=list("abcdefgh"), vectors="v")
