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


def test_layers_stop_there_and_go_with_the_vectors_into_an_index(
    run: Run, embed: Callable[..., tuple[np.ndarray, list[str]]], corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """`search` and `eval` open the cut model without being told; another one would be refused."""
    from embedkit.encoders import load

    rows, _ = embed(corpus, "--layers", 1)
    model = load(tiny_model, layers=1, dtype="float32")
    np.testing.assert_array_equal(rows, model.encode(TEXTS))
    index = tmp_path / "cut.index"
    assert run("index", "build", tmp_path / "out.npy", "--documents", corpus, "-o", index).code == 0
    found = run("search", index, "red cat", "--dtype", "float32", "--json").facts["hits"]
    scores = dict(zip(IDS, rows @ model.encode("red cat")[0], strict=True))
    assert [hit["id"] for hit in found] == sorted(scores, key=scores.__getitem__, reverse=True)
    judged = tmp_path / "judged"
    write_jsonl(judged / "queries.jsonl", [{"_id": "q", "text": "red cat"}])
    write_jsonl(judged / "corpus.jsonl", ROWS)
    (judged / "qrels").mkdir()
    (judged / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\nq\t{found[1]['id']}\t1\n")
    done = run("eval", "--data", judged, "--index", index, "-o", tmp_path / "results", "--json")
    assert done.facts["tasks"]["judged"]["scores"]["mrr@10"] == 0.5
    refused = run("embed", corpus, "-o", tmp_path / "no.npy", "--model", tiny_model, "--layers", 3)
    assert "layers=3 came; the model has 2 layers: choose 1 to 2." in refused.sentence(2)


def test_a_query_is_coded_by_the_ranges_of_the_documents(
    embed: Callable[..., tuple[np.ndarray, list[str]]], run: Run, corpus: Path, tmp_path: Path, tiny_model: Path
) -> None:
    floats, _ = embed(corpus)
    command = ["embed", corpus, "--model", tiny_model, "--dtype", "float32", "--precision", "int8"]
    assert run(*command, "-o", tmp_path / "d.npy").out == f"7 vectors of 32 dimensions in {tmp_path / 'd.npy'}\n"
    assert {"d.npy", "d.ids.txt", "d.manifest.json", "d.ranges.npy"} <= listing(tmp_path)
    codes = np.load(tmp_path / "d.npy")
    lowest, step = np.load(tmp_path / "d.ranges.npy")
    np.testing.assert_allclose(lowest + (codes + 0.5) * step, floats, atol=step.max())
    queries = [*command, "-o", tmp_path / "q.npy", "--kind", "query", "--limit", "1"]
    assert "give the NAME.ranges.npy beside these with --ranges" in run(*queries).sentence(2)
    assert run(*queries, "--ranges", tmp_path / "d.ranges.npy").code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "q.npy"), codes[:1])
    assert "expected ranges" in run(*queries, "--overwrite", "--ranges", tmp_path / "d.npy").sentence(3)
    others = ["--precision", "binary", "--ranges", tmp_path / "d.ranges.npy", "--overwrite"]
    assert "ranges belong to int8" in run(*queries, *others).sentence(2)
    assert run("index", "build", tmp_path / "d.npy", "-o", tmp_path / "x.index").code == 0


@pytest.mark.parametrize(("precision", "width", "dtype"), [("float16", 32, np.float16), ("binary", 4, np.uint8)])
def test_other_precisions_are_stored(
    run: Run, corpus: Path, tmp_path: Path, tiny_model: Path, precision: str, width: int, dtype: type
) -> None:
    assert run("embed", corpus, "-o", tmp_path / "x.npy", "--model", tiny_model, "--precision", precision).code == 0
    rows = np.load(tmp_path / "x.npy")
    assert (rows.shape, rows.dtype) == ((7, width), dtype)


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


# --- a job that goes on ---------------------------------------------------------------------------------------------


