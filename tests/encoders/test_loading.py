"""Opening models: what is accepted, what is refused and how."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedkit.encoders import default_model, load
from embedkit.encoders.default_model import DEFAULT_MODEL, check_weights, default_model_folder
from embedkit.encoders.timing import quickest
from embedkit.encoders.torch_backend import attention_without_plans, bfloat16_is_fast
from embedkit.errors import IntegrityError, MissingDependency, ModelError, UsageError

from ..conftest import make_family


def test_a_folder_of_sentence_transformers_gives_its_rows(tiny_model: Path) -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["cat dog", "", "red fish swim " * 30, "é 猫 🐈"]
    expected = SentenceTransformer(str(tiny_model), device="cpu").encode(texts)
    np.testing.assert_allclose(load(tiny_model, dtype="float32").encode(texts), expected, atol=1e-6)


def test_a_plain_encoder_gets_mean_pooling_and_says_so(plain_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    from transformers import AutoModel, AutoTokenizer

    with caplog.at_level(logging.WARNING):
        encoder = load(plain_model, dtype="float32")
    assert [r.getMessage() for r in caplog.records] == [
        f"{plain_model} has no modules.json: taken as a plain encoder, with mean pooling."
    ]
    tokenizer, model = AutoTokenizer.from_pretrained(plain_model), AutoModel.from_pretrained(plain_model)
    with torch.inference_mode():
        states = model(**tokenizer("cat dog", return_tensors="pt")).last_hidden_state[0]
    mean = states.mean(dim=0).numpy()
    np.testing.assert_allclose(encoder.encode("cat dog")[0], mean / np.linalg.norm(mean), atol=1e-6)


def test_a_complete_folder_says_nothing(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load(tiny_model)
    assert not caplog.records


def test_the_settings_open_the_same_space_again(make_model: Callable[..., Path]) -> None:
    folder = make_model(prompts={"web": "query: "})
    first = load(
        folder,
        dim=8,
        max_tokens=16,
        prompts={"query": "one "},
        prompt_names={"query": "web"},
        dtype="float32",
        threads=2,
    )
    assert first.settings == {
        "model": str(folder),
        "dim": 8,
        "max_tokens": 16,
        "prompts": {"query": "one "},
        "prompt_names": {"query": "web"},
    }
    assert load(**first.settings).fingerprint == first.fingerprint


def test_a_relative_path_is_remembered_as_an_absolute_one(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_model.parent)
    assert load(tiny_model.name).settings["model"] == str(tiny_model)


def test_compute_names_backend_dtype_threads_and_versions(tiny_model: Path) -> None:
    compute = load(tiny_model, dtype="bfloat16", threads=1, backend="torch").compute
    torch.set_num_threads(2)
    assert {name: compute[name] for name in ("backend", "dtype", "threads", "device", "batch_tokens", "torch")} == {
        "backend": "torch",
        "dtype": "bfloat16",
        "threads": "1",
        "device": "cpu",
        "batch_tokens": "1024",
        "torch": torch.__version__,
    }
    openvino = pytest.importorskip("openvino")
    compute = load(tiny_model, dtype="float32", threads=1, batch_tokens=99).compute
    assert (compute["backend"], compute["dtype"], compute["threads"]) == ("openvino", "float32", "1")
    assert (compute["batch_tokens"], openvino.__version__.startswith(compute["openvino"])) == ("99", True)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_auto_takes_bfloat16_only_where_it_is_faster(
    tiny_model: Path, backend: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(backend)
    monkeypatch.setattr(f"embedkit.encoders.{backend}_backend.bfloat16_is_fast", lambda *_: fast)
    encoder = load(tiny_model, device="cpu", backend=backend)
    assert encoder.compute["dtype"] == ("bfloat16" if fast else "float32")


def test_without_openvino_torch_runs_the_model(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert load(tiny_model).compute["backend"] == "torch"
    with pytest.raises(MissingDependency, match=r"pip install -e"):
        load(tiny_model, backend="openvino")


def test_torch_is_asked_where_a_gpu_shows(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr("embedkit.encoders.loading.GPU_PLACES", (str(tmp_path),))
    assert "torch" in load(tiny_model).compute
    assert "torch" not in load(tiny_model, device="cpu").compute


def test_a_model_that_cannot_be_converted_stays_with_torch(
    plain_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A conversion that took an input for a constant gives other rows; they are compared before it is used."""
    pytest.importorskip("openvino")
    from embedkit.encoders import conversion

    monkeypatch.setattr("embedkit.encoders.loading.read_model_files", lambda *_: None)
    assert load(plain_model).compute["backend"] == "openvino"
    right = conversion._graph

    def wrong(model: Any) -> Any:
        graph = right(model)
        return dataclasses.replace(graph, rows=lambda batch, states: graph.rows(batch, states[:, ::-1].copy()))

    monkeypatch.setattr(conversion, "_graph", wrong)
    with caplog.at_level(logging.INFO, logger="embedkit"):
        assert load(plain_model).compute["backend"] == "torch"
    assert "OpenVINO's rows differ (cosine" in caplog.text
    with pytest.raises(UsageError, match="backend='openvino' cannot run"):
        load(plain_model, backend="openvino")


