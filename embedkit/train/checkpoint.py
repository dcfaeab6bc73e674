"""Checkpoints: weights and optimizer in one safetensors file, named by a sealed record that is written after it.

The record is the commit: a crash leaves the old one, which names a file that is still there. Nothing random is kept: each
step seeds its own draws, and the batches follow from the seed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as as_bytes
from torch import Tensor

from embedkit.errors import IntegrityError
from embedkit.limits import shown
from embedkit.storage import FileRecord, atomic_file, check_file, file_record, read_json, remove, write_json

RECORD = "training.json"
CHECKPOINT = re.compile(r"checkpoint-\d+-\d{8,}\.safetensors")
KEPT = ("weight", "step", "exp_avg", "exp_avg_sq")  # of each weight: itself, and what AdamW keeps
FROM_THE_START = "restore it, or begin again in another folder"


@dataclass(frozen=True)
class Progress:
    """Where a run stands: `step` steps of stage `stage` are done."""

    stage: int = 0
    step: int = 0
    log_bytes: int = 0  # of log.jsonl, up to here
    best: float | None = None
    best_step: int | None = None
    since_best: int = 0  # evaluations
    finished: bool = False


class _Progress(TypedDict):
    stage: int
    step: int
    log_bytes: int
    best: float | None
    best_step: int | None
    since_best: int
    finished: bool


class _Weights(FileRecord):
    name: str


class _Facts(TypedDict):
    """What is read by name; others are compared and no more."""

    recipe: str


class _Record(TypedDict):
    progress: _Progress
    weights: _Weights | None
    facts: _Facts


def named_weights(model: torch.nn.Module, extra: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All weights that are trained, tied ones once."""
    return {**{name: one for name, one in model.named_parameters() if one.requires_grad}, **extra}


def write_weights(path: Path, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None = None) -> None:
    tensors = {f"weight/{name}": weight.detach().cpu().contiguous() for name, weight in weights.items()}
    if optimizer is not None:
        for name, weight in weights.items():
            for key, value in optimizer.state.get(weight, {}).items():
                tensors[f"{key}/{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
    with atomic_file(path) as stream:
        stream.write(as_bytes(tensors))


@torch.no_grad()
def read_weights(path: Path, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None = None) -> None:
    """Into the weights, and the optimizer's state of each. Raises IntegrityError for a file of another model, or of none."""
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise IntegrityError(f"{path} holds no weights ({error}); {FROM_THE_START}.") from None
    _check_tensors(path, tensors, weights)
    for name, weight in weights.items():
        weight.copy_(tensors[f"weight/{name}"])
    if optimizer is None:
        return
    for full, value in tensors.items():
        key, _, name = full.partition("/")
        if key != "weight":
            kept = value if key == "step" else value.to(weights[name].device)  # which AdamW keeps on the CPU
            optimizer.state[weights[name]][key] = kept


def _check_tensors(path: Path, tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Raises IntegrityError unless there is a tensor of each weight, and all are of its shape: copying would repeat a smaller one
    until it fits."""
    found = {name: tensors.get(f"weight/{name}") for name in weights}
    for full, value in tensors.items():
        key, _, name = full.partition("/")
        if name not in weights or key not in KEPT:
            raise IntegrityError(f"{path} holds {shown(full)}, which this model has not; {FROM_THE_START}.")
        expected = torch.Size() if key == "step" else weights[name].shape
        if value.shape != expected:
            raise IntegrityError(
                f"{path} holds {shown(full)} of shape {tuple(value.shape)}, not {tuple(expected)}; {FROM_THE_START}."
            )
    if missing := [name for name, value in found.items() if value is None]:
        raise IntegrityError(f"{path} lacks {shown(missing[0])}; {FROM_THE_START}.")


def write_checkpoint(
    folder: Path,
    progress: Progress,
    weights: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    facts: Mapping[str, Any],
) -> None:
    """facts: what a resumed run must share (the recipe's hash, the data's) and what it should (threads, versions)."""
    path = folder / f"checkpoint-{progress.stage}-{progress.step:08d}.safetensors"
    write_weights(path, weights, optimizer)
    content = {"progress": asdict(progress), "weights": {"name": path.name, **file_record(path)}, "facts": dict(facts)}
    write_json(folder / RECORD, content)
    remove_checkpoints(folder, keep=path)


def remove_checkpoints(folder: Path, keep: Path | None = None) -> None:
    for old in folder.glob("checkpoint-*.safetensors"):
        if old != keep:
            remove(old)


def read_record(folder: Path) -> tuple[Progress, dict[str, Any], Path | None] | None:
    """(progress, facts, file of the weights), which is whole; None where no run left a record.

    Raises IntegrityError where record or weights are damaged.
    """
    if not (folder / RECORD).exists():
        return None
    content = read_json(folder / RECORD, _Record)
    progress = Progress(**{name: content["progress"][name] for name in _Progress.__required_keys__})
    if content["weights"] is None:
        return progress, content["facts"], None
    name = content["weights"]["name"]
    if CHECKPOINT.fullmatch(name) is None:
        raise IntegrityError(f"{folder / RECORD} names {shown(name)} as its checkpoint; {FROM_THE_START}.")
    check_file(folder / name, content["weights"])
    return progress, content["facts"], folder / name
