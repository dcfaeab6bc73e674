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


@pytest.mark.model
def test_a_hub_folder_and_the_offline_package_of_one_model_agree(default_encoder: Any, tmp_path: Path) -> None:
    from embedkit.encoders.default_model import default_model_folder

    folder = default_model_folder()
    assert folder is not None
    hub = shutil.copytree(folder, tmp_path / "models--sentence-transformers--all-MiniLM-L6-v2")
    for extra in ("data_config.json", ".gitattributes", "README.md", "vocab.txt"):  # what a copy need not have
        (hub / extra).unlink(missing_ok=True)
    assert load(hub).fingerprint == default_encoder.fingerprint


@pytest.mark.model
def test_saving_the_default_model_again_keeps_it(default_encoder: Any, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    from embedkit.encoders.default_model import default_model_folder

    SentenceTransformer(str(default_model_folder()), device="cpu").save_pretrained(
        str(tmp_path / "again"), create_model_card=False
    )
    assert load(tmp_path / "again").fingerprint == default_encoder.fingerprint
