"""Vectors on disk, beside what made them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit.engine import embed_to_file, open_vectors
from embedkit.errors import DataError, IntegrityError, UsageError
from embedkit.types import Document

TEXTS = ["cat", "dog dog", "", "red fish"]


DOCUMENTS = [Document(f"d{i}", text) for i, text in enumerate(TEXTS)]


@pytest.fixture
def path(tmp_path: Path, word_counts: Any) -> Path:
    embed_to_file(DOCUMENTS, tmp_path / "a.npy", word_counts)
    return tmp_path / "a.npy"


def test_numpy_reads_the_rows_and_the_ids_stand_beside(path: Path, word_counts: Any) -> None:
    np.testing.assert_array_equal(np.load(path), word_counts.encode(TEXTS))
    assert path.with_suffix(".ids.txt").read_text() == "d0\nd1\nd2\nd3\n"
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["a.ids.txt", "a.manifest.json", "a.npy"]


def test_the_manifest_says_what_made_them(path: Path, word_counts: Any) -> None:
    manifest = json.loads(path.with_suffix(".manifest.json").read_text())
    said = {key: manifest[key] for key in ("count", "dim", "dtype", "kind", "similarity", "fingerprint", "compute")}
    assert said == {
        "count": 4,
        "dim": 12,
        "dtype": "float32",
        "kind": "document",
        "similarity": "cosine",
        "fingerprint": word_counts.fingerprint,
        "compute": {"backend": "counting"},
    }
    assert manifest["files"]["a.npy"]["bytes"] == path.stat().st_size


def test_they_open_as_they_were_written(path: Path, word_counts: Any) -> None:
    opened = open_vectors(path)
    assert opened.ids == ["d0", "d1", "d2", "d3"]
    assert opened.manifest["fingerprint"] == word_counts.fingerprint
    np.testing.assert_array_equal(opened.rows, word_counts.encode(TEXTS))


@pytest.mark.parametrize("name", ["a.npy", "a.ids.txt", "a.manifest.json"])
def test_a_flipped_byte_is_found(path: Path, name: str) -> None:
    damaged = path.with_name(name)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(IntegrityError, match=name):
        open_vectors(path)


def test_an_array_of_anybody_is_numbered(tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", np.eye(3))
    opened = open_vectors(tmp_path / "b.npy")
    assert (opened.ids, opened.manifest) == (["0", "1", "2"], {})
    (tmp_path / "b.ids.txt").write_text("x\ny\n")
    with pytest.raises(DataError, match=r"has 2 lines, .* has 3 rows"):
        open_vectors(tmp_path / "b.npy")


@pytest.mark.parametrize(
    "array",
    [np.zeros(3), np.zeros((2, 2), int), np.zeros((2, 2, 2)), np.array([["a"]])],
    ids=["1d", "int", "3d", "text"],
)
def test_other_arrays_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "c.npy", array)
    with pytest.raises(DataError, match=r"expected floats of shape \(rows, dim\)"):
        open_vectors(tmp_path / "c.npy")


def test_pickled_arrays_and_other_files_are_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "e.npy").write_bytes(b"nothing")
    for name in ("d.npy", "e.npy"):
        with pytest.raises(DataError, match="is not an array of numbers"):
            open_vectors(tmp_path / name)
    with pytest.raises(UsageError, match=r"f\.npy is not there"):
        open_vectors(tmp_path / "f.npy")


def test_a_newer_format_is_refused(path: Path) -> None:
    from embedkit.storage import read_json, write_json

    manifest = path.with_suffix(".manifest.json")
    write_json(manifest, {**read_json(manifest), "version": 3})
    with pytest.raises(IntegrityError, match="has another format than embedkit-vectors 2"):
        open_vectors(path)
