"""The first layers of a model alone: the rows of the whole model's states at that layer, in every family and backend."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import embedkit
from embedkit.encoders import load
from embedkit.encoders.default_model import default_model_folder
from embedkit.encoders.layers import keep_layers
from embedkit.encoders.model_files import read_model_files
from embedkit.errors import ModelMismatch, UsageError

from ..conftest import make_family

TEXTS = ["cat dog red", "", "red fish swim " * 30, "bird"]
NORMS = {"ModernBert": "final_norm", "Llama": "norm", "Qwen3": "norm", "T5": "final_layer_norm"}  # after the last layer


def rows_at(folder: Path, layers: int, norm: str | None = None, *, last: bool = False, tokens: int = 64) -> np.ndarray:
    """Unit rows by hand: the states of the whole model after so many layers, the family's last norm, the mean over tokens (or
    the last token's), one text at a time."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    rows = []
    for text in TEXTS:
        inputs = tokenizer(text, truncation=True, max_length=tokens, return_tensors="pt")
        with torch.inference_mode():
            read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            states = model(**read, output_hidden_states=True).hidden_states[layers]
            states = model.get_submodule(norm)(states) if norm else states
        row = states[0, -1] if last else states[0].mean(dim=0)
        rows.append((row / row.norm()).numpy())
    return np.stack(rows)


@pytest.mark.long
@pytest.mark.parametrize("family", ["Bert", "Roberta", "MPNet", "DistilBert", "ModernBert", "Llama", "Qwen3", "T5"])
@pytest.mark.filterwarnings("ignore")
def test_the_rows_are_those_of_the_whole_models_states_at_that_layer(
    family: str, plain_model: Path, tmp_path: Path
) -> None:
    folder = make_family(family, plain_model, tmp_path / family, layers=3)
    expected, other = (rows_at(folder, layers, NORMS.get(family), last=family == "Llama") for layers in (2, 1))
    assert abs(other - expected).max() > 1e-3
    fingerprints = set()
    for backend in ("auto", "torch"):
        encoder = load(folder, layers=2, dtype="float32", backend=backend)
        np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-6)
        fingerprints.add(encoder.fingerprint)
    assert len(fingerprints) == 1


@pytest.mark.model
@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_half_of_the_default_model_is_half_of_it(backend: str, default_encoder: Any) -> None:
    pytest.importorskip(backend)
    folder = default_model_folder()
    assert folder is not None
    encoder = load(layers=3, dtype="float32", backend=backend)
    np.testing.assert_allclose(encoder.encode(TEXTS), rows_at(folder, 3, tokens=256), atol=1e-6)
    assert encoder.fingerprint != default_encoder.fingerprint == load(layers=6).fingerprint


@pytest.mark.parametrize("family", ["Bert", "Qwen3"])
def test_the_space_is_that_of_a_model_saved_with_so_many_layers(family: str, plain_model: Path, tmp_path: Path) -> None:
    """Read as files, and opened by sentence-transformers: the fingerprint says what is computed, not how it came about."""
    from transformers import AutoModel

    folder = make_family(family, plain_model, tmp_path / "whole", layers=3)
    saved = shutil.copytree(folder, tmp_path / "cut")
    AutoModel.from_pretrained(folder, num_hidden_layers=2, **cut_types(folder, 2)).save_pretrained(saved)
    one, two, same = (load(path, layers=n, backend="torch") for path, n in ((folder, 1), (folder, 2), (saved, None)))
    assert one.fingerprint != two.fingerprint == same.fingerprint
    np.testing.assert_array_equal(two.encode(TEXTS), same.encode(TEXTS))


def cut_types(folder: Path, layers: int) -> dict[str, Any]:
    types = json.loads((folder / "config.json").read_text()).get("layer_types")
    return {"layer_types": types[:layers]} if types else {}


def test_only_the_layers_asked_for_are_read(tiny_model: Path) -> None:
    files, whole = read_model_files(tiny_model, 1), read_model_files(tiny_model, 2)
    assert files is not None and whole is not None
    assert (files.cut, whole.cut) == (True, False)
    left = {name for name in whole.tensors if not name.startswith("encoder.layer.1.")}
    assert files.tensors.keys() == left
    for name in left:
        np.testing.assert_array_equal(files.tensors[name], whole.tensors[name])


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_heads_after_the_transformer_stay(backend: str, plain_model: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

    modules = [Transformer(str(plain_model), max_seq_length=32), Pooling(32, "mean"), Dense(32, 16)]
    model = SentenceTransformer(modules=modules, device="cpu")
    model.save_pretrained(str(tmp_path / "dense"), create_model_card=False)
    by_hand: Any = model[0].auto_model
    by_hand.encoder.layer = by_hand.encoder.layer[:1]
    encoder = load(tmp_path / "dense", layers=1, dtype="float32", backend=backend)
    np.testing.assert_allclose(encoder.encode(TEXTS), model.encode(TEXTS, normalize_embeddings=True), atol=1e-6)


def test_the_second_way_in_float32_is_cut_as_well(tiny_model: Path) -> None:
    """The one that is taken where a row is no number."""
    encoder = load(tiny_model, layers=1, dtype="bfloat16", backend="torch")
    again: Any = encoder._in_float32()
    assert len(again._model[0].auto_model.encoder.layer) == 1


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("layers", [-1, 0, 3])
def test_layers_that_the_model_does_not_have_are_refused(tiny_model: Path, layers: int, backend: str) -> None:
    with pytest.raises(UsageError, match=rf"layers={layers} came; the model has 2 layers: choose 1 to 2\."):
        load(tiny_model, layers=layers, backend=backend)


def test_a_model_without_layers_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    static = StaticEmbedding(tokenizer, embedding_dim=8)
    SentenceTransformer(modules=[static], device="cpu").save_pretrained(str(tmp_path), create_model_card=False)
    with pytest.raises(UsageError, match=r"layers=1 came; .* has no list of transformer layers to cut"):
        load(tmp_path, layers=1)


def test_two_towers_are_refused() -> None:
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**tower, "image_size": 4, "patch_size": 2}
    clip = CLIPModel(CLIPConfig(text_config={**tower, "vocab_size": 9}, vision_config=vision, projection_dim=8))
    with pytest.raises(UsageError, match="layers=1 came; clip has no list of transformer layers to cut"):
        keep_layers([SimpleNamespace(auto_model=clip)], 1, "clip")