@pytest.fixture
def begun(tmp_path: Path, run: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A command whose first run met a broken line behind two windows of two rows; the line is mended."""
    monkeypatch.setattr("embedkit.engine.run.WINDOW", 2)
    source = write_jsonl(tmp_path / "c.jsonl", ROWS[:5])
    whole = write_jsonl(tmp_path / "whole.jsonl", ROWS).read_text()
    source.write_text(source.read_text() + "not json\n")
    command: list[object] = ["embed", source, "-o", tmp_path / "x.npy", "--model", tiny_model]
    run(*command, "--dtype", "float32", "--threads", "1", "--max-tokens", "16").sentence(3)
    assert listing(tmp_path) == {"c.jsonl", "whole.jsonl", "x.npy.partial", "x.ledger"}
    source.write_text(whole)
    return command


def test_resume_goes_on_with_the_settings_it_was_begun_with(begun: list[object], run: Run, tmp_path: Path) -> None:
    assert run(*begun, "--resume").code == 0
    options = ["--dtype", "float32", "--threads", "1", "--max-tokens", "16"]
    assert run("embed", begun[1], "-o", tmp_path / "y.npy", *begun[4:], *options).code == 0
    assert (tmp_path / "x.npy").read_bytes() == (tmp_path / "y.npy").read_bytes()
    assert (tmp_path / "x.ids.txt").read_text().splitlines() == IDS
    manifests = [json.loads((tmp_path / f"{name}.manifest.json").read_text()) for name in "xy"]
    assert manifests[0]["settings"]["max_tokens"] == 16
    assert len({json.dumps([m["compute"], m["settings"], m["fingerprint"]]) for m in manifests}) == 1


def test_resume_on_a_finished_output_says_the_same_and_does_nothing(
    begun: list[object], run: Run, tmp_path: Path
) -> None:
    first = run(*begun, "--resume")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert run(*begun, "--resume") == first
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_unfinished_run_is_refused_with_both_ways_out(begun: list[object], run: Run) -> None:
    sentence = run(*begun).sentence(2)
    assert "--resume" in sentence and "--overwrite" in sentence
    assert "give one of them" in run(*begun, "--resume", "--overwrite").sentence(2)
    assert run(*begun, "--overwrite").code == 0


def test_other_settings_than_it_was_begun_with_are_named(begun: list[object], run: Run) -> None:
    assert "(dtype: float32 then, bfloat16 now)" in run(*begun, "--resume", "--dtype", "bfloat16").sentence(2)


def test_a_row_that_changed_since_is_bad_data(begun: list[object], run: Run) -> None:
    write_jsonl(Path(str(begun[1])), [*ROWS[:2], {"_id": "d2", "text": "other"}, *ROWS[3:]])
    assert "Row 3: the document 'd2' has another text" in run(*begun, "--resume").sentence(3)


def test_rows_set_aside_end_with_exit_code_3_after_all_others(
    run: Run, corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import embedkit.encoders
    from embedkit.encoders import load

    class Forgetful:
        """Has no memory for one text, alone or not."""

        def __init__(self, **options: object) -> None:
            self._encoder = load(**options)  # type: ignore[arg-type]
            for name in ("dim", "similarity", "fingerprint", "settings", "compute"):
                setattr(self, name, getattr(self._encoder, name))

        def encode(self, inputs: Sequence[str], *, kind: str = "document") -> np.ndarray:
            if TEXTS[2] in inputs:
                raise MemoryError
            return self._encoder.encode(inputs)

    monkeypatch.setattr(embedkit.encoders, "load", Forgetful)
    command = ["embed", corpus, "-o", tmp_path / "x.npy", "--model", tiny_model]
    for options in ([], ["--resume"]):  # the second time there is nothing left to do
        done = run(*command, *options)
        assert done.code == 3
        assert done.out.startswith("6 vectors of 32 dimensions")
        assert "1 rows were set aside, with reasons, in" in done.remarks[-1]
        assert str(tmp_path / "x.quarantine.jsonl") in done.remarks[-1]
    assert (tmp_path / "x.ids.txt").read_text().splitlines() == [*IDS[:2], *IDS[3:]]


def test_shards_are_dealt_window_by_window(
    run: Run, corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedkit.engine.run.WINDOW", 2)
    for part in (1, 2):
        name = tmp_path / f"{part}.npy"
        assert run("embed", corpus, "-o", name, "--model", tiny_model, "--shard", f"{part}/2").code == 0
    ids = [(tmp_path / f"{part}.ids.txt").read_text().split() for part in (1, 2)]
    assert ids == [["d0", "d1", "d4", "d5"], ["d2", "d3", "d6"]]


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/2/3", "/"])
def test_a_shard_that_cannot_be_is_wrong_use(
    run: Run, corpus: Path, tiny_model: Path, tmp_path: Path, shard: str
) -> None:
    done = run("embed", corpus, "-o", tmp_path / "x.npy", "--model", tiny_model, "--shard", shard)
    assert "expected I/N, for example 1/4 to 4/4" in done.sentence(2)
    assert listing(tmp_path) == set()


def test_two_workers_give_the_rows_of_one(
    run: Run, corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedkit.engine.run.WINDOW", 2)
    options = ["--model", tiny_model, "--dtype", "float32", "--threads", "2"]
    assert run("embed", corpus, "-o", tmp_path / "x.npy", *options, "--workers", "2").code == 0
    assert run("embed", corpus, "-o", tmp_path / "y.npy", *options).code == 0
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), np.load(tmp_path / "y.npy"), atol=1e-6)
    assert json.loads((tmp_path / "x.manifest.json").read_text())["compute"]["threads"] == "1"
    assert run("embed", corpus, "-o", tmp_path / "z.npy", *options, "--device", "cpu,cpu").code == 0
    assert (tmp_path / "z.npy").read_bytes() == (tmp_path / "x.npy").read_bytes()


@pytest.mark.long
def test_several_devices_are_for_embed(run: Run, corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    done = run("index", "build", corpus, "-o", tmp_path / "x.index", "--model", tiny_model, "--device", "cuda:0,cuda:1")
    assert "a model is opened on one" in done.sentence(2)
    done = run("embed", corpus, "-o", tmp_path / "x.npy", "--model", tiny_model, "--device", "cpu,cuda:7")
    assert "'cuda:7' cannot be used here" in done.sentence(2)
    assert listing(tmp_path) == set()


def test_parquet_is_read_by_others(
    run: Run, corpus: Path, tiny_model: Path, tmp_path: Path, reference: Reference
) -> None:
    import pyarrow.parquet

    done = run("embed", corpus, "-o", tmp_path / "x.parquet", "--model", tiny_model, "--dtype", "float32")
    assert done.out == f"7 vectors of 32 dimensions in {tmp_path / 'x.parquet'}\n"
    assert listing(tmp_path) == {"x.parquet", "x.manifest.json"}
    table = pyarrow.parquet.read_table(tmp_path / "x.parquet")
    assert table.column("id").to_pylist() == IDS
    np.testing.assert_allclose(np.array(table.column("embedding").to_pylist()), reference(TEXTS), atol=1e-5)
