"""What a recipe will do, found by doing a little of it: the data are read, three batches made, two steps timed."""

from __future__ import annotations

import resource
import sys
import time
from itertools import islice
from typing import Any

import torch

from embedkit.train.batches import Batch, BatchStream
from embedkit.train.data import Task
from embedkit.train.gather import world
from embedkit.train.prompts import prompts_of, with_prompts
from embedkit.train.settings import Stage, TrainingRecipe
from embedkit.train.step import Step
from embedkit.train.trainer import (
    open_model,
    precision_of,
    read_stage,
    row_maker,
    seed_step,
    teachers_of,
    temperatures_of,
)

BATCHES, SHOWN = 3, 2
OPTIMIZER_BYTES = 8  # a weight: AdamW's two moments


def plan(recipe: TrainingRecipe, device: str = "auto") -> dict[str, Any]:
    """Facts of the whole recipe and of each stage; nothing is written, no weight changes.

    memory_bytes: the most that was held so far, and AdamW's moments. memory_of: "gpu", by torch's tensors there, or "process", all in
    all. seconds: of the second of two steps, times all.
    """
    model = open_model(recipe, device)
    weights = sum(one.numel() for one in model.parameters() if one.requires_grad)
    stages = [_stage(recipe, number, stage, model, device) for number, stage in enumerate(recipe.stages)]
    memory_of, held = _most_held(model.device)
    return {
        "recipe": recipe.hash,
        "model": recipe.model,
        "weights": weights,
        "precision": precision_of(recipe, model.device),
        "stages": stages,
        "seconds": round(sum(stage["seconds"] for stage in stages), 1),
        "memory_of": memory_of,
        "memory_bytes": held + OPTIMIZER_BYTES * weights,
    }


def _most_held(device: torch.device) -> tuple[str, int]:
    """Whose memory a run needs, and the most bytes that it held so far."""
    if device.type == "cuda":
        return "gpu", torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return "process", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _stage(recipe: TrainingRecipe, number: int, stage: Stage, model: Any, device: str) -> dict[str, Any]:
    stage = with_prompts(stage, model)
    tasks = read_stage(stage, recipe.seed)
    maker = row_maker(recipe, stage, model)
    temperatures = temperatures_of(stage, model.device)
    step = Step(maker, stage, teachers_of(recipe, stage, device), temperatures)
    model.train(stage.dropout)
    batches = list(islice(iter(BatchStream(tasks, stage.batch, recipe.seed + number)), BATCHES))
    ready = [step.prepare(batch) for batch in batches]
    for place in range(2):
        generator = seed_step(recipe.seed, number, place)
        started = time.monotonic()
        step.backward(ready[place], place, generator)
        seconds = time.monotonic() - started
    model.zero_grad()
    tokens, padded = (sum(counts) for counts in zip(*(one.tokens for one in ready), strict=True))
    return {
        "name": stage.name,
        "examples": {task.name: len(task.examples) for task in tasks},
        "left_out": {task.name: _left_out(task) for task in tasks},
        "saved_prompts": prompts_of(model),
        "steps": stage.steps,
        "epochs": round(stage.steps * stage.batch.size / sum(len(task.examples) for task in tasks), 2),
        "tokens_a_batch": tokens // BATCHES * world()[1],
        "padding": round(padded / tokens - 1, 3),
        "seconds": round(seconds * stage.steps, 1),
        "batches": [_shown(batch) for batch in batches],
    }


def _left_out(task: Task) -> dict[str, int]:
    """What of the data -> how often."""
    leaked = {f"examples with a text of an evaluation set ({verdict})": n for verdict, n in task.leaked.items() if n}
    return {**task.lost, **leaked}


def _shown(batch: Batch) -> list[dict[str, Any]]:
    """The literal inputs of the first examples."""
    shown = []
    for example, task in list(zip(batch.examples, batch.tasks, strict=True))[:SHOWN]:
        query, document = task.settings.query_prompt or "", task.settings.document_prompt or ""
        facts: dict[str, Any] = {"task": task.name, "anchor": query + example.anchor}
        if example.positive:
            facts["positive"] = document + example.positive
        if example.negatives:
            facts["negatives"] = [document + text for text in example.negatives]
        shown.append(facts)
    return shown
