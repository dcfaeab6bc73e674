"""Runs of the trainer on a tiny BERT."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedkit.errors import UsageError
from embedkit.recipe import fill
from embedkit.train.settings import TrainingRecipe
from embedkit.train.trainer import learning_rate, train
from tests.conftest import WORDS


def rows(count: int = 40) -> list[dict[str, str]]:
    generator = np.random.default_rng(0)

    def text() -> str:
        return " ".join(generator.choice(WORDS[:9], size=int(generator.integers(2, 9))))

    anchors = list(dict.fromkeys(text() for _ in range(count)))
    return [
        {"anchor": one, "positive": " ".join(reversed(one.split())), "negative": f"query {text()}"} for one in anchors
    ]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows())))
    return path


@pytest.fixture
def recipe(tiny_model: Path, pairs: Path) -> Callable[..., TrainingRecipe]:
    def make(precision: str = "float32", **stage: Any) -> TrainingRecipe:
        plain = {
            "data": [{"path": str(pairs)}],
            "loss": [{"name": "info_nce", "temperature": 0.1}],
            "batch": {"size": 8, "negatives": 1, "tokens": 64},
            "optimizer": {"lr": 1e-3},
            "steps": 6,
            "checkpoint_every": 3,
        }
        return fill(TrainingRecipe, {"model": str(tiny_model), "precision": precision, "stages": [{**plain, **stage}]})

    return make


def log_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def weights_of(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


class Killed(Exception):
    pass


def test_the_loss_falls_and_the_folder_opens(recipe: Any, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    import embedkit

    folder = train(recipe(steps=30), tmp_path / "run")
    losses = [line["loss"] for line in log_of(tmp_path / "run")]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    texts = [row["anchor"] for row in rows(5)]
    ours = embedkit.load(folder, dtype="float32", backend="torch").encode(texts)
    theirs = SentenceTransformer(str(folder), device="cpu").encode(texts)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert (folder / "recipe.yaml").read_text().startswith("# hash: ")
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    assert train(recipe(steps=30), tmp_path / "run", resume=True) == folder
    with pytest.raises(UsageError, match="holds a run already"):
        train(recipe(steps=30), tmp_path / "run")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_stopped_and_resumed_is_never_stopped(
    recipe: Any, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout is on. Killed at step 5, after the checkpoint of step 3."""
    from embedkit.train.trainer import Run

    chosen = recipe(
        precision, loss=[{"name": "info_nce", "temperature": 0.1, "learn_temperature": True, "mixing": "both"}]
    )
    train(chosen, tmp_path / "whole")
    step = Run._step

    def dying(self: Run, *arguments: Any) -> Any:
        if self.at.step == 5:
            raise Killed
        return step(self, *arguments)

    monkeypatch.setattr(Run, "_step", dying)
    with pytest.raises(Killed):
        train(chosen, tmp_path / "stopped")
    monkeypatch.undo()
    assert len(log_of(tmp_path / "stopped")) == 5
    train(chosen, tmp_path / "stopped", resume=True)
    assert log_of(tmp_path / "stopped") == log_of(tmp_path / "whole")
    assert weights_of(tmp_path / "stopped") == weights_of(tmp_path / "whole")


def test_learning_rates() -> None:
    from embedkit.train.settings import Optimizer

    rates = [learning_rate(Optimizer(lr=1.0, warmup=0.2), step, 10) for step in range(10)]
    np.testing.assert_allclose(rates, [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert learning_rate(Optimizer(lr=1.0, warmup=0, schedule="cosine"), 5, 10) == pytest.approx(0.5)
    assert torch.get_default_dtype() == torch.float32
