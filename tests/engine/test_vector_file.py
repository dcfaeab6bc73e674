"""Vectors on disk, beside what made them."""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit.engine import open_vectors, write_vectors
from embedkit.errors import DataError, IntegrityError, UsageError
from embedkit.storage import file_record
from embedkit.types import Document

TEXTS = ["cat", "dog dog", "", "red fish"]


def batches(encoder: Any) -> Iterator[tuple[list[Document], np.ndarray]]:
    for start in (0, 3):
        documents = [Document(f"d{i}", text) for i, text in enumerate(TEXTS)][start : start + 3]
        yield documents, encoder.encode([document.text for document in documents])


@pytest.fixture
def path(tmp_path: Path, word_counts: Any) -> Path:
    write_vectors(tmp_path / "a.npy", batches(word_counts), word_counts, "document")
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


def test_a_name_that_is_taken_is_kept_unless_told_otherwise(path: Path, word_counts: Any) -> None:
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"a\.npy is there already; choose another name, or add --overwrite"):
        write_vectors(path, batches(word_counts), word_counts, "document")
    assert path.read_bytes() == before
    path.unlink()
    with pytest.raises(UsageError, match=r"a\.ids\.txt is there already"):
        write_vectors(path, batches(word_counts), word_counts, "document")
    write_vectors(path, list(batches(word_counts))[:1], word_counts, "query", overwrite=True)
    assert (open_vectors(path).ids, open_vectors(path).manifest["kind"]) == (["d0", "d1", "d2"], "query")


def test_an_error_in_the_middle_leaves_what_was_there(path: Path, word_counts: Any) -> None:
    before = {entry.name: entry.read_bytes() for entry in path.parent.iterdir()}

    def broken() -> Iterator[Any]:
        yield from list(batches(word_counts))[:1]
        raise DataError("line 4")

    with pytest.raises(DataError, match="line 4"):
        write_vectors(path, broken(), word_counts, "document", overwrite=True)
    assert {entry.name: entry.read_bytes() for entry in path.parent.iterdir()} == before


def test_another_suffix_is_refused(tmp_path: Path, word_counts: Any) -> None:
    with pytest.raises(UsageError, match=r"a\.bin: vectors are written as NAME\.npy"):
        write_vectors(tmp_path / "a.bin", batches(word_counts), word_counts, "document")


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
    write_json(manifest, {**read_json(manifest), "version": 2})
    with pytest.raises(IntegrityError, match="has another format than embedkit-vectors 1"):
        open_vectors(path)


@pytest.mark.parametrize("call", range(10))
def test_a_fault_at_any_moment_of_an_overwrite_never_mixes_old_and_new(
    path: Path, word_counts: Any, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Every fsync, rename and hash in turn fails: afterwards the old vectors open, or the new ones, or an error says so."""
    old = open_vectors(path).ids
    new = [Document(f"n{i}", text) for i, text in enumerate(TEXTS)]  # as many rows as before
    calls = itertools.count()

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def once(*arguments: Any, **options: Any) -> Any:
            if next(calls) == call:
                raise OSError(errno.EIO, "a fault")
            return real(*arguments, **options)

        return once

    monkeypatch.setattr("embedkit.storage.os.fsync", failing(os.fsync))
    monkeypatch.setattr(Path, "replace", failing(Path.replace))
    monkeypatch.setattr("embedkit.engine.vector_file.file_record", failing(file_record))
    failed = False
    try:
        write_vectors(path, [(new, word_counts.encode(TEXTS))], word_counts, "document", overwrite=True)
    except OSError:
        failed = True
    monkeypatch.undo()
    assert failed == (call < 9)  # two hashes, three fsyncs, three renames, and the fsync of the folder
    assert not list(path.parent.glob("*.partial"))
    try:
        opened = open_vectors(path)
    except IntegrityError:
        assert failed  # torn between two renames, and found out
    else:
        assert opened.ids in (old, [document.id for document in new])
        assert (opened.ids == old) or opened.manifest["files"]["a.ids.txt"]["bytes"] == 3 * 4
