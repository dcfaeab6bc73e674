"""AdamW, its learning rate over the steps, and the gradient's norm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from embedkit.train.settings import Optimizer


def adamw(weights: Mapping[str, Tensor], settings: Optimizer) -> torch.optim.AdamW:
    decayed = [weight for weight in weights.values() if weight.ndim > 1]
    others = [weight for weight in weights.values() if weight.ndim < 2]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    on_cpu = all(weight.device.type == "cpu" for weight in weights.values())
    return torch.optim.AdamW(groups, lr=settings.lr, fused=True if on_cpu else None)  # torch's own choice on a GPU


def learning_rate(settings: Optimizer, step: int, steps: int) -> float:
    """Of step 0 ... steps - 1: up in a line over the share `warmup`, then down to nothing, or constant."""
    warm = math.ceil(settings.warmup * steps)
    if step < warm:
        return settings.lr * (step + 1) / warm
    share = (step - warm) / max(steps - warm, 1)
    falls = {"linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2, "constant": 1.0}
    return settings.lr * falls[settings.schedule]


def clipped_norm(weights: Sequence[Tensor], clip: float | None) -> float:
    """The norm of all gradients together, which are shrunk to `clip` where they are longer; None: left as they are."""
    return float(nn.utils.clip_grad_norm_(weights, math.inf if clip is None else clip))
