"""Gradient caching: a loss over a batch of any size, in the memory of one small part of it (GradCache, Gao et al. 2021, section 3).

Every part goes through the model without a graph; the loss over all rows gives the gradient of each row; every part goes
through once more, with a graph, and passes its rows' gradients on. The second pass draws the same random numbers as the
first, so dropout is the same too. Cost: one more forward pass, a third of the time; memory: one part's graph and all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from embedkit.train.heap import give_back

PARTS_HELD = 8  # whose freed memory is given back at once
Part = TypeVar("Part")
Rows = Sequence[Tensor]  # what a model makes of n inputs: one (n, D) tensor, or several: one a layer, say


def plain_backward(embed: Callable[[Part], Rows], parts: Sequence[Part], loss: Callable[[Rows], Tensor]) -> Tensor:
    """loss.backward() with all graphs in memory; the value, detached. Its arguments are those of `cached_backward`."""
    value = loss(_joined([embed(part) for part in parts]))
    value.backward()  # type: ignore[no-untyped-call]
    return value.detach()


def cached_backward(embed: Callable[[Part], Rows], parts: Sequence[Part], loss: Callable[[Rows], Tensor]) -> Tensor:
    """The same gradients, a part at a time.

    embed: one part -> its rows; parts: of one batch; loss: the rows of all parts, in their order -> (). Gradients are added
    to the weights that `embed` and `loss` use. Returns the value of the loss, detached.
    """
    states, found = [], []
    with torch.no_grad():
        for part in _giving_back(parts):
            states.append(RandomState())
            found.append(embed(part))
    leaves = [rows.requires_grad_() for rows in _joined(found)]
    counts = [len(rows[0]) for rows in found]
    del found
    value = loss(leaves)
    value.backward()  # type: ignore[no-untyped-call]
    after = RandomState()
    cached = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    gradients_by_part = zip(*(torch.split(gradient, counts) for gradient in cached), strict=True)
    for part, state, gradients in zip(_giving_back(parts), states, gradients_by_part, strict=True):
        state.restore()
        torch.autograd.backward(list(embed(part)), gradients)
    after.restore()
    return value.detach()


def _giving_back(parts: Iterable[Part]) -> Iterator[Part]:
    """The parts, and now and then what those before have freed."""
    for number, part in enumerate(parts):
        if number % PARTS_HELD == 0:
            give_back()
        yield part


def _joined(found: Sequence[Rows]) -> list[Tensor]:
    return [torch.cat(rows) for rows in zip(*found, strict=True)]


class RandomState:
    """Of torch's generators: the CPU's and, where CUDA is in use, its devices'."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
