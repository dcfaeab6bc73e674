"""Which prompts a task is trained with, and which the trained model stores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import embedkit
from embedkit.train.plan import plan
from embedkit.train.prompts import prompts_of, with_prompts
from embedkit.train.settings import Batch, Data, Loss, Stage, TrainingRecipe
from embedkit.train.trainer import Run, train

PLAIN: dict[str, str] = {"query": "", "document": ""}
E5 = {"query": "query: ", "passage": "passage: "}


def model(prompts: dict[str, str], default: str | None = None) -> Any:
    return SimpleNamespace(prompts=dict(prompts), default_prompt_name=default)


def stage(*prompts: tuple[str | None, str | None]) -> Stage:
    data = tuple(Data("p", query_prompt=query, document_prompt=document) for query, document in prompts)
    return Stage(data, (Loss("info_nce"),), 1)


@pytest.mark.parametrize(
    ("stored", "default", "asked", "kept"),
    [
        (PLAIN, None, (None, None), ("", "")),
        (PLAIN, None, ("q: ", "d: "), ("q: ", "d: ")),
        (PLAIN, None, ("q: ", None), ("q: ", "")),
        (E5, None, (None, None), ("query: ", "passage: ")),
        (E5, None, ("q: ", None), ("q: ", "passage: ")),
        (E5, None, (None, ""), ("query: ", "")),
        ({"one": "1: "}, "one", (None, None), ("1: ", "1: ")),
        ({"one": "1: "}, "one", ("", None), ("", "1: ")),
        ({**E5, "one": "1: "}, "one", ("", ""), ("", "")),
    ],
)
def test_what_a_task_is_trained_with_is_what_the_model_stores(
    stored: dict[str, str], default: str | None, asked: tuple[str | None, str | None], kept: tuple[str, str]
) -> None:
    one = model(stored, default)
    (task,) = with_prompts(stage(asked), one).data
    assert (task.query_prompt, task.document_prompt) == kept
    assert tuple(prompts_of(one).values()) == kept
    (again,) = with_prompts(stage((None, None)), one).data  # of the next stage
    assert (again.query_prompt, again.document_prompt) == kept


def test_what_is_as_the_model_has_it_changes_nothing() -> None:
    one = model({**E5, "sts": "alike: "}, "sts")
    with_prompts(stage((None, "passage: ")), one)
    assert (one.prompts, one.default_prompt_name) == ({**E5, "sts": "alike: "}, "sts")


def test_tasks_of_different_prompts_leave_the_model_its_own_and_are_told(caplog: pytest.LogCaptureFixture) -> None:
    one = model(E5)
    first, second = with_prompts(stage(("q: ", "d: "), (None, None)), one).data
    assert (first.query_prompt, second.query_prompt, second.document_prompt) == ("q: ", "query: ", "passage: ")
    assert one.prompts == E5
    assert [record.getMessage() for record in caplog.records] == [
        "The tasks of train have different prompts; eval, index and search will use the model's own, 'query: ' for queries and "
        "'passage: ' for documents."
    ]


def test_the_trained_folder_stores_them_a_resumed_one_as_well(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second stage says nothing; the run dies in it, and the first is not run again."""
    (tmp_path / "pairs.jsonl").write_text(
        "".join(f'{{"anchor": "{one}", "positive": "dog {one}"}}\n' for one in "abcd")
    )
    data = Data(str(tmp_path / "pairs.jsonl"), query_prompt="query : ", document_prompt="cat ")
    first = Stage((data,), (Loss("info_nce"),), steps=1, batch=Batch(size=2))
    second = replace(first, name="second", data=(Data(data.path),))
    recipe = TrainingRecipe(str(tiny_model), (first, second))
    shown = [stage["batches"][0][0]["anchor"] for stage in plan(recipe, "cpu")["stages"]]
    assert all(one.startswith("query : ") for one in shown)

    def dies(run: Run) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "_publish", dies)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", device="cpu")
    monkeypatch.undo()
    folder = train(recipe, tmp_path / "run", device="cpu", resume=True)
    stored = json.loads((folder / "config_sentence_transformers.json").read_text())["prompts"]
    assert stored == {"query": "query : ", "document": "cat "}
    bare = embedkit.load(folder, prompts={"query": "", "document": ""}, device="cpu", dtype="float32")
    ours = embedkit.load(folder, device="cpu", dtype="float32")
    np.testing.assert_allclose(ours.encode(["a"], kind="query"), bare.encode(["query : a"]), atol=1e-5)
