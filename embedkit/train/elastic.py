"""Rows that may be cut: to their first dimensions (Matryoshka), to the first layers of the model, or both (2DMSE, ESE, ours).

A loss here takes columns, one (B, D) tensor an input of the examples (anchors, positives, ...), cuts each to a prefix, brings it to
unit length (in that order: a prefix of a unit row is no unit row) and hands it to the base loss. `states[n]` holds the columns
after n layers, 0 being the embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embedkit.train.gather import sum_over_processes

Columns = Sequence[Tensor]  # (B, D) each, of any length
ColumnLoss = Callable[[Columns], Tensor]
States = Sequence[Columns]


def cut(columns: Columns, dim: int | None = None) -> list[Tensor]:
    """The first `dim` dimensions of each row, at unit length."""
    return [F.normalize(rows[..., :dim], dim=-1) for rows in columns]


def matryoshka(
    loss: ColumnLoss, columns: Columns, dims: Sequence[int], weights: Sequence[float] | None = None
) -> Tensor:
    """sum of weight_d * loss(normalize(columns[:, :d])) (MRL, Kusupati et al. 2022, eq. 1, for losses on pairs).

    weights: of the dims, 1 each when left out. Raises ValueError for a dim that the rows do not have.
    """
    check_dims(dims, columns[0].shape[-1])
    shares = [1.0] * len(dims) if weights is None else weights
    terms = [share * loss(cut(columns, dim)) for share, dim in zip(shares, dims, strict=True)]
    return torch.stack(terms).sum()


def check_dims(dims: Sequence[int], width: int) -> None:
    if not dims or not all(1 <= dim <= width for dim in dims) or len(set(dims)) < len(dims):
        raise ValueError(f"dims={list(dims)} came; expected distinct numbers from 1 to {width}.")


class NestedClassifier(nn.Module):
    """Linear classifiers on prefixes of a row: one each (MRL), or all of them columns of one (MRL-E, "efficient").

    Kusupati et al. 2022, eq. 1; as in the authors' code, MRL-E shares the bias, too, and rows are taken as they come.
    """

    def __init__(self, dims: Sequence[int], classes: int, *, efficient: bool = False) -> None:
        super().__init__()
        self.dims = tuple(dims)
        check_dims(self.dims, max(self.dims, default=0))
        widths = [max(self.dims)] if efficient else self.dims
        self.heads = nn.ModuleList(nn.Linear(width, classes) for width in widths)

    def forward(self, rows: Tensor) -> list[Tensor]:
        """(B, D) -> the logits (B, classes) of each dim, in their order."""
        heads = [one for one in self.heads if isinstance(one, nn.Linear)] * (len(self.dims) // len(self.heads))
        pairs = zip(self.dims, heads, strict=True)
        return [F.linear(rows[:, :dim], head.weight[:, :dim], head.bias) for dim, head in pairs]

    def loss(self, rows: Tensor, labels: Tensor, weights: Sequence[float] | None = None) -> Tensor:
        """sum of weight_d * cross-entropy. labels (B,) int64."""
        shares = [1.0] * len(self.dims) if weights is None else weights
        terms = [share * F.cross_entropy(logits, labels) for share, logits in zip(shares, self(rows), strict=True)]
        return torch.stack(terms).sum()


def feature_kl(student: Columns, teacher: Columns, *, temperature: float, detach: bool = True) -> Tensor:
    """KL(softmax(teacher / t) || softmax(student / t)) over the dimensions of each row, mean over all rows of all columns, without
    a factor of t: the alignment of 2DMSE and of AdaptiveLayerLoss. It looks at rows one by one, not at their neighbours."""
    one, other = torch.cat(list(student)), torch.cat(list(teacher))
    target = F.log_softmax((other.detach() if detach else other) / temperature, dim=1)
    return F.kl_div(F.log_softmax(one / temperature, dim=1), target, reduction="batchmean", log_target=True)


def two_dmse(
    loss: ColumnLoss,
    early: Columns,
    last: Columns,
    layer: int,
    dim: int,
    *,
    weighted: bool = False,
    rows_share: float = 1.0,
) -> Tensor:
    """2DMSE (Li et al. 2024, arXiv 2402.14776 v1), the authors' recipe: a random layer beside the last, one dim for both.

    l(T) + l(S) + KL + l(T[:d]) + l(S[:d]), T being the rows after all layers (`last`), S those after `layer` (`early`), 1 <= layer < N.
    weighted=False is their code of 23 February 2024, True that of 29 February: S terms / layer, KL * log(2 + layer). The
    teacher T has a gradient in both, as it had there. rows_share: this process' rows, times processes, over those of all; the KL is a
    mean over rows.
    """
    share, pull = (1 / layer, math.log(2 + layer)) if weighted else (1.0, 1.0)
    align = rows_share * feature_kl(early, last, temperature=1.0, detach=False)
    whole = loss(cut(last)) + share * loss(cut(early)) + pull * align
    return whole + loss(cut(last, dim)) + share * loss(cut(early, dim))


def ese(loss: ColumnLoss, states: States, dim: int, *, mse_weight: float = 1.0, rows_share: float = 1.0) -> Tensor:
    """ESE (Li et al. 2024, arXiv 2402.14776 v2; ICLR 2025), the authors' recipe: every layer, compressed to `dim`.

    l(T) + l(T[:k]) + D(T[:k], pca(T)) + 1/(N-1) * sum over i = 0 ... N-2 of (l(S_i[:k]) + D(S_i[:k], pca(S_i))) / (1 + ln(1 + i)), with
    D = mse_weight * MSE + KL over the dimensions. As in their code the embeddings are layer 0 and layer N - 1 is left out.
    rows_share: as in `two_dmse`, for D.
    """

    def whole(columns: Columns) -> Tensor:
        return loss(cut(columns, dim)) + rows_share * _compression(columns, dim, mse_weight)

    last, count = states[-1], len(states) - 1
    total = loss(cut(last)) + whole(last)
    if count < 2:
        return total
    early = [whole(columns) / (1 + math.log1p(i)) for i, columns in enumerate(states[: count - 1])]
    return total + torch.stack(early).sum() / (count - 1)


def _compression(columns: Columns, dim: int, mse_weight: float) -> Tensor:
    """How far the prefix of all rows is from their principal components."""
    rows = torch.cat(list(columns))
    target = compressed(rows, dim)
    prefix = rows[:, :dim]
    return mse_weight * F.mse_loss(prefix, target) + feature_kl([prefix], [target], temperature=1.0)


@torch.no_grad()
def compressed(rows: Tensor, dim: int) -> Tensor:
    """X U diag(s), with U, s the first singular vectors and values of softmax(X^T X / sqrt(D)): ESE's compression.

    (B, D) -> (B, dim). X^T X is of the rows of all processes. Exact singular vectors; the authors' svd_lowrank is a random
    approximation of them. The sign of each, which is arbitrary, is that of its largest entry.
    """
    attention = torch.softmax(sum_over_processes(rows.T @ rows) / math.sqrt(rows.shape[1]), dim=1)
    vectors, values, _ = torch.linalg.svd(attention)
    signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    result: Tensor = rows @ (vectors * signs)[:, :dim] * values[:dim]
    return result


@dataclass(frozen=True)
class Grid:
    """The (layers, dim) pairs that a model is trained for; the whole model at its full width is always one of them."""

    layers: tuple[int, ...]
    dims: tuple[int, ...]
    early_dims: tuple[int, ...]  # of the layers before the last

    def cells(self, step: int, *, sampled: int) -> list[tuple[int, int]]:
        """The pairs of one step: all dims of the last layer, and of `sampled` others.

        The rule: the other layers stand in a row that is shuffled once a pass, by the number of the pass alone, and the steps
        take them in turn; in every (layers - 1) / sampled steps each layer has its turn as often as any other.
        """
        *others, last = sorted(self.layers)
        dims = sorted(self.dims, reverse=True)
        chosen: list[int] = []
        for turn in range(step * sampled, (step + 1) * sampled) if others else ():
            lap, place = divmod(turn, len(others))
            generator = torch.Generator().manual_seed(lap)
            layer = others[int(torch.randperm(len(others), generator=generator)[place])]
            if layer not in chosen:
                chosen.append(layer)
        return [(layer, dim) for layer in (last, *sorted(chosen)) for dim in dims]


def elastic(loss: ColumnLoss, states: Mapping[int, Columns], cells: Sequence[tuple[int, int]]) -> Tensor:
    """Ours: the mean of the base loss over the cells, each against the same target.

    The base loss brings what the cells learn from: labels, or a teacher's rows, which are whole rows of the untouched model and the
    same for every layer and dim of the step. So nothing that is trained is a teacher, the whole model's own term is there
    at every step, and all layers of a step have the same dims. states: layer -> its columns.
    """
    return torch.stack([loss(cut(states[layer], dim)) for layer, dim in cells]).mean()
