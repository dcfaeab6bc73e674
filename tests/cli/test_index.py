"""embedkit index: built from documents or from vectors, added to, deleted from, compacted, described and verified."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from embedkit.cli.options import Size

from ..engine.fakes import Windowed
from .conftest import IDS, QUESTION, ROWS, TEXTS, Run, listing, write_jsonl

FIRST = "segment-0001"


def stored(folder: Path) -> list[tuple[Any, ...]]:
    """(id, title, text, metadata) of all rows, read with SQLite itself."""
    connection = sqlite3.connect(folder / f"{FIRST}.documents.sqlite")
    rows = connection.execute("SELECT id, title, text, metadata FROM documents ORDER BY number").fetchall()
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
    parts = {f"{FIRST}.{part}" for part in ("fine.npy", "documents.sqlite", "ids.npy", "ids.txt", "built.json")}
    assert listing(folder) == {"manifest-000001.json", "lock", *parts}
    assert stored(folder) == DOCUMENTS
    fine = np.load(folder / f"{FIRST}.fine.npy")
    assert fine.dtype == np.float16
    np.testing.assert_allclose(fine, reference(TEXTS), atol=1e-3)


def test_fields_that_are_left_out_are_not_stored(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "c.jsonl", [{"id": "a", "text": "cat", "one": 1, "two": 2, "three": [[3]]}])
    done = run(
        "index", "build", tmp_path / "c.jsonl", "-o", tmp_path / "x", "--model", tiny_model, "--leave-out", "one,three"
    )
    assert done.code == 0
    assert stored(tmp_path / "x") == [("a", "", "cat", {"two": 2})]


def test_an_index_of_vectors_holds_their_ids_and_with_documents_their_texts(
    run: Run, corpus: Path, vectors: Path, tmp_path: Path
) -> None:
    assert run("index", "build", vectors, "-o", tmp_path / "bare", "--fine", "float32").code == 0
    assert run("index", "build", vectors, "-o", tmp_path / "full", "--documents", corpus, "--limit", 3).code == 0
    assert stored(tmp_path / "bare") == [(identifier, "", "", {}) for identifier in IDS]
    assert stored(tmp_path / "full") == DOCUMENTS[:3]
    np.testing.assert_allclose(np.load(tmp_path / "bare" / f"{FIRST}.fine.npy"), np.load(vectors), atol=1e-6)
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
    codes = faiss.read_index(str(folder / f"{FIRST}.codes.faiss"))
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
    sizes = {path.name.removeprefix(f"{FIRST}."): path.stat().st_size for path in index.iterdir()}
    segment = {"number": 1, "documents": 7, "coarse": None, "probes": None, "shortlist": 20, "recall": None}
    expected = {
        "path": str(index),
        "version": 1,
        "documents": len(ROWS),
        "rows": len(ROWS),
        "deleted": 0,
        "segments": [segment],
        "fields": ["year"],
        "dim": 32,
        "metric": "cosine",
        "unit_rows": True,
        "coarse": "auto",
        "fine": "float32",
        "texts": True,
        "model": str(tiny_model),
        "fingerprint": load(tiny_model).fingerprint,
        "bytes_in_ram": sum(sizes[part] for part in ("fine.npy", "ids.npy", "ids.txt")),
        "bytes_on_disk": sum(sizes.values()) - sizes["manifest-000001.json"] - sizes["built.json"],
    }
    assert {name: facts[name] for name in expected} == expected


def test_info_prints_the_same_facts_as_lines(run: Run, index: Path) -> None:
    facts = run("index", "info", index, "--json").facts
    lines = dict(line.split("  ", 1) for line in run("index", "info", index).out.splitlines())
    assert [name.strip() for name in lines] == [name.replace("_", " ") for name in facts]
    shown = {name.strip(): value.strip().replace(",", "") for name, value in lines.items()}
    told = {name: "none" if value is None else str(value).replace(",", "") for name, value in facts.items()}
    told["fields"] = " ".join(facts["fields"])
    assert shown.pop("builds").startswith("segment 1 threads ") and told.pop("builds")
    told["segments"] = "number 1 documents 7 coarse none probes none shortlist 20 recall none"
    assert shown == {name.replace("_", " "): value for name, value in told.items()}


def test_build_answers_with_the_facts_as_json(run: Run, vectors: Path, tmp_path: Path) -> None:
    built = run("index", "build", vectors, "-o", tmp_path / "x", "--json").facts
    assert built == run("index", "info", tmp_path / "x", "--json").facts


@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_the_metric_decides_whether_length_counts(run: Run, tmp_path: Path, metric: str) -> None:
    rows = np.array([[3.0, 4.0], [0.6, 0.8]], dtype=np.float32)
    np.save(tmp_path / "x.npy", rows)
    run("index", "build", tmp_path / "x.npy", "-o", tmp_path / "x", "--metric", metric, "--fine", "float32")
    kept = rows if metric == "dot" else np.array([[0.6, 0.8], [0.6, 0.8]])
    np.testing.assert_allclose(np.load(tmp_path / "x" / f"{FIRST}.fine.npy"), kept, atol=1e-6)
    facts = run("index", "info", tmp_path / "x", "--json").facts
    assert (facts["metric"], facts["unit_rows"]) == (metric, metric == "cosine")


def test_verify_says_what_it_found_intact(run: Run, index: Path) -> None:
    assert run("index", "verify", index).out.startswith(f"{index} is intact: 7 documents")
    assert run("index", "verify", index, "--json").facts == {"path": str(index), "intact": True, "files": 5}


def test_an_index_can_be_moved(run: Run, vectors: Path, tmp_path: Path) -> None:
    run("index", "build", vectors, "-o", tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert run("index", "verify", tmp_path / "there").code == 0
    assert run("search", tmp_path / "there", QUESTION).code == 0


# --- changed ------------------------------------------------------------------------------------------------------

MORE = [{"_id": "d6", "text": "run run", "year": 2050}, {"_id": "n1", "title": "fish", "text": "red", "year": 1999}]


@pytest.fixture
def folder(tmp_path: Path, index: Path) -> Path:
    """A copy of the index of ROWS."""
    return shutil.copytree(index, tmp_path / "my.index")


def ids_of(run: Run, folder: Path) -> list[str]:
    """Of all documents that a search finds."""
    return sorted(hit["id"] for hit in run("search", folder, QUESTION, "-k", 100, "--json").facts["hits"])


def test_documents_are_added_or_replaced(run: Run, folder: Path, tmp_path: Path, ranking: Any) -> None:
    done = run("index", "add", folder, write_jsonl(tmp_path / "more.jsonl", MORE), "--dtype", "float32")
    assert (done.code, done.err, done.out) == (0, "", "2 documents added; the index holds 8.\n")
    assert ids_of(run, folder) == sorted([*IDS, "n1"])
    facts = run("search", folder, "fish red", "-k", 1, "--json").facts["hits"][0]
    assert (facts["id"], facts["title"], facts["metadata"]) == ("n1", "fish", {"year": 1999})
    facts = run("search", folder, QUESTION, "--where", '{"year": 2050}', "--json").facts["hits"]
    assert [(hit["id"], hit["text"]) for hit in facts] == [("d6", "run run")]
    again = run("index", "add", folder, tmp_path / "more.jsonl", "--json", "--limit", 1).facts
    assert again == {"added": 1, "documents": 8, "version": 3}


def test_vectors_are_added_with_their_documents(
    run: Run, folder: Path, tmp_path: Path, tiny_model: Path, prompted_model: Path
) -> None:
    source = write_jsonl(tmp_path / "more.jsonl", MORE)
    for name, model in (("more", tiny_model), ("other", prompted_model)):
        assert run("embed", source, "-o", tmp_path / f"{name}.npy", "--model", model).code == 0
    assert run("index", "add", folder, tmp_path / "more.npy", "--documents", source).code == 0
    assert run("search", folder, "fish red", "-k", 1, "--json").facts["hits"][0]["title"] == "fish"
    sentence = run("index", "add", folder, tmp_path / "other.npy", "--documents", source).sentence(5)
    assert "was built by" in sentence and str(prompted_model) in sentence
    np.save(tmp_path / "wide.npy", np.ones((2, 33), np.float32))
    assert "Rows of width 33 came" in run("index", "add", folder, tmp_path / "wide.npy").sentence(2)
    assert len(ids_of(run, folder)) == 8


def test_another_model_does_not_embed_what_is_added(run: Run, folder: Path, corpus: Path, prompted_model: Path) -> None:
    sentence = run("index", "add", folder, corpus, "--model", prompted_model).sentence(5)
    assert "was built by" in sentence
    assert run("index", "info", folder, "--json").facts["version"] == 1


def test_documents_are_deleted_by_id(run: Run, folder: Path) -> None:
    done = run("index", "delete", folder, "d1", "d5", "nobody")
    assert (done.code, done.err, done.out) == (0, "", "2 documents deleted; the index holds 5.\n")
    assert ids_of(run, folder) == ["d0", "d2", "d3", "d4", "d6"]
    assert run("index", "delete", folder, "d1", "--json").facts == {"deleted": 0, "documents": 5, "version": 2}


@pytest.mark.parametrize(("mark", "ends"), [("", "\n"), ("\ufeff", "\r\n")])
def test_ids_to_delete_are_read_from_a_file_or_from_standard_input(
    run: Run, folder: Path, tmp_path: Path, mark: str, ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone.txt").write_bytes((mark + ends.join(["d1", "d5", "", "é"])).encode())
    assert run("index", "delete", folder, "--ids", tmp_path / "gone.txt", "--json").facts["deleted"] == 2
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{mark}d0{ends}d2{ends}".encode())))
    assert run("index", "delete", folder, "--ids", "-", "--json").facts["deleted"] == 2
    assert ids_of(run, folder) == ["d3", "d4", "d6"]
    (tmp_path / "bad.txt").write_bytes(b"d3\n\xff\n")
    assert "bad.txt is not UTF-8" in run("index", "delete", folder, "--ids", tmp_path / "bad.txt").sentence(3)


def test_an_index_has_a_name_in_utf8(run: Run, folder: Path, tmp_path: Path) -> None:
    odd = tmp_path / "o\udcff.index"
    assert "is no name in UTF-8" in run("index", "build", "corpus.jsonl", "-o", odd).sentence(2)
    assert "is no name in UTF-8" in run("index", "export", folder, "-o", odd, "--format", "numpy").sentence(2)
    folder.rename(odd)
    assert "is no name in UTF-8" in run("index", "info", odd).sentence(2)


def test_documents_are_deleted_by_a_filter(run: Run, folder: Path) -> None:
    assert run("index", "delete", folder, "--where", '{"year": {"lt": 2004}}', "--json").facts["deleted"] == 3
    assert ids_of(run, folder) == ["d3", "d4", "d5", "d6"]
    assert "about" in run("index", "delete", folder, "--where", '{"year": {"about": 2004}}').sentence(2)
    for nothing in ("{}", '{"and": []}'):
        assert "filter of a deletion is empty" in run("index", "delete", folder, "--where", nothing).sentence(2)
    deep = "[" * 100_000
    assert "'yaer', which no document has; near it are 'year'" in run(
        "index", "delete", folder, "--where", '{"yaer": {"ne": 2004}}'
    ).sentence(2)
    twice = run("index", "delete", folder, "--where", '{"year": {"gte": 2000}, "not": {"year": 1, "year": 2}}')
    assert "names 'year' twice in one object" in twice.sentence(2)
    assert "--where is no JSON" in run("index", "delete", folder, "--where", deep).sentence(2)


def test_compact_frees_what_was_deleted(run: Run, folder: Path, tmp_path: Path) -> None:
    run("index", "add", folder, write_jsonl(tmp_path / "more.jsonl", MORE))
    run("index", "delete", folder, "d1", "d5")
    before = run("index", "info", folder, "--json").facts
    facts = run("index", "compact", folder, "--json").facts
    after = run("index", "info", folder, "--json").facts
    assert facts == {"documents": 6, "bytes_before": before["bytes_on_disk"], "bytes_on_disk": after["bytes_on_disk"]}
    assert (before["rows"], after["rows"], after["deleted"], len(after["segments"])) == (9, 6, 0, 1)
    assert after["bytes_on_disk"] < before["bytes_on_disk"]
    assert run("index", "compact", folder, "--ram", "1GB").out.startswith("6 documents in one segment; ")
    assert run("index", "verify", folder).code == 0
    assert ids_of(run, folder) == ["d0", "d2", "d3", "d4", "d6", "n1"]


@pytest.mark.parametrize("command", ["build", "add"])
def test_a_stop_after_some_rows_is_gone_on_with(
    run: Run,
    folder: Path,
    corpus: Path,
    tmp_path: Path,
    tiny_model: Path,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("embedkit.engine.run.WINDOW", 3)
    words = {
        "build": ["index", "build", corpus, "-o", tmp_path / "new.index", "--model", tiny_model],
        "add": ["index", "add", folder, corpus],
    }[command]

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("embedkit.engine.job.log_rows", interrupted)
        sentence = run(*words, "--max-tokens", 32, "--threads", 1, "--dtype", "float32").sentence(75)
    assert "Stopped; what is done is kept: run it again with --resume to go on" in sentence
    if command == "build":
        assert "was begun and is not finished" in run(*words).sentence(2)
        assert "was begun and is not finished" in run("search", tmp_path / "new.index", "cat").sentence(2)
    assert run(*words, "--resume").code == 0  # with the settings that it was begun with
    found = folder if command == "add" else tmp_path / "new.index"
    assert ids_of(run, found) == IDS
    assert not [path for path in found.iterdir() if path.name.startswith(("build.", "add."))]
    if command == "build":
        assert run(*words, "--resume", "--json").facts["version"] == 1  # it was finished


def test_documents_that_the_model_cannot_take_are_counted(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedkit.encoders.load", lambda **_: Windowed())
    source = write_jsonl(tmp_path / "c.jsonl", [*ROWS, {"_id": "bad", "text": "bad"}])
    done = run("index", "build", source, "-o", tmp_path / "x")
    assert done.code == 3
    assert done.remarks[-1] == (
        f"Error: 1 documents were set aside, the model cannot take them; all others are in {tmp_path / 'x'}."
    )
    facts = run("index", "info", tmp_path / "x", "--json").facts
    assert (facts["documents"], facts["rows"], facts["deleted"]) == (7, 7, 1)


def test_long_texts_become_passages(run: Run, tmp_path: Path, tiny_model: Path) -> None:
    """The tiny model takes 32 tokens."""
    rows = [{"_id": "short", "text": "cat"}, {"_id": "long", "text": "dog " * 100 + "fish " * 100}]
    source = write_jsonl(tmp_path / "c.jsonl", rows)
    run("index", "build", source, "-o", tmp_path / "x", "--model", tiny_model, "--on-long", "chunk")
    facts = run("index", "info", tmp_path / "x", "--json").facts
    assert facts["documents"] == 2 and facts["rows"] > 6
    by_passage = run("search", tmp_path / "x", "fish fish fish", "--group", "none", "--json", "-k", 50).facts["hits"]
    assert len(by_passage) == facts["rows"]
    assert {hit["id"] for hit in by_passage} == {"short", "long"}
    assert {hit["passage"].partition("#")[0] for hit in by_passage} == {"short", "long"}
    by_document = run("search", tmp_path / "x", "fish fish fish", "--json").facts["hits"]
    assert sorted(hit["id"] for hit in by_document) == ["long", "short"]
    best = max((hit for hit in by_passage if hit["id"] == "long"), key=lambda hit: hit["score"])
    assert next(hit for hit in by_document if hit["id"] == "long") == best
    mean = run("search", tmp_path / "x", "fish fish fish", "--group", "mean", "--json").facts["hits"]
    scores = [hit["score"] for hit in by_passage if hit["id"] == "long"]
    assert next(hit["score"] for hit in mean if hit["id"] == "long") == pytest.approx(np.mean(scores), abs=1e-5)
    shown = run("search", tmp_path / "x", "fish fish fish", "-k", 1, "--group", "none").out
    assert shown.splitlines()[0].split()[2] == by_passage[0]["passage"]


@pytest.mark.parametrize("size", ["500MB", "0.5GB", "500 mb", "500000000", "500000KB"])
def test_sizes_are_told_as_people_write_them(run: Run, vectors: Path, tmp_path: Path, size: str) -> None:
    assert Size().convert(size, None, None) == 500_000_000
    assert run("index", "build", vectors, "-o", tmp_path / "x", "--coarse", "SQ8", "--ram", size).code == 0


def test_less_memory_than_training_takes_is_refused(run: Run, vectors: Path, tmp_path: Path) -> None:
    sentence = run("index", "build", vectors, "-o", tmp_path / "x", "--coarse", "SQ8", "--ram", "1KB").sentence(2)
    assert "is trained on at least 7 rows" in sentence and "--ram leaves 1,000" in sentence
    assert listing(tmp_path) == set()


def test_a_layout_is_asked_for(run: Run, vectors: Path, tmp_path: Path) -> None:
    words = ["--bytes-per-vector", 24, "--recall", 0.9, "--fine", "int8", "--json"]
    facts = run("index", "build", vectors, "-o", tmp_path / "x", *words).facts
    assert (facts["fine"], facts["coarse"], facts["segments"][0]["coarse"]) == ("int8", "auto", None)
    manifest = json.loads((tmp_path / "x" / "manifest-000001.json").read_text())
    assert (manifest["bytes_per_vector"], manifest["recall_target"]) == (24, 0.9)


def manifest_of(folder: Path, version: int = 1) -> dict[str, Any]:
    return json.loads((folder / f"manifest-{version:06}.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("compact", ["--bytes-per-vector", 32, "--recall", 0.95]),
        ("exact", ["--coarse", "none", "--fine", "float32"]),
        ("hybrid", ["--sparse", "bm25"]),
    ],
)
def test_a_recipe_builds_what_its_settings_build_as_options(
    run: Run, vectors: Path, corpus: Path, tmp_path: Path, recipe: str, options: list[Any]
) -> None:
    for name, words in (("recipe", ["--recipe", recipe]), ("options", options)):
        assert run("index", "build", vectors, "--documents", corpus, "-o", tmp_path / name, *words).code == 0
    own = {"recipe", "version", "created", "checksum"}
    built, asked = ({k: v for k, v in manifest_of(tmp_path / n).items() if k not in own} for n in ("recipe", "options"))
    assert built == asked
    assert [manifest_of(tmp_path / "recipe")["version"], "recipe" in manifest_of(tmp_path / "options")] == [4, False]


def test_an_option_beats_the_recipe_which_the_index_keeps(run: Run, vectors: Path, tmp_path: Path) -> None:
    path, folder = tmp_path / "mine.yaml", tmp_path / "x"
    path.write_text("recall: 0.9\nfine: int8\nbytes_per_vector: 24\n")
    assert run("index", "build", vectors, "-o", folder, "--fine", "float16", "--recipe", path).code == 0
    manifest = manifest_of(folder)
    assert [manifest[name] for name in ("fine", "recall_target", "bytes_per_vector")] == ["float16", 0.9, 24]
    settings = {"bytes_per_vector": 24, "coarse": "auto", "fine": "int8", "recall": 0.9, "sparse": None}
    kept = {
        "name": "mine.yaml",
        "hash": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "settings": settings,
    }
    assert manifest["recipe"] == kept
    assert run("index", "delete", folder, "d1").code == 0
    assert manifest_of(folder, 2)["recipe"] == run("index", "info", folder, "--json").facts["recipe"] == kept
    assert run("index", "verify", folder).code == 0


def test_a_recipe_that_cannot_be_is_refused_alike_by_build_and_eval(run: Run, corpus: Path, tmp_path: Path) -> None:
    path, pairs = tmp_path / "mine.yaml", tmp_path / "pairs.tsv"
    pairs.write_text("sentence1\tsentence2\tscore\na\tb\t5\nc\td\t0\n")
    build, judge = ["index", "build", corpus, "-o", tmp_path / "x"], ["eval", "--data", pairs]
    for text, said in (
        ("corse: SQ8", "mine.yaml: corse is no setting (did you mean 'coarse'?)"),
        ("fine: float8", "mine.yaml: fine is 'float8' (did you mean 'float"),
        ("recall: high", "mine.yaml: recall is 'high'; expected a number"),
    ):
        path.write_text(text)
        sentences = {
            run(*build, "--recipe", path).sentence(2),
            run(*judge, "--index", path, "-o", tmp_path / "r").sentence(2),
        }
        assert len(sentences) == 1 and said in sentences.pop()
    unknown = run(*build, "--recipe", "compakt").sentence(2)
    assert "no recipe 'compakt' (did you mean 'compact'?)" in unknown and "compact, exact, hybrid" in unknown
    assert listing(tmp_path) == {"mine.yaml", "pairs.tsv"}
