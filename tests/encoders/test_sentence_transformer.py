"""What sentence-transformers opens: weights that are whole, and no request where a folder is named."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from embedkit.encoders import load
from embedkit.encoders.hub_cache import offline
from embedkit.encoders.sparse_encoder import load_sparse
from embedkit.errors import ModelError

from ..conftest import make_family
from .test_model_files import edit, resaved


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Attempts to reach another host, each refused; an exception alone would be taken for the model's."""
    made: list[Any] = []

    def refuse(*asked: Any, **_: Any) -> None:
        made.append(asked)
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield made


@pytest.fixture
def adapter(plain_model: Path, tmp_path: Path) -> Path:
    """A LoRA adapter of `plain_model`, with random weights."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    torch.manual_seed(0)
    base = AutoModel.from_pretrained(plain_model)
    model = get_peft_model(base, LoraConfig(r=2, lora_alpha=400, target_modules=["value"], init_lora_weights=False))
    model.save_pretrained(str(tmp_path / "adapter"))
    for file in plain_model.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_a_folder_asks_the_hub_for_nothing(tiny_model: Path, backend: str, requests: list[Any]) -> None:
    from huggingface_hub import constants

    load(tiny_model, backend=backend).encode("cat")
    assert requests == [] and constants.HF_HUB_OFFLINE is False  # as it was before


def test_nor_does_an_adapter_whose_base_lies_beside_it(adapter: Path, plain_model: Path, requests: list[Any]) -> None:
    rows = load(adapter, dtype="float32").encode(["cat dog"])
    assert requests == []
    assert float(rows[0] @ load(plain_model, dtype="float32").encode(["cat dog"])[0]) < 0.9999  # the adapter is in them


@pytest.mark.parametrize("opener", [load, load_sparse])
def test_nor_what_names_the_hub_inside_a_folder(
    tiny_model: Path, tmp_path: Path, opener: Callable[..., Any], requests: list[Any]
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    edit(folder / "adapter_config.json", base_model_name_or_path="attacker/base", peft_type="LORA")
    with pytest.raises(ModelError, match="adapter of the model 'attacker/base'"):
        opener(folder)
    (folder / "adapter_config.json").unlink()
    edit(folder / "sentence_bert_config.json", tokenizer_name_or_path="attacker/tokenizer")
    with pytest.raises(ModelError, match="tokenizer_name_or_path"):
        opener(folder)
    assert requests == []


@pytest.mark.parametrize("opener", [load, load_sparse])
def test_nor_a_name_that_is_only_looked_for_here(opener: Callable[..., Any], requests: list[Any]) -> None:
    with pytest.raises(ModelError, match="nobody/nothing is not on this machine"):
        opener("nobody/nothing", local_files_only=True)
    assert requests == []


def test_a_request_would_be_seen(requests: list[Any]) -> None:
    from huggingface_hub import constants, get_session

    with pytest.raises(Exception, match="no network"):
        get_session().get(constants.ENDPOINT)
    with offline(), pytest.raises(OfflineModeIsEnabled):
        get_session().get(constants.ENDPOINT)
    assert len(requests) == 1


def test_weights_that_are_missing_are_named(plain_model: Path, tmp_path: Path) -> None:
    """transformers would draw them at random, anew at each load."""
    folder = shutil.copytree(plain_model, tmp_path / "model")
    edit(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(
        ModelError, match=r"weights lack encoder\.layer\.2\.\S+, .* and 13 more, which would be drawn at random"
    ):
        load(folder)
    edit(folder / "config.json", num_hidden_layers=2)
    resaved(folder, **{"pooler.dense.weight": None, "pooler.dense.bias": None})
    load(folder, backend="torch")  # no row depends on them


@pytest.mark.parametrize("family", ["DistilBert", "Llama", "T5"])
def test_of_other_families_too(plain_model: Path, tmp_path: Path, family: str) -> None:
    from safetensors.numpy import load_file

    folder = make_family(family, plain_model, tmp_path / "model")
    whole = load(folder, backend="torch", dtype="float32").encode(
        "cat"
    )  # a decoder's head, tied or unused, is left alone
    assert np.isfinite(whole).all()
    stored = load_file(folder / "model.safetensors")
    name = next(
        name for name in sorted(stored) if re.search(r"(lin1|mlp.up_proj|encoder.*DenseReluDense.wi)\.weight", name)
    )
    resaved(folder, **{name: stored[name][1:]})
    with pytest.raises(ModelError, match=r"is stored as \(63, 32\) and the config makes it \(64, 32\)"):
        load(folder)
    resaved(folder, **{name: None})
    with pytest.raises(ModelError, match=r"weights lack .*drawn at random"):
        load(folder)


def test_an_adapter_without_its_weights_is_refused(adapter: Path) -> None:
    """It would be its base in silence."""
    (adapter / "adapter_model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(ModelError, match=r"weights lack \S+lora_A"):
        load(adapter)


def test_a_model_of_more_than_its_weights_takes_no_memory(plain_model: Path, tmp_path: Path) -> None:
    """A billion columns are refused before any of them is allocated."""
    folder = make_family("DistilBert", plain_model, tmp_path / "model")
    edit(folder / "config.json", hidden_dim=10**9)
    with pytest.raises(ModelError, match=r"is stored as \(64,\) and the config makes it \(1000000000,\)"):
        load(folder)


def test_no_limit_of_positions_is_no_limit(plain_model: Path, tmp_path: Path) -> None:
    """XLNet says -1."""
    import transformers

    folder = shutil.copytree(plain_model, tmp_path / "model")
    config = transformers.XLNetConfig(vocab_size=43, d_model=32, n_layer=1, n_head=4, d_inner=64, pad_token_id=0)
    transformers.XLNetModel(config).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text()).get("max_position_embeddings", -1) == -1
    edit(folder / "tokenizer_config.json", model_max_length=int(1e30), tokenizer_class="BertTokenizer")
    encoder = load(folder, backend="torch")
    assert encoder.max_tokens is None and encoder.encode("cat dog").shape == (1, 32)
