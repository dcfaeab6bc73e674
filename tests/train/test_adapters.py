"""A folder with a LoRA adapter: the adapter is trained, its base is not."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import embedkit
from embedkit.errors import ModelError
from embedkit.train.adapters import with_trained_weights
from embedkit.train.settings import Batch, Data, Loss, Optimizer, Stage, TrainingRecipe
from embedkit.train.trainer import Run, train

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the tiny model, with numbers that change its rows."""
    peft = pytest.importorskip("peft")
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tiny_model), device="cpu")
    model.add_adapter(
        peft.LoraConfig(target_modules=["query", "value"], r=2, lora_alpha=4, init_lora_weights=False, lora_dropout=0.1)
    )
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


def test_the_adapter_is_trained_and_resumed_to_the_bit(
    adapter: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pairs.jsonl").write_text(
        "".join(f'{{"anchor": "{one}", "positive": "dog {one}"}}\n' for one in "abcd")
    )
    stage = Stage(
        (Data(str(tmp_path / "pairs.jsonl")),),
        (Loss("info_nce"),),
        steps=2,
        batch=Batch(size=2),
        optimizer=Optimizer(lr=0.01),
        checkpoint_every=1,
    )
    recipe = TrainingRecipe(str(adapter), (stage,))
    base = (tiny_model / "model.safetensors").read_bytes()
    with caplog.at_level(logging.INFO, "embedkit"):
        whole = train(recipe, tmp_path / "whole", device="cpu")
    assert f"{adapter} is an adapter, which alone is trained: " in caplog.text
    before, after = load_file(adapter / "adapter_model.safetensors"), load_file(whole / "adapter_model.safetensors")
    assert set(before) == set(after)
    assert all((before[name] != after[name]).any() for name in before)
    assert not (whole / "model.safetensors").exists()
    assert (tiny_model / "model.safetensors").read_bytes() == base

    def dies(run: Run, *arguments: Any) -> Any:
        if run.at.step == 1:
            raise KeyboardInterrupt
        return step(run, *arguments)

    step = Run._step
    monkeypatch.setattr(Run, "_step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "stopped", device="cpu")
    monkeypatch.undo()
    resumed = train(recipe, tmp_path / "stopped", device="cpu", resume=True)
    weights = [(one / "adapter_model.safetensors").read_bytes() for one in (whole, resumed)]
    assert weights[0] == weights[1]
    rows = [embedkit.load(one, device="cpu", dtype="float32").encode(["cat dog"]) for one in (adapter, whole)]
    assert np.abs(rows[0] - rows[1]).max() > 1e-4


def test_a_model_of_which_nothing_can_be_trained_is_refused() -> None:
    import torch

    with pytest.raises(ModelError, match="frozen has no weights that can be trained"):
        with_trained_weights(torch.nn.Linear(2, 2).requires_grad_(False), "frozen")
