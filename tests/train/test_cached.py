"""Gradient caching against the same loss with all graphs in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from embedkit.train import losses
from embedkit.train.cached import cached_backward, plain_backward
from embedkit.train.contrastive import info_nce
from embedkit.train.elastic import cut, matryoshka

TAU = nn.Parameter(torch.tensor(0.2))
LABELS = torch.arange(12.0)
Rows = Sequence[Tensor]


def halves(rows: Tensor) -> tuple[Tensor, Tensor]:
    left, right = normalize(rows, dim=-1).chunk(2)
    return left, right


LOSSES: dict[str, Callable[[Rows], Tensor]] = {
    "info_nce": lambda rows: info_nce(*halves(rows[0]), temperature=TAU, rows_at_once=5, focal_gamma=0.5),
    "cosent": lambda rows: losses.cosent((halves(rows[0])[0] * halves(rows[0])[1]).sum(1), LABELS),
    "matryoshka": lambda rows: matryoshka(lambda c: info_nce(*c[0].chunk(2), temperature=0.1), rows[:1], [4, 8]),
    "two layers": lambda rows: sum(losses.in_batch_distillation(cut([one])[0], cut(rows)[1]) for one in rows),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradients_are_those_of_one_pass_with_dropout(loss: Callable[[Rows], Tensor]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.3), nn.Tanh(), nn.Linear(16, 8))
    inputs = torch.randn(24, 6)

    def embed(part: Tensor) -> list[Tensor]:
        return [model(part), model[:2](part)[:, :8]]

    def gradients(run: Callable[..., Tensor], parts: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], Tensor]:
        torch.manual_seed(1)
        weights: list[Any] = [*model.parameters(), TAU]
        for weight in weights:
            weight.grad = None
        value = run(embed, parts, loss)
        return value, [torch.zeros(1) if one.grad is None else one.grad.clone() for one in weights], torch.rand(3)

    parts = inputs.split([7, 7, 7, 3])
    expected, found = gradients(plain_backward, parts), gradients(cached_backward, parts)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    model.eval()
    whole = gradients(plain_backward, [inputs])
    torch.testing.assert_close(gradients(cached_backward, parts)[:2], whole[:2], atol=1e-5, rtol=1e-5)


def test_one_graph_is_in_memory_at_a_time() -> None:
    """Counted by the tensors that autograd keeps: twice the parts keep no more of them at once."""

    def most_kept(parts: int) -> int:
        kept, most = 0, 0

        class Square(torch.autograd.Function):
            @staticmethod
            def forward(context: Any, x: Tensor) -> Tensor:
                nonlocal kept, most
                if torch.is_grad_enabled() or x.requires_grad:
                    kept += 1
                    most = max(most, kept)
                context.save_for_backward(x)
                return x * x

            @staticmethod
            def backward(context: Any, *gradients: Tensor) -> Tensor:
                nonlocal kept
                kept -= 1
                return 2 * context.saved_tensors[0] * gradients[0]

        weight = torch.ones(3, requires_grad=True)
        data = [torch.randn(4, 3) for _ in range(parts)]
        cached_backward(lambda part: [Square.apply(part * weight)], data, lambda rows: rows[0].sum())
        return most

    assert most_kept(8) == most_kept(4) == 1