def test_the_transformer_is_cast_and_the_rest_stays_in_float32(tiny_model: Path) -> None:
    encoder = load(tiny_model, dtype="bfloat16", backend="torch")
    assert {parameter.dtype for parameter in encoder._opened.backend._model[0].parameters()} == {torch.bfloat16}
    exact = load(tiny_model, dtype="float32").encode(["cat dog red"])
    rows = encoder.encode(["cat dog red"])
    assert rows.dtype == np.float32
    assert float((rows * exact).sum()) > 0.999
    assert abs(float(np.linalg.norm(rows)) - 1) < 1e-6  # a norm taken in bfloat16 would be off by 1e-3


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"backend": "tpu"}, "backend='tpu' came; expected auto, openvino, torch"),
        (
            {"backend": "openvino", "dtype": "float16"},
            "backend='openvino' computes in float32 or bfloat16 on the CPU; dtype='float16'",
        ),
        ({"dtype": "int3"}, "dtype='int3' came; expected auto, float32, bfloat16, float16"),
        ({"device": "cuda:99"}, "device='cuda:99' cannot be used here"),
        ({"device": "nonsense"}, "device='nonsense' cannot be used here"),
        ({"threads": 0}, "threads=0 came; expected at least 1"),
        ({"max_tokens": 0}, "max_tokens=0 came; expected at least 1"),
        ({"max_tokens": 65}, "max_tokens=65 came; .* takes 64 tokens"),
        ({"batch_tokens": -1}, "batch_tokens=-1 came; expected at least 1"),
        ({"dim": 33}, "dim=33 was asked for, the model gives 32 dimensions"),
        ({"prompt_names": {"query": "web"}}, "no prompt named 'web'"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_is_refused(tiny_model: Path, setting: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        load(tiny_model, **setting)


def test_the_largest_settings_are_accepted(tiny_model: Path) -> None:
    encoder = load(tiny_model, max_tokens=64, dim=32)
    assert (encoder.max_tokens, encoder.dim) == (64, 32)
    assert (load(tiny_model, dim=1).dim, load(tiny_model, max_tokens=1, batch_tokens=1).max_tokens) == (1, 1)


def test_roberta_counts_its_positions_from_the_padding_index(plain_model: Path, tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaModel

    copy = shutil.copytree(plain_model, tmp_path / "roberta")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    RobertaModel(RobertaConfig(vocab_size=43, max_position_embeddings=66, pad_token_id=0, **sizes)).save_pretrained(
        copy
    )
    assert load(copy, max_tokens=65).encode("cat " * 100).shape == (1, 32)
    with pytest.raises(UsageError, match=r"max_tokens=66 came; .* takes 65 tokens"):
        load(copy, max_tokens=66)


@pytest.mark.parametrize("name", ["./missing", "a/b/c", "~/model"])
def test_a_path_that_is_not_there_is_refused_without_the_network(name: str, no_network: None) -> None:
    with pytest.raises(ModelError, match="There is no folder"):
        load(name)


def test_an_unknown_hub_id_is_one_sentence(no_network: None) -> None:
    with pytest.raises(
        ModelError, match=r"nobody/nothing cannot be opened: .* check its spelling and the network"
    ) as caught:
        load("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_a_folder_without_weights_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / "empty")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be opened"):
        load(copy)


def test_pickled_weights_are_not_read(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    copy = shutil.copytree(tiny_model, tmp_path / "pickled")
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="safetensors"):
        load(copy)


def test_code_of_a_repository_is_not_run(plain_model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(plain_model, tmp_path / "remote")
    (copy / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((copy / "config.json").read_text())
    config.update(model_type="evil", auto_map={"AutoConfig": "modeling_evil.Evil", "AutoModel": "modeling_evil.Evil"})
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError):
        load(copy)
    assert not (tmp_path / "ran").exists()


def test_bfloat16_is_measured_once() -> None:
    assert bfloat16_is_fast() is bfloat16_is_fast()
    assert bfloat16_is_fast.cache_info().misses == 1


@pytest.mark.parametrize(("half", "fast"), [(1.0, False), (0.84, False), (0.82, True), (100.0, False)])
def test_the_quicker_must_be_a_fifth_faster_at_its_best(
    half: float, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that each way moves on by its seconds, and some of them by ten times that."""
    clock, calls = [0.0], itertools.count(1)

    def way(seconds: float) -> Callable[[], None]:
        def run() -> None:
            clock[0] += seconds * (10 if next(calls) % 5 else 1)

        return run

    monkeypatch.setattr("embedkit.encoders.timing.time.perf_counter", lambda: clock[0])
    ways = {"float32": way(1.0), "bfloat16": way(half)}
    assert (quickest(ways, handicap=1.2) == "bfloat16") is fast


@pytest.mark.model
def test_the_default_model_is_opened_from_its_package_without_the_network(
    default_encoder: Any, no_network: None
) -> None:
    encoder = load()
    assert (encoder.name, encoder.dim, encoder.max_tokens, encoder.similarity, encoder.unit) == (
        DEFAULT_MODEL,
        384,
        256,
        "cosine",
        True,
    )
    assert load(DEFAULT_MODEL).fingerprint == encoder.fingerprint == default_encoder.fingerprint
    assert load("all-MiniLM-L6-v2").name == DEFAULT_MODEL


def test_weights_that_are_not_the_published_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"other")
    with pytest.raises(IntegrityError, match=r"is not the published .* expected 53aa51172d14"):
        check_weights(tmp_path / "model.safetensors")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default model as the hub's client lays it out, and no package beside it; gives the snapshot's folder."""
    folder = default_model_folder()
    if folder is None:
        pytest.skip("the default model's weights are not here (extra 'offline')")
    repository = tmp_path / "hub" / "models--sentence-transformers--all-MiniLM-L6-v2"
    commit = "c" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(folder, repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(default_model, "PACKAGE", "embedkit_no_such_package")
    return repository / "snapshots" / commit


@pytest.mark.model
def test_the_hub_cache_and_the_offline_package_agree(default_encoder: Any, hub_cache: Path, no_network: None) -> None:
    assert default_model_folder() == hub_cache
    assert load(dtype="float32").fingerprint == default_encoder.fingerprint


@pytest.mark.model
@pytest.mark.parametrize(
    "missing", ["modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "tokenizer.json"]
)
def test_a_partly_filled_cache_is_not_taken_for_the_model(hub_cache: Path, missing: str) -> None:
    (hub_cache / missing).unlink()
    assert default_model_folder() is None


@pytest.mark.model
def test_changed_weights_in_the_cache_are_refused(hub_cache: Path) -> None:
    with (hub_cache / "model.safetensors").open("r+b") as weights:
        weights.seek(1_000_000)
        weights.write(b"changed")
    with pytest.raises(IntegrityError, match="is not the published sentence-transformers/all-MiniLM-L6-v2"):
        load()


@pytest.mark.model
def test_the_package_comes_before_the_cache_and_is_not_imported(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "a_model_package" / "model"
    package.mkdir(parents=True)
    (package / "model.safetensors").hardlink_to(hub_cache / "model.safetensors")
    (package.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(default_model, "PACKAGE", "a_model_package")
    assert default_model_folder() == package


def test_a_folder_comes_before_the_default_model_of_the_same_name(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model, tmp_path / "sentence-transformers" / "all-MiniLM-L6-v2")
    shutil.copytree(tiny_model, tmp_path / "all-MiniLM-L6-v2")
    monkeypatch.chdir(tmp_path)
    for name in ("all-MiniLM-L6-v2", DEFAULT_MODEL):
        assert load(name).fingerprint == load(tiny_model).fingerprint


def test_an_empty_name_is_no_model() -> None:
    with pytest.raises(UsageError, match="An empty name came as model"):
        load("")


def test_a_full_disk_is_not_a_bad_model(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr("sentence_transformers.SentenceTransformer", full)
    with pytest.raises(OSError, match="No space left"):
        load(tiny_model, backend="torch")


@pytest.mark.long
@pytest.mark.parametrize("family", ["Bert", "Roberta", "MPNet", "DistilBert", "ModernBert", "Llama", "T5"])
@pytest.mark.filterwarnings("ignore")
def test_families_give_the_rows_of_sentence_transformers(family: str, plain_model: Path, tmp_path: Path) -> None:
    """Absolute, shifted, relative and rotary positions; mean pooling, and the last token for a causal model."""
    from sentence_transformers import SentenceTransformer

    copy = make_family(family, plain_model, tmp_path / family)
    texts = ["cat dog red", "", "red fish swim " * 30, "bird"]
    encoder = load(copy, dtype="float32")
    rows = encoder.encode(texts)
    expected = SentenceTransformer(str(copy), device="cpu").encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(rows, expected, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([encoder.encode(text) for text in texts]), rows, atol=1e-6)
    assert (load(copy, dtype="bfloat16").encode(texts) * rows).sum(axis=1).min() > 0.999


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "0123abc"])
def test_code_is_trusted_only_where_it_is_pinned(revision: str | None, no_network: None) -> None:
    with pytest.raises(UsageError, match="pin the code that is trusted: give the commit's 40 digits as revision"):
        load("somebody/something", revision=revision, trust_remote_code=True)


def test_trusted_code_is_run_and_the_trust_is_not_stored(plain_model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """An index keeps the settings that open its model again: opening it must not run code."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    copy = shutil.copytree(plain_model, tmp_path / "remote")
    (copy / "modeling_own.py").write_text(
        "from transformers import BertConfig, BertModel\nclass Own(BertModel): pass\n"
    )
    config = json.loads((copy / "config.json").read_text())
    config.update(auto_map={"AutoModel": "modeling_own.Own"})
    (copy / "config.json").write_text(json.dumps(config))
    encoder = load(copy, backend="torch", dtype="float32", trust_remote_code=True)
    assert type(encoder._opened.backend._model[0].auto_model).__name__ == "Own"
    assert "trust_remote_code" not in encoder.settings
    np.testing.assert_allclose(encoder.encode("cat"), load(plain_model, dtype="float32").encode("cat"), atol=1e-6)


@pytest.mark.parametrize("name", ["two words", "no body/no thing", "foo--bar/..baz", "x" * 200])
def test_a_name_that_the_hub_cannot_have_is_one_sentence(name: str, no_network: None) -> None:
    with pytest.raises(ModelError, match="cannot be opened"):
        load(name)


@pytest.mark.model
def test_weights_that_were_fetched_are_compared_with_the_published_ones(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the cache lacks a file that says whether it is whole."""
    (hub_cache / "tokenizer_config.json").unlink()
    with (hub_cache / "model.safetensors").open("r+b") as weights:
        weights.seek(1_000_000)
        weights.write(b"changed")
    assert default_model_folder() is None
    with pytest.raises(IntegrityError, match="is not the published"):
        load()


@pytest.mark.parametrize("before", [True, False])
def test_no_attention_of_cudnn_on_a_gpu(before: bool) -> None:
    """The switch is there without a GPU, too."""
    cudnn, switch = torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp
    kept = cudnn()
    switch(before)
    try:
        with attention_without_plans(torch.device("cuda")):
            assert not cudnn()
        with pytest.raises(KeyError), attention_without_plans(torch.device("cuda")):
            raise KeyError
        assert cudnn() == before
        with attention_without_plans(torch.device("cpu")):
            assert cudnn() == before
    finally:
        switch(kept)
