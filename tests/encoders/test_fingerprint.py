"""A fingerprint names the vector space: the same for what does not change a row, another for what does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedkit.encoders import load


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> str:
    return load(tiny_model).fingerprint


@pytest.mark.parametrize(
    "setting",
    [
        {"batch_tokens": 7},
        {"dtype": "float32"},
        {"dtype": "bfloat16"},
        {"dtype": "float16"},
        {"threads": 1},
        {"device": "cpu"},
        {"backend": "torch"},
    ],
    ids=str,
)
def test_it_is_the_same_however_the_rows_are_computed(
    tiny_model: Path, reference: str, setting: dict[str, Any]
) -> None:
    assert load(tiny_model, **setting).fingerprint == reference


def test_it_is_the_same_at_another_path(tiny_model: Path, reference: str, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / "elsewhere")
    assert load(copy).fingerprint == reference


def test_it_is_the_same_for_the_same_weights_in_several_files(tiny_model: Path, reference: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(tiny_model, tmp_path / "sharded")
    tensors = load_file(copy / "model.safetensors")
    halves = {"a": sorted(tensors)[::2], "b": sorted(tensors)[1::2]}
    places = {}
    for half, names in halves.items():
        file = f"model-{half}.safetensors"
        save_file({name: tensors[name] for name in names}, copy / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(names, file))
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (copy / "model.safetensors").unlink()
    assert load(copy).fingerprint == reference


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"pooling": "cls"}, {"prompts": {"query": "query: "}}, {"similarity": "dot"}], ids=str
)
def test_it_differs_for_another_model(make_model: Callable[..., Path], reference: str, change: dict[str, Any]) -> None:
    assert load(make_model(**change)).fingerprint != reference


def test_the_norm_is_in_it(make_model: Callable[..., Path]) -> None:
    assert (
        load(make_model(similarity="dot", normalize=False)).fingerprint
        != load(make_model(similarity="dot")).fingerprint
    )


@pytest.mark.parametrize(
    "setting",
    [{"dim": 16}, {"max_tokens": 16}, {"prompts": {"query": "query: "}}, {"prompts": {"document": "query: "}}],
    ids=str,
)
def test_it_differs_for_settings_that_change_a_row(tiny_model: Path, reference: str, setting: dict[str, Any]) -> None:
    assert load(tiny_model, **setting).fingerprint != reference


def test_the_config_is_in_it(tiny_model: Path, reference: str, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / "other")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    assert load(copy).fingerprint != reference


def test_the_tokenizer_is_in_it(tiny_model: Path, reference: str, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / "cased")
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "do_lower_case": False}))
    assert load(copy).fingerprint != reference


def test_what_no_row_depends_on_is_not_in_it(tiny_model: Path, reference: str, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / "dropout")
    config = json.loads((copy / "config.json").read_text())
    config.update(hidden_dropout_prob=0.3, initializer_range=0.5, id2label={"0": "x"}, label2id={"x": 0})
    (copy / "config.json").write_text(json.dumps(config))
    assert load(copy).fingerprint == reference


@pytest.mark.model
def test_that_of_the_default_model_is_known(default_encoder: Any) -> None:
    """Pinned: a library that changes it would make every index refuse its own model."""
    assert default_encoder.fingerprint == "f04f3e6b9bf08e0a6d668b83edda5a1f400299cfae48cd991f11b93a2ae06983"


@pytest.mark.model
def test_saving_the_default_model_again_keeps_it(default_encoder: Any, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    from embedkit.encoders.default_model import default_model_folder

    SentenceTransformer(str(default_model_folder()), device="cpu").save_pretrained(
        str(tmp_path / "again"), create_model_card=False
    )
    assert load(tmp_path / "again").fingerprint == default_encoder.fingerprint
