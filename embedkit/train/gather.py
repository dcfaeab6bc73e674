"""Rows of all processes of a run, with gradients that are right.

Each process takes the loss of its own anchors against the candidates of all. The gradient of a candidate is then the sum over
the losses of all processes, brought home by the backward pass here; once the gradients of the weights are averaged over the
processes, as `average_gradients` and DistributedDataParallel do, they are those of one process with the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> tuple[int, int]:
    """(rank, processes); (0, 1) where nothing is distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather_rows(rows: Tensor) -> Tensor:
    """(B, ...) of each process -> (processes * B, ...), in order of rank. B must be the same everywhere."""
    if world()[1] == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def average_gradients(weights: Sequence[Tensor]) -> None:
    """Replaces each gradient by its mean over the processes, in one message."""
    if world()[1] == 1:
        return
    weights = [weight for weight in weights if weight.grad is not None]  # the same everywhere: the graph is
    flat = torch.cat([weight.grad.reshape(-1) for weight in weights if weight.grad is not None])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for weight, part in zip(weights, torch.split(flat, [weight.numel() for weight in weights]), strict=True):
        weight.grad = part.view_as(weight)
