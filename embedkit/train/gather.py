"""Rows of all processes of a run, with gradients that are right.

Each process takes the loss of its own anchors against the candidates of all. The gradient of a candidate is then the sum over
the losses of all processes, brought home by the backward pass here; once the gradients of the weights are averaged over the
processes, as `average_gradients` and DistributedDataParallel do, they are those of one process with the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> tuple[int, int]:
    """(rank, processes); (0, 1) where nothing is distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather_rows(rows: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """(B, ...) of each process -> all of them, (sum of all B, ...), in order of rank.

    counts: the B of each process; it must be the same everywhere where they are left out.
    """
    if world()[1] == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows, counts or [len(rows)] * world()[1])  # type: ignore[no-untyped-call]
    return gathered


def first_row(counts: Sequence[int]) -> int:
    """Where this process' rows begin among the gathered ones."""
    return [*accumulate(counts, initial=0)][world()[0]]


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Of a tensor without a gradient, which is changed."""
    if world()[1] > 1:
        dist.all_reduce(tensor)
    return tensor


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor, counts: Sequence[int]) -> Tensor:
        context.counts = list(counts)
        padded = rows.new_zeros(max(counts), *rows.shape[1:])  # all_gather takes parts of one size
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return torch.split(total, context.counts)[dist.get_rank()], None


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
