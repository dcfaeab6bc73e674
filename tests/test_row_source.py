"""What lies beside vectors: made by us, or by somebody who sealed something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedkit
from embedkit.engine import embed_to_file
from embedkit.errors import DataError, IntegrityError, UsageError
from embedkit.jobs import RowSource
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
