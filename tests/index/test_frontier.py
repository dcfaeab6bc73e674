"""The summary of index/frontier.py, of rows of any data: what does not reach a target is said."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PROGRAMS = Path(__file__).parents[2] / "index"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(PROGRAMS)
    return importlib.import_module("frontier")


def measured(peer: str, setting: str, recall: float, qps: int, ram: float) -> dict[str, Any]:
    return {"peer": peer, "setting": setting, "recall": recall, "qps": qps, "ram": ram}


def rows_of(ram: float, recall: float) -> list[dict[str, Any]]:
    own = [measured("embedkit", f"auto, recall {floor}", 0.98, 100, ram) for floor in (0.95, 0.97)]
    return [*own, measured("faiss HNSW32", "ef 16", recall, 50, 900)]


AUTO = "as `auto` set itself: recall 0.9800, 100 queries/s"


@pytest.mark.parametrize(
    ("ram", "recall", "said"),
    [
        (56, 0.99, f"100 queries/s (auto, recall 0.95, 56 bytes a vector in RAM), 2.00 x faiss HNSW32 (ef 16, 50); {AUTO}, 2.00 x."),
        (96, 0.99, f"no setting of ours within 80 bytes a vector in RAM (`auto` takes 96), faiss HNSW32 (ef 16, 50); {AUTO}, 2.00 x."),
        (56, 0.5, f"100 queries/s (auto, recall 0.95, 56 bytes a vector in RAM), none of theirs; {AUTO}."),
        (96, 0.5, f"no setting of ours within 80 bytes a vector in RAM (`auto` takes 96), none of theirs; {AUTO}."),
    ],
)  # fmt: skip
def test_the_summary_says_what_is_missing(program: Any, ram: float, recall: float, said: str) -> None:
    lines = program.summary(rows_of(ram, recall))
    assert lines[0] == f"At recall@10 >= 0.95: {said}"
    assert len(lines) == 3


def test_rows_of_any_length_are_split_and_too_few_are_refused(program: Any, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((500, 4)) * 1e3
    np.save(tmp_path / "v.npy", vectors)
    rows, queries = program.rows_and_queries(tmp_path / "v.npy", 200)
    assert (rows.shape, queries.shape, rows.dtype) == ((300, 4), (200, 4), np.float32)
    both = np.concatenate([rows, queries])
    expected = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(np.sort(both, axis=0), np.sort(expected, axis=0), rtol=1e-5)
    for path, words in ((tmp_path / "v.npy", "500 rows, 400 of them"), (tmp_path / "w.npy", "is not there")):
        with pytest.raises(SystemExit, match=words):
            program.rows_and_queries(path, 400)
