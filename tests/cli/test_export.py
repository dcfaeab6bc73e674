"""embedkit index export."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .conftest import IDS, Run, flip, listing


def test_an_index_is_exported_and_built_again(run: Run, vectors: Path, corpus: Path, tmp_path: Path) -> None:
    assert run("index", "build", vectors, "--documents", corpus, "-o", tmp_path / "an.index").code == 0
    done = run("index", "export", tmp_path / "an.index", "-o", tmp_path / "out", "--format", "numpy")
    expected = (
        f"7 rows in {tmp_path / 'out'} (numpy); 7 of them, searched there, find the same 7 nearest as in the index.\n"
    )
    assert (done.code, done.out, done.err) == (0, expected, "")
    assert listing(tmp_path / "out") == {
        "export.json",
        "rows.parquet",
        "vectors.ids.txt",
        "vectors.manifest.json",
        "vectors.npy",
    }
    np.testing.assert_allclose(np.load(tmp_path / "out/vectors.npy"), np.load(vectors), atol=1e-3)
    assert (tmp_path / "out/vectors.ids.txt").read_text().split() == IDS
    assert run("index", "build", tmp_path / "out", "-o", tmp_path / "again.index").code == 0
    facts = run(
        "index", "export", tmp_path / "again.index", "-o", tmp_path / "faiss", "--format", "faiss", "--json"
    ).facts
    assert (facts["rows"], facts["format"], facts["fingerprint"] is not None) == (7, "faiss", True)


def test_what_is_damaged_is_not_handed_on_and_wrong_uses_are_one_sentence(
    run: Run, vectors: Path, tmp_path: Path
) -> None:
    run("index", "build", vectors, "-o", tmp_path / "an.index")
    run("index", "export", tmp_path / "an.index", "-o", tmp_path / "out", "--format", "numpy")
    again = run("index", "export", tmp_path / "an.index", "-o", tmp_path / "out", "--format", "faiss")
    assert "is there already" in again.sentence(2)
    assert "an.index2" in run(
        "index", "export", tmp_path / "an.index2", "-o", tmp_path / "x", "--format", "numpy"
    ).sentence(2)
    flip(tmp_path / "out/vectors.npy", 500)
    assert "vectors.npy has changed" in run("index", "build", tmp_path / "out", "-o", tmp_path / "b").sentence(5)
    flip(next((tmp_path / "an.index").glob("*.fine.npy")), 500)
    damaged = run("index", "export", tmp_path / "an.index", "-o", tmp_path / "x", "--format", "numpy")
    assert "fine.npy has changed" in damaged.sentence(5)
    assert not (tmp_path / "x").exists()