def test_layers_that_share_their_weights_are_refused(plain_model: Path, tmp_path: Path) -> None:
    """ALBERT runs one layer again and again: there is no list to cut."""
    from transformers import AlbertConfig, AlbertModel

    sizes = {"hidden_size": 32, "embedding_size": 8, "num_attention_heads": 4, "intermediate_size": 64}
    folder = shutil.copytree(plain_model, tmp_path / "albert")
    AlbertModel(AlbertConfig(vocab_size=43, num_hidden_layers=4, **sizes)).save_pretrained(folder)
    with pytest.raises(UsageError, match="has no list of transformer layers to cut"):
        load(folder, layers=2)


@pytest.mark.filterwarnings("ignore")
def test_tables_as_wide_as_all_layers_are_refused(plain_model: Path, tmp_path: Path) -> None:
    """Gemma 3n embeds each token once more for every layer, in one table."""
    folder = make_family("Gemma3nText", plain_model, tmp_path / "gemma")
    with pytest.raises(UsageError, match=r"layers=1 came; .* does not run without its other layers \(.*\): leave"):
        load(folder, layers=1)


def test_a_pooling_over_all_layers_is_refused(plain_model: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer, WeightedLayerPooling

    transformer = Transformer(str(plain_model), config_kwargs={"output_hidden_states": True})
    modules = [transformer, WeightedLayerPooling(32, num_hidden_layers=2, layer_start=1), Pooling(32, "mean")]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(tmp_path), create_model_card=False)
    with pytest.raises(UsageError, match=r"layers=1 came; .* reads the states of all its 2 layers"):
        load(tmp_path, layers=1)
    assert load(tmp_path, layers=2).fingerprint == load(tmp_path).fingerprint


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_cut_model_says_so_once(tiny_model: Path, backend: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load(tiny_model, layers=2, backend=backend)
        assert not caplog.records
        load(tiny_model, layers=1, backend=backend)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tiny_model} stops after layers=1: the rows of a model that was not trained to be cut are usually poor."
    ]


@pytest.mark.parametrize("loss", ["AdaptiveLayerLoss", "Matryoshka2dLoss"])
def test_a_model_that_was_trained_to_be_cut_says_nothing(
    loss: str, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """sentence-transformers writes the losses into the tags of a model's card."""
    copy = shutil.copytree(tiny_model, tmp_path / "trained")
    (copy / "README.md").write_text(f"---\ntags:\n- sentence-transformers\n- loss:{loss}\n---\n# A model\n")
    with caplog.at_level(logging.WARNING):
        load(copy, layers=1)
    assert not caplog.records


def test_the_settings_open_the_cut_model_again(tiny_model: Path) -> None:
    encoder = load(tiny_model, layers=1, dim=8)
    assert encoder.settings == {"model": str(tiny_model), "dim": 8, "layers": 1}
    assert load(**encoder.settings).fingerprint == encoder.fingerprint


def test_embed_takes_layers(tiny_model: Path) -> None:
    rows = embedkit.embed(TEXTS, tiny_model, layers=1, dim=8, dtype="float32")
    np.testing.assert_array_equal(rows, load(tiny_model, layers=1, dim=8, dtype="float32").encode(TEXTS))
    with pytest.raises(UsageError, match="layers came beside a model that is loaded already"):
        embedkit.embed(TEXTS, load(tiny_model), layers=1)


def test_an_index_opens_the_cut_model_by_itself(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"_id": f"d{i}", "text": text} for i, text in enumerate(["cat dog", "red fish swim", "bird", "blue run"])]
    encoder = load(tiny_model, layers=1)
    embedkit.build_index(rows, tmp_path / "cut.index", model=encoder).close()
    with embedkit.open_index(tmp_path / "cut.index") as index:
        hits = index.search("red cat", k=4)
        assert index.encoder().fingerprint == encoder.fingerprint
    scores = encoder.encode([row["text"] for row in rows]) @ encoder.encode("red cat")[0]
    assert hits.ids == [[f"d{i}" for i in np.argsort(-scores)]]
    with embedkit.open_index(tmp_path / "cut.index", load(tiny_model)) as index, pytest.raises(ModelMismatch):
        index.search("red cat")
