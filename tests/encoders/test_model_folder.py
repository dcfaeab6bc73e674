"""Folders of strangers: what is refused before any library reads them, each in one sentence that names the file.

Exit 4 throughout: a model that cannot be used, whichever of its files is to blame.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from embedkit.encoders.model_folder import check_fetched, check_folder
from embedkit.errors import ModelError
from embedkit.limits import CONFIG, PARTS

KNOWN = (
    "config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "model.safetensors",
    "1_Pooling/config.json",
)


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


def change(path: Path, changes: Any) -> None:
    if isinstance(changes, dict):
        changes = (json.loads(path.read_text()) if path.exists() else {}) | changes
    path.write_text(json.dumps(changes))


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        check_folder(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("sentence_bert_config.json", {"model_kwargs": {"device_map": {"": "disk"}}}, "model_kwargs.device_map = "),
        ("sentence_bert_config.json", {"model_args": {"offload_folder": "/x"}}, "model_args.offload_folder = '/x'"),
        ("sentence_bert_config.json", {"model_kwargs": {"weights_only": False}}, "model_kwargs.weights_only"),
        ("sentence_bert_config.json", {"model_kwargs": {"": 1}}, "sets model_kwargs. = 1"),
        ("sentence_bert_config.json", {"processor_kwargs": {"name_or_path": "a/b"}}, "processor_kwargs.name_or_path = 'a/b'"),
        ("sentence_bert_config.json", {"tokenizer_args": {"cache_dir": "."}}, "tokenizer_args.cache_dir"),
        ("sentence_bert_config.json", {"tokenizer_kwargs": {"vocab_file": "/x"}}, "tokenizer_kwargs.vocab_file"),
        ("sentence_bert_config.json", {"config_args": {"local_files_only": False}}, "config_args.local_files_only"),
        ("sentence_bert_config.json", {"config_kwargs": [1]}, r"config_kwargs is \[1\], not a mapping"),
        ("sentence_bert_config.json", {"tokenizer_name_or_path": "a/b"}, "tokenizer_name_or_path = 'a/b'"),
        ("sentence_bert_config.json", {"cache_dir": "."}, "sets cache_dir = '.'"),
        ("sentence_bert_config.json", {"model_kwargs": {"attn_implementation": "a/kernel"}}, "attn_implementation = 'a/kernel'"),
        ("sentence_bert_config.json", {"max_seq_length": "x"}, "max_seq_length is 'x', not a whole number"),
        ("sentence_bert_config.json", {"max_seq_length": -3}, "max_seq_length = -3; expected at least 1"),
        ("sentence_bert_config.json", {"processor_kwargs": {"model_max_length": 0}}, "model_max_length = 0"),
        ("sentence_roberta_config.json", {"max_seq_length": -3}, "max_seq_length = -3"),
        ("tokenizer_config.json", {"model_max_length": -7}, "model_max_length = -7"),
        ("tokenizer_config.json", {"model_max_length": "many"}, "model_max_length is 'many', not a number"),
        ("config_sentence_transformers.json", {"default_prompt_name": ["a"]}, r"default_prompt_name is \['a'\]"),
        ("config_sentence_transformers.json", {"prompts": {"query": 1}}, "prompts.query is 1, not a text"),
        ("config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers = 1,000,000,000; at most 1,000 are taken"),
        ("config.json", {"text_config": {"n_layer": PARTS + 1}}, "n_layer = 1,001"),
        ("config.json", {"depths": [2, 10**9]}, "depths = 1,000,000,000"),
        ("config.json", {"num_experts": 10**9}, "num_experts"),
        ("config.json", {"num_labels": 10**9}, "at most 1,000,000 are taken"),
        ("config.json", {"model_type": 3}, "model_type is 3, not a text"),
        ("config.json", {"attn_implementation": "a/kernel"}, "attn_implementation = 'a/kernel'"),
        ("config.json", {"transformers_weights": "x.bin"}, "names the weights 'x.bin'; expected safetensors"),
        ("config.json", [], r"config.json: .* is \[\], not a mapping"),
        ("modules.json", [{}], "0.path is missing"),
        ("modules.json", [{"path": "../x", "type": "y"}], r"names '../x' as the folder of a module"),
        ("modules.json", [{"path": "/etc", "type": "y"}], r"names '/etc' as the folder of a module"),
        ("router_config.json", {"types": {"..\\x": "y"}}, "as the folder of a module"),
        ("model.safetensors.index.json", {"weight_map": {"a": "../b"}}, "names the weights '../b'"),
    ],
    ids=str,
)  # fmt: skip
def test_a_setting_that_no_model_has_is_refused(folder: Path, file: str, changes: Any, said: str) -> None:
    check_folder(folder)
    change(folder / file, changes)
    assert re.search(f"{re.escape(file)}.*{said}|{said}", refused(folder))


@pytest.mark.parametrize("file", [name for name in KNOWN if name.endswith("config.json")] + ["modules.json"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is no JSON that can be read"),
        (b"[" * 100_000, "nested more than 50 levels"),
        (b'{"a": ' * 60 + b"1" + b"}" * 60, "nested more than 50 levels"),
        (b'{"a": 1' + b"0" * 10_000 + b"}", "is no JSON that can be read"),
        (b'{"a": "\xff"}', "is no JSON that can be read"),
    ],
    ids=["torn", "deep", "deep mapping", "long number", "not UTF-8"],
)
def test_json_that_cannot_be_read_is_refused(folder: Path, file: str, content: bytes, said: str) -> None:
    (folder / file).write_bytes(content)
    message = refused(folder)
    assert file in message and said in message


@pytest.mark.parametrize("file", KNOWN)
@pytest.mark.parametrize(("kind", "said"), [("pipe", "is a pipe"), ("device", "is a device")])
def test_what_is_no_regular_file_is_refused_without_waiting(folder: Path, file: str, kind: str, said: str) -> None:
    (folder / file).unlink()
    if kind == "pipe":
        os.mkfifo(folder / file)
    else:
        (folder / file).symlink_to("/dev/zero")
    message = refused(folder)
    assert file in message and said in message


def test_a_huge_config_is_refused_unread(folder: Path) -> None:
    os.truncate(folder / "tokenizer_config.json", CONFIG + 1)
    assert f"has more than {CONFIG:,} bytes" in refused(folder)


def test_a_dense_layer_larger_than_its_weights_is_refused(folder: Path) -> None:
    """Its module takes the memory before it reads the weights."""
    import numpy as np
    from safetensors.numpy import save_file

    dense = folder / "2_Dense"
    dense.mkdir()
    change(
        folder / "modules.json",
        [*json.loads((folder / "modules.json").read_text()), {"path": "2_Dense", "type": "Dense"}],
    )
    save_file(
        {"linear.weight": np.zeros((8, 32), np.float32), "linear.bias": np.zeros(8, np.float32)},
        dense / "model.safetensors",
    )
    change(dense / "config.json", {"in_features": 32, "out_features": 8})
    check_folder(folder)
    change(dense / "config.json", {"in_features": 10**6, "out_features": 10**6})
    assert "describes weights of 1,000,000 x 1,000,000 and model.safetensors holds 264" in refused(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"model_args": {"add_pooling_layer": False, "trust_remote_code": True}, "max_seq_length": None},
        {"model_kwargs": {"attn_implementation": "sdpa", "torch_dtype": "bfloat16"}, "do_lower_case": True},
        {"processor_kwargs": {"padding_side": "left", "max_pixels": 1000}, "config_kwargs": {"use_cache": False}},
    ],
)
def test_what_a_folder_may_set_passes(folder: Path, settings: dict[str, Any]) -> None:
    change(folder / "sentence_bert_config.json", settings)
    change(folder / "tokenizer_config.json", {"model_max_length": int(1e30)})
    (folder / "results.json").write_text("{")  # of somebody else
    (folder / "best.model").mkdir()
    check_folder(folder)


def test_an_adapter_of_a_model_that_is_not_here_is_refused(folder: Path) -> None:
    change(folder / "adapter_config.json", {"base_model_name_or_path": "attacker/base"})
    assert "is an adapter of the model 'attacker/base', which is not on this machine" in refused(folder)


def test_the_folder_of_an_adapters_base_is_checked_too(folder: Path, plain_model: Path, tmp_path: Path) -> None:
    base = shutil.copytree(plain_model, tmp_path / "base")
    change(folder / "adapter_config.json", {"base_model_name_or_path": str(base)})
    check_folder(folder)
    (base / "config.json").unlink()
    os.mkfifo(base / "config.json")
    assert f"{base / 'config.json'} is a pipe" in refused(folder)


def test_settings_of_the_hub_are_looked_at_before_the_weights_come(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(
        folder / "adapter_config.json", {"base_model_name_or_path": "some/base"}
    )  # which may be fetched, like the adapter
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: asked.append((a, k)) or str(folder))
    check_fetched("some/model", "main")
    assert asked == [(("some/model",), {"revision": "main", "allow_patterns": "*.json"})]
    change(folder / "sentence_bert_config.json", {"model_kwargs": {"offload_folder": "x"}})
    with pytest.raises(ModelError, match="offload_folder"):
        check_fetched("some/model", "main")
