"""Whole jobs: embed, build, open."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedkit
from embedkit import jobs
from embedkit.errors import DataError, ModelError, ModelMismatch, UsageError

TEXTS = ["cat", "dog dog", "red fish swim", "blue bird"]
ROWS = [{"_id": f"d{i}", "text": text, "n": i} for i, text in enumerate(TEXTS)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def test_embed_takes_a_folder_an_encoder_or_nothing(tiny_model: Path, default_encoder: Any) -> None:
    encoder = embedkit.load(tiny_model, dtype="float32")
    expected = encoder.encode(TEXTS)
    np.testing.assert_array_equal(embedkit.embed(TEXTS, model=encoder), expected)
    np.testing.assert_array_equal(embedkit.embed(TEXTS, model=tiny_model, dtype="float32"), expected)
    np.testing.assert_array_equal(embedkit.embed(TEXTS, str(tiny_model), dtype="float32"), expected)
    np.testing.assert_array_equal(embedkit.embed(TEXTS, dtype="float32"), default_encoder.encode(TEXTS))
    assert embedkit.embed([], model=tiny_model, dim=8).shape == (0, 8)
    assert embedkit.embed("cat", model=tiny_model).shape == (1, 32)


def test_embed_passes_kind_prompt_and_dim_on(make_model: Callable[..., Path]) -> None:
    folder = make_model(prompts={"query": "query : "})
    encoder = embedkit.load(folder, dtype="float32")
    expected = encoder.encode(["query : cat"])
    for model in (folder, encoder):
        options = {"dtype": "float32"} if model is folder else {}
        np.testing.assert_allclose(embedkit.embed("cat", model=model, kind="query", **options), expected, atol=1e-6)
        np.testing.assert_allclose(
            embedkit.embed("cat", model=model, prompt="query : ", **options), expected, atol=1e-6
        )
        shorter = expected[:, :4] / np.linalg.norm(expected[:, :4])
        np.testing.assert_allclose(
            embedkit.embed("cat", model=model, kind="query", dim=4, **options), shorter, atol=1e-6
        )


def test_embed_keeps_a_model_for_the_next_call(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(
        jobs.embedding,
        "load",
        lambda *arguments, **options: opened.append(options) or embedkit.load(*arguments, **options),
    )
    jobs.embedding._loaded.cache_clear()
    for _ in range(3):
        embedkit.embed("cat", model=tiny_model, dtype="float32")
    embedkit.embed("cat", model=tiny_model, dtype="float32", dim=4)
    assert opened == [{"dtype": "float32"}]


def test_embed_takes_the_options_of_load(make_model: Callable[..., Path]) -> None:
    prompted = embedkit.load(make_model(), prompts={"query": "red "}, dtype="float32").encode_query("cat")
    given = embedkit.embed("cat", model=make_model(), kind="query", prompts={"query": "red "}, dtype="float32")
    np.testing.assert_allclose(given, prompted, atol=1e-6)


def test_embed_accepts_any_encoder(word_counts: Any) -> None:
    np.testing.assert_array_equal(embedkit.embed("cat", model=word_counts), word_counts.encode(["cat"]))
    with pytest.raises(UsageError, match="dtype came beside a model that is loaded already"):
        embedkit.embed("cat", model=word_counts, dtype="float32")
    for option in ({"prompt": "a"}, {"dim": 2}):
        with pytest.raises(UsageError, match="prompt and dim are for models that embedkit loads"):
            embedkit.embed("cat", model=word_counts, **option)


def test_embed_gives_other_precisions(tmp_path: Path, word_counts: Any) -> None:
    """int8 by the ranges of documents, so that one row has the code that it has among these."""
    floats = word_counts.encode(TEXTS)
    np.testing.assert_array_equal(
        embedkit.embed(TEXTS, model=word_counts, precision="float16"), floats.astype(np.float16)
    )
    np.testing.assert_array_equal(
        embedkit.embed(TEXTS, model=word_counts, precision="binary"), np.packbits(floats > 0, axis=1)
    )
    jobs.embed_corpus(TEXTS, tmp_path / "v.npy", word_counts, precision="int8")
    codes, beside = np.load(tmp_path / "v.npy"), tmp_path / "v.ranges.npy"
    for ranges in (beside, str(beside), embedkit.Ranges.read(beside), embedkit.Ranges.of(floats)):
        np.testing.assert_array_equal(
            embedkit.embed(TEXTS[2:3], model=word_counts, precision="int8", ranges=ranges), codes[2:3]
        )
    again = jobs.embed_corpus(
        TEXTS[1:2], tmp_path / "q.npy", word_counts, kind="query", precision="int8", ranges=beside
    )
    np.testing.assert_array_equal(np.load(tmp_path / "q.npy"), codes[1:2])
    assert again["ranges"]["given"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "int8"}, "precision='int8' came without ranges"),
        ({"precision": "int4"}, "precision='int4' came"),
        ({"ranges": embedkit.Ranges.of(np.eye(12, dtype=np.float32))}, "ranges belong to int8"),
        ({"precision": "int8", "ranges": embedkit.Ranges.of(np.eye(3, dtype=np.float32))}, "Ranges of 3 dimensions"),
        ({"precision": "int8", "ranges": "nowhere.npy"}, r"nowhere\.npy is not there"),
    ],
)
def test_embed_refuses_codes_that_nothing_could_be_compared_with(
    word_counts: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        embedkit.embed(TEXTS, model=word_counts, **options)


def sources(corpus: Path) -> dict[str, Any]:
    import datasets
    import pandas

    return {
        "path": corpus,
        "string": str(corpus),
        "rows": ROWS,
        "generator": iter(ROWS),
        "table": pandas.DataFrame(ROWS),
        "dataset": datasets.Dataset.from_list(ROWS),
    }


@pytest.mark.parametrize("form", ["path", "string", "rows", "generator", "table", "dataset"])
def test_an_index_is_built_from_any_corpus(form: str, corpus: Path, tmp_path: Path, word_counts: Any) -> None:
    index = embedkit.build_index(sources(corpus)[form], tmp_path / "x", model=word_counts)
    hits = index.search("dog", k=1)
    assert hits.ids == [["d1"]]
    assert hits.documents is not None and hits.documents[0][0].metadata == {"n": 1}
    assert len(index) == 4


def test_texts_alone_are_numbered(tmp_path: Path, word_counts: Any) -> None:
    index = embedkit.build_index(TEXTS, tmp_path / "x", model=word_counts, limit=3)
    assert (len(index), index.search("dog", k=1).ids) == (3, [["1"]])


def test_an_array_needs_no_model(tmp_path: Path, word_counts: Any) -> None:
    vectors = word_counts.encode(TEXTS)
    index = embedkit.build_index(vectors, tmp_path / "x", ids=["a", "b", "c", "d"], metric="cosine")
    assert index.search(vectors[2], k=1).ids == [["c"]]
    assert (index.manifest.source.model, index.manifest.source.fingerprint, index.manifest.texts) == (None, None, False)
    numbered = embedkit.build_index(
        vectors, tmp_path / "y", documents=[{"id": i, "text": t} for i, t in enumerate(TEXTS)], limit=2
    )
    hits = numbered.search(vectors[1], k=5)
    assert hits.documents is not None and [d.text for d in hits.documents[0]] == ["dog dog", "cat"]
    assert embedkit.build_index(np.arange(6).reshape(3, 2), tmp_path / "z", metric="dot").search(
        np.array([0, 1.0]), k=1
    ).ids == [["2"]]


@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_vectors_of_embed_bring_their_model(corpus: Path, tmp_path: Path, word_counts: Any, form: str) -> None:
    jobs.embed_corpus(corpus, tmp_path / f"v.{form}", word_counts)
    index = embedkit.build_index(tmp_path / f"v.{form}", tmp_path / "x", documents=corpus)
    assert index.manifest.source.fingerprint == word_counts.fingerprint
    again = embedkit.open_index(tmp_path / "x", word_counts)
    hits = again.search("red fish", k=1)
    assert hits.documents is not None and hits.documents[0][0].text == "red fish swim"
    bare = embedkit.build_index(str(tmp_path / f"v.{form}"), tmp_path / "y")
    assert bare.search(word_counts.encode(["dog"]), k=1).ids == [["d1"]]


def test_documents_in_another_order_are_refused(corpus: Path, tmp_path: Path, word_counts: Any) -> None:
    jobs.embed_corpus(corpus, tmp_path / "v.npy", word_counts)
    with pytest.raises(DataError, match="Beside the vector of 'd0' stands the document 'd1'"):
        embedkit.build_index(tmp_path / "v.npy", tmp_path / "x", documents=[ROWS[1], ROWS[0], *ROWS[2:]])
    with pytest.raises(DataError, match="Beside the vector of 'd3' stands nothing"):
        embedkit.build_index(tmp_path / "v.npy", tmp_path / "x", documents=ROWS[:3])
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"source": np.ones((2, 3)), "model": "m"}, UsageError, "Vectors and a model came"),
        ({"source": TEXTS, "ids": ["a"]}, UsageError, "ids and documents belong to vectors"),
        ({"source": TEXTS, "documents": TEXTS}, UsageError, "ids and documents belong to vectors"),
        ({"source": np.ones((2, 3)), "ids": ["a"]}, UsageError, "1 ids came with 2 vectors"),
        ({"source": np.ones((2, 3)), "ids": ["a", "a"]}, DataError, "the id 'a' came before"),
        ({"source": np.ones(3)}, DataError, r"An array of float64 of shape \(3,\) came"),
        ({"source": np.array([["a"]])}, DataError, "An array of <U1"),
        ({"source": np.ones((2, 3)), "metric": "euclidean"}, UsageError, "metric='euclidean' came"),
    ],
    ids=lambda value: "" if isinstance(value, type) else None,
)
def test_what_does_not_go_together_is_refused(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        embedkit.build_index(path=tmp_path / "x", **arguments)
    assert not (tmp_path / "x").exists()


def test_a_path_that_is_taken_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()

    class Untouched:
        def __iter__(self) -> Any:
            raise AssertionError("read")

    with pytest.raises(UsageError, match="x is there already; choose another name"):
        embedkit.build_index(Untouched(), tmp_path / "x", model="no such model")


def test_a_layout_that_cannot_be_is_refused_before_any_work(tmp_path: Path, word_counts: Any) -> None:
    def untouched() -> Any:
        raise AssertionError("read")
        yield

    with pytest.raises(UsageError, match="faiss makes no index of 'nonsense'"):
        embedkit.build_index(untouched(), tmp_path / "x", model=word_counts, coarse="nonsense")


def test_the_index_opens_its_own_model_with_its_settings(make_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_model(prompts={"web": "red "})
    encoder = embedkit.load(
        folder, dim=8, max_tokens=16, prompts={"passage": "blue "}, prompt_names={"query": "web"}, dtype="float32"
    )
    built = embedkit.build_index(TEXTS, tmp_path / "x", model=encoder)
    again = embedkit.open_index(tmp_path / "x", dtype="float32")
    assert again.search("cat", k=4).ids == built.search("cat", k=4).ids
    assert again.manifest.source.settings["dim"] == 8
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert embedkit.open_index(tmp_path / "x", moved).search("cat", k=4).ids == built.search("cat", k=4).ids


def test_another_model_of_the_same_width_is_refused(make_model: Callable[..., Path], tmp_path: Path) -> None:
    embedkit.build_index(TEXTS, tmp_path / "x", model=make_model())
    other = make_model(seed=1)
    with pytest.raises(ModelMismatch) as caught:
        embedkit.open_index(tmp_path / "x", other).search("cat")
    fingerprints = [embedkit.load(folder).fingerprint[:12] for folder in (make_model(), other)]
    assert all(fingerprint in str(caught.value) for fingerprint in fingerprints)
    with pytest.raises(ModelMismatch):
        embedkit.open_index(tmp_path / "x", max_tokens=8).search("cat")


def test_a_prompt_name_at_opening_is_for_questions(make_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_model(prompts={"web": "red ", "fact": "blue "})
    encoder = embedkit.load(folder, prompt_names={"document": "fact"}, dtype="float32")
    embedkit.build_index(TEXTS, tmp_path / "x", model=encoder)
    asked = embedkit.open_index(tmp_path / "x", prompt_name="web", dtype="float32").search("cat", k=4)
    expected = embedkit.open_index(tmp_path / "x", dtype="float32").search(encoder.encode("red cat", prompt=""), k=4)
    assert asked.ids == expected.ids
    np.testing.assert_allclose(asked.scores, expected.scores, atol=1e-6)
    with pytest.raises(UsageError, match="no prompt named 'nobody'; it stores fact, web"):
        embedkit.open_index(tmp_path / "x", prompt_name="nobody").search("cat")


def test_a_model_that_has_moved_is_asked_for(make_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = shutil.copytree(make_model(), tmp_path / "here")
    index = embedkit.build_index(TEXTS, tmp_path / "x", model=embedkit.load(folder))
    vector = index.encoder().encode(["cat"])
    folder.rename(tmp_path / "there")
    opened = embedkit.open_index(tmp_path / "x")
    assert opened.search(vector, k=1).ids == index.search("cat", k=1).ids
    with pytest.raises(ModelError, match=r"names the model .*here, which is not there any more; say where .* --model"):
        opened.search("cat")
    assert (
        embedkit.open_index(tmp_path / "x", tmp_path / "there").search("cat", k=1).ids == index.search("cat", k=1).ids
    )


def test_an_index_does_not_choose_what_is_fetched(
    word_counts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    """It may come from elsewhere; whoever names the model fetches it."""
    monkeypatch.setattr(word_counts, "settings", {"model": "nobody/nothing"}, raising=False)
    embedkit.build_index(TEXTS, tmp_path / "x", model=word_counts)
    with pytest.raises(ModelError, match=r"nobody/nothing is not on this machine, .* --model nobody/nothing"):
        embedkit.open_index(tmp_path / "x").search("cat")


def test_ids_of_vectors_are_one_line_each(tmp_path: Path) -> None:
    for wrong in ("a\nb", ""):
        with pytest.raises(DataError, match=r"ids, row 2: the id .* is empty or holds a line break"):
            embedkit.build_index(np.ones((2, 3)), tmp_path / "x", ids=["a", wrong])


def test_documents_are_a_corpus_too(tmp_path: Path, word_counts: Any) -> None:
    rows = [embedkit.Document("a", "cat", title="red"), embedkit.Document("b", "dog")]
    index = embedkit.build_index(rows, tmp_path / "x", model=word_counts)
    assert index.get(["a", "b"]) == rows


def test_public_names_are_loaded_when_used() -> None:
    assert set(embedkit.__all__) <= set(dir(embedkit))
    for name in embedkit.__all__:
        assert getattr(embedkit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        embedkit.nonsense  # noqa: B018


def test_several_workers_open_the_model_that_came_with_its_share_of_the_threads(
    corpus: Path, tmp_path: Path, tiny_model: Path, word_counts: Any
) -> None:
    encoder = embedkit.load(tiny_model, dtype="float32", threads=2)
    alone = jobs.embed_corpus(corpus, tmp_path / "one.npy", encoder)
    shared = jobs.embed_corpus(corpus, tmp_path / "two.npy", encoder, workers=2)
    assert (alone["compute"]["threads"], shared["compute"]["threads"]) == ("2", "1")
    assert shared["fingerprint"] == alone["fingerprint"] == encoder.fingerprint
    np.testing.assert_allclose(np.load(tmp_path / "two.npy"), np.load(tmp_path / "one.npy"), atol=1e-6)
    devices = jobs.embed_corpus(corpus, tmp_path / "devices.npy", encoder, devices=["cpu", "cpu"])
    assert devices["compute"] == shared["compute"]
    assert (tmp_path / "devices.npy").read_bytes() == (tmp_path / "two.npy").read_bytes()
    with pytest.raises(UsageError, match="Several workers open the model themselves"):
        jobs.embed_corpus(corpus, tmp_path / "three.npy", word_counts, workers=2)
