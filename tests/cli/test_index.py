"""embedkit index: built from documents or from vectors, whole or not at all, described and verified."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from .conftest import IDS, QUESTION, ROWS, TEXTS, Run, listing, write_jsonl


def stored(folder: Path) -> list[tuple[Any, ...]]:
    """(id, title, text, metadata) of all rows, read with SQLite itself."""
    connection = sqlite3.connect(folder / "documents.sqlite")
    rows = connection.execute("SELECT id, title, text, metadata FROM documents ORDER BY row").fetchall()
    connection.close()
    return [(*rest, json.loads(metadata)) for *rest, metadata in rows]


DOCUMENTS = [(row["_id"], row["title"], row["text"], {"year": row["year"]}) for row in ROWS]


def test_an_index_of_a_corpus_holds_its_documents_and_rows(
    run: Run, corpus: Path, tiny_model: Path, tmp_path: Path, reference: Any
) -> None:
    folder = tmp_path / "deep" / "an.index"  # the folder above is made
    done = run("index", "build", corpus, "-o", folder, "--model", tiny_model, "--dtype", "float32")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"7 documents in {folder}; search them with: embedkit search {folder} ")
    assert listing(folder) == {"manifest.json", "fine.npy", "documents.sqlite"}
    assert stored(folder) == DOCUMENTS
    fine = np.load(folder / "fine.npy")
    assert fine.dtype == np.float16
    np.testing.assert_allclose(fine, reference(TEXTS), atol=1e-3)


def test_an_index_of_vectors_holds_their_ids_and_with_documents_their_texts(
    run: Run, corpus: Path, vectors: Path, tmp_path: Path
) -> None:
    assert run("index", "build", vectors, "-o", tmp_path / "bare", "--fine", "float32").code == 0
    assert run("index", "build", vectors, "-o", tmp_path / "full", "--documents", corpus, "--limit", 3).code == 0
    assert stored(tmp_path / "bare") == [(identifier, "", None, {}) for identifier in IDS]
    assert stored(tmp_path / "full") == DOCUMENTS[:3]
    np.testing.assert_allclose(np.load(tmp_path / "bare" / "fine.npy"), np.load(vectors), atol=1e-6)
    facts = (
        run("index", "info", tmp_path / "bare", "--json").facts,
        run("index", "info", tmp_path / "full", "--json").facts,
    )
    assert [fact["texts"] for fact in facts] == [False, True]


@pytest.mark.parametrize(
    "rows",
    [
        ROWS[::-1],
        [*ROWS[:3], ROWS[4], ROWS[3], *ROWS[5:]],
        ROWS[:-1],
        pytest.param(
            [*ROWS, {"_id": "d7", "text": "cat"}],
        ),
    ],
    ids=["turned round", "two swapped", "one too few", "one too many"],
)
def test_documents_in_another_order_than_the_vectors_are_refused(
    run: Run, vectors: Path, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    other = write_jsonl(tmp_path / "other.jsonl", rows)
    sentence = run("index", "build", vectors, "--documents", other, "-o", tmp_path / "x").sentence(3)
    assert "in the same order" in sentence
    assert listing(tmp_path) == {"other.jsonl"}


def test_an_index_of_vectors_is_searched_by_the_model_that_made_them(
    run: Run, vectors: Path, corpus: Path, index: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "of-vectors"
    run("index", "build", vectors, "-o", folder, "--documents", corpus, "--fine", "float32")
    asked = [QUESTION, "--json", "--dtype", "float32"]
    assert run("search", folder, *asked).facts == run("search", index, *asked).facts


def test_an_array_that_names_no_model_is_numbered_and_not_searched_in_words(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "bare.npy", np.eye(3, dtype=np.float32))
    assert run("index", "build", tmp_path / "bare.npy", "-o", tmp_path / "x").code == 0
    assert [row[0] for row in stored(tmp_path / "x")] == ["0", "1", "2"]
    assert "name no model" in run("search", tmp_path / "x", "cat").sentence(2)


@pytest.mark.parametrize(("factory", "code_bytes"), [("Flat", 128), ("SQ8", 32), ("IVF2,SQ8", 32)])
def test_a_coarse_level_is_any_faiss_factory(
    run: Run, vectors: Path, tmp_path: Path, factory: str, code_bytes: int
) -> None:
    """Read back with faiss itself; bytes a row: 4 a dimension, or 1 in 8-bit codes."""
    folder = tmp_path / "x"
    assert run("index", "build", vectors, "-o", folder, "--coarse", factory).code == 0
    codes = faiss.read_index(str(folder / "coarse.faiss"))
    assert (codes.ntotal, codes.d, codes.metric_type) == (len(ROWS), 32, faiss.METRIC_INNER_PRODUCT)
    inner = faiss.try_extract_index_ivf(codes) or codes
    assert (faiss.downcast_index(inner).code_size, run("index", "info", folder, "--json").facts["coarse"]) == (
        code_bytes,
        factory,
    )


def test_a_coarse_level_that_needs_more_rows_is_refused_by_name(run: Run, vectors: Path, tmp_path: Path) -> None:
    sentence = run("index", "build", vectors, "-o", tmp_path / "x", "--coarse", "IVF64,Flat").sentence(3)
    assert "IVF64,Flat" in sentence
    assert "7 rows" in sentence
    assert listing(tmp_path) == set()


def test_info_gives_the_facts_of_an_index(run: Run, index: Path, tiny_model: Path) -> None:
    from embedkit.encoders import load

    facts = run("index", "info", index, "--json").facts
    sizes = {path.name: path.stat().st_size for path in index.iterdir()}
    expected = {
        "path": str(index),
        "documents": len(ROWS),
        "dim": 32,
        "metric": "cosine",
        "unit_rows": True,
        "coarse": None,
        "fine": "float32",
        "texts": True,
        "model": str(tiny_model),
        "fingerprint": load(tiny_model).fingerprint,
        "bytes_in_ram": 4 * 32 * len(ROWS),
        "bytes_on_disk": sum(sizes.values()) - sizes["manifest.json"],
    }
    assert {name: facts[name] for name in expected} == expected


def test_info_prints_the_same_facts_as_lines(run: Run, index: Path) -> None:
    facts = run("index", "info", index, "--json").facts
    lines = dict(line.split("  ", 1) for line in run("index", "info", index).out.splitlines())
    assert [name.strip() for name in lines] == [name.replace("_", " ") for name in facts]
    shown = {name.strip(): value.strip().replace(",", "") for name, value in lines.items()}
    assert shown == {name.replace("_", " "): "none" if value is None else str(value) for name, value in facts.items()}


def test_build_answers_with_the_facts_as_json(run: Run, vectors: Path, tmp_path: Path) -> None:
    built = run("index", "build", vectors, "-o", tmp_path / "x", "--json").facts
    assert built == run("index", "info", tmp_path / "x", "--json").facts


@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_the_metric_decides_whether_length_counts(run: Run, tmp_path: Path, metric: str) -> None:
    rows = np.array([[3.0, 4.0], [0.6, 0.8]], dtype=np.float32)
    np.save(tmp_path / "x.npy", rows)
    run("index", "build", tmp_path / "x.npy", "-o", tmp_path / "x", "--metric", metric, "--fine", "float32")
    kept = rows if metric == "dot" else np.array([[0.6, 0.8], [0.6, 0.8]])
    np.testing.assert_allclose(np.load(tmp_path / "x" / "fine.npy"), kept, atol=1e-6)
    facts = run("index", "info", tmp_path / "x", "--json").facts
    assert (facts["metric"], facts["unit_rows"]) == (metric, metric == "cosine")


def test_verify_says_what_it_found_intact(run: Run, index: Path) -> None:
    assert run("index", "verify", index).out.startswith(f"{index} is intact: 7 documents")
    assert run("index", "verify", index, "--json").facts == {"path": str(index), "intact": True, "files": 3}


def test_an_index_can_be_moved(run: Run, vectors: Path, tmp_path: Path) -> None:
    run("index", "build", vectors, "-o", tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert run("index", "verify", tmp_path / "there").code == 0
    assert run("search", tmp_path / "there", QUESTION).code == 0
