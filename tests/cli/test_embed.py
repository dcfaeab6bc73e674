"""embedkit embed: the vectors of sentence-transformers, in input order, in files that numpy reads."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from .conftest import IDS, ROWS, TEXTS, Run, listing, write_jsonl

Reference = Callable[[Sequence[str]], np.ndarray]


@pytest.fixture
def embed(run: Run, tmp_path: Path, tiny_model: Path) -> Callable[..., tuple[np.ndarray, list[str]]]:
    """embed(source, *options) -> the rows and ids that it wrote, in float32."""

    def call(source: object, *options: object, model: Path = tiny_model) -> tuple[np.ndarray, list[str]]:
        done = run("embed", source, "-o", tmp_path / "out.npy", "--model", model, "--dtype", "float32", *options)
        assert done.code == 0, done
        rows = np.load(tmp_path / "out.npy", allow_pickle=False)
        assert done.out == f"{len(rows)} vectors of {rows.shape[1]} dimensions in {tmp_path / 'out.npy'}\n"
        return rows, (tmp_path / "out.ids.txt").read_text(encoding="utf-8").splitlines()

    return call


def test_rows_are_those_of_sentence_transformers_in_input_order(
    embed: Callable[..., tuple[np.ndarray, list[str]]], corpus: Path, reference: Reference, tmp_path: Path
) -> None:
    rows, ids = embed(corpus)
    assert (rows.dtype, rows.shape) == (np.float32, (len(ROWS), 32))
    np.testing.assert_allclose(rows, reference(TEXTS), atol=1e-5)
    assert ids == IDS
    assert listing(tmp_path) == {"out.npy", "out.ids.txt", "out.manifest.json"}


def test_the_manifest_says_what_made_the_rows(run: Run, corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    from embedkit.encoders import load

    done = run("embed", corpus, "-o", tmp_path / "x.npy", "--model", tiny_model, "--dtype", "float32", "--json")
    manifest = json.loads((tmp_path / "x.manifest.json").read_text(encoding="utf-8"))
    manifest.pop("checksum")
    assert done.facts == manifest
    assert (manifest["count"], manifest["dim"], manifest["kind"]) == (len(ROWS), 32, "document")
    assert manifest["fingerprint"] == load(tiny_model).fingerprint
    assert manifest["settings"] == {"model": str(tiny_model)}
    assert manifest["compute"]["dtype"] == "float32"
    assert {name: record["bytes"] for name, record in manifest["files"].items()} == {
        "x.npy": 128 + 4 * 32 * len(ROWS),
        "x.ids.txt": 3 * len(ROWS),
    }


def test_dim_keeps_the_first_columns_at_unit_length(
    embed: Callable[..., tuple[np.ndarray, list[str]]], corpus: Path, reference: Reference
) -> None:
    rows, _ = embed(corpus, "--dim", 5)
    first = reference(TEXTS)[:, :5]
    np.testing.assert_allclose(rows, first / np.linalg.norm(first, axis=1, keepdims=True), atol=1e-5)


def test_limit_takes_the_first_rows(
    embed: Callable[..., tuple[np.ndarray, list[str]]], corpus: Path, reference: Reference
) -> None:
    rows, ids = embed(corpus, "--limit", 3)
    np.testing.assert_allclose(rows, reference(TEXTS[:3]), atol=1e-5)
    assert ids == IDS[:3]


TABLE = "sku,name,about\nn1,cat,red run\nn2,dog,blue\n"


@pytest.mark.parametrize(
    ("options", "ids", "texts"),
    [
        ("--id sku --text about", ["n1", "n2"], ["red run", "blue"]),
        ("--id sku --text about --title name", ["n1", "n2"], ["cat red run", "dog blue"]),
        ("--id name --text about,name", ["cat", "dog"], ["red run cat", "blue dog"]),
        ("--id row --text name", ["0", "1"], ["cat", "dog"]),
    ],
)
def test_other_fields_are_named_by_options(
    embed: Callable[..., tuple[np.ndarray, list[str]]],
    tmp_path: Path,
    reference: Reference,
    options: str,
    ids: list[str],
    texts: list[str],
) -> None:
    (tmp_path / "table.csv").write_text(TABLE)
    rows, found = embed(tmp_path / "table.csv", *options.split())
    assert found == ids
    np.testing.assert_allclose(rows, reference(texts), atol=1e-5)


def test_a_dash_reads_jsonl_from_standard_input(
    embed: Callable[..., tuple[np.ndarray, list[str]]],
    corpus: Path,
    reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(corpus.read_bytes())))
    rows, ids = embed("-")
    np.testing.assert_allclose(rows, reference(TEXTS), atol=1e-5)
    assert ids == IDS


def test_overwrite_replaces_the_vectors_and_nothing_else(
    run: Run,
    embed: Callable[..., tuple[np.ndarray, list[str]]],
    corpus: Path,
    tmp_path: Path,
    tiny_model: Path,
) -> None:
    (tmp_path / "out.txt").write_text("mine")
    embed(corpus)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = write_jsonl(tmp_path / "other.jsonl", ROWS[:2])
    run("embed", other, "-o", tmp_path / "out.npy", "--model", tiny_model).sentence(2)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    rows, ids = embed(other, "--overwrite")
    assert (len(rows), ids) == (2, IDS[:2])
    assert (tmp_path / "out.txt").read_text() == "mine"
    assert run("index", "build", tmp_path / "out.npy", "-o", tmp_path / "x.index").code == 0  # all three fit together


def test_a_failure_under_overwrite_keeps_the_old_vectors(
    run: Run, embed: Callable[..., tuple[np.ndarray, list[str]]], corpus: Path, tmp_path: Path, tiny_model: Path
) -> None:
    embed(corpus)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"_id": "a", "text": "cat"}\nnot json\n')
    run("embed", bad, "-o", tmp_path / "out.npy", "--model", tiny_model, "--overwrite").sentence(3)
    bad.unlink()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "prompt"),
    [
        ("", ""),
        ("--kind document", ""),
        ("--kind query", "query : "),
        ("--kind query --prompt-name colour", "red "),
        ("--prompt-name colour", "red "),
    ],
)
def test_the_kind_or_the_prompt_name_decides_the_prompt(
    embed: Callable[..., tuple[np.ndarray, list[str]]],
    tmp_path: Path,
    prompted_model: Path,
    options: str,
    prompt: str,
) -> None:
    """The row of a text is that of its prompt and itself, written as one text, without any prompt."""
    texts = ["cat run", "two dog"]
    source = write_jsonl(tmp_path / "texts.jsonl", [{"_id": text, "text": text} for text in texts])
    rows, _ = embed(source, *options.split(), model=prompted_model)
    literal = write_jsonl(tmp_path / "literal.jsonl", [{"_id": text, "text": prompt + text} for text in texts])
    written, _ = embed(literal, "--overwrite", model=prompted_model)
    np.testing.assert_allclose(rows, written, atol=1e-5)


def test_max_tokens_cuts_longer_texts(
    embed: Callable[..., tuple[np.ndarray, list[str]]], tmp_path: Path, reference: Reference
) -> None:
    source = write_jsonl(tmp_path / "long.jsonl", [{"_id": "a", "text": "cat dog fish bird"}])
    rows, _ = embed(source, "--max-tokens", 4)  # two words between [CLS] and [SEP]
    np.testing.assert_allclose(rows, reference(["cat dog"]), atol=1e-5)
