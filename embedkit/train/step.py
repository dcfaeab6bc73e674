"""One step's gradients: texts of a batch, through the model, into the loss, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from embedkit.encoders.pieces import Piece
from embedkit.errors import UsageError
from embedkit.train.batches import Batch
from embedkit.train.cached import Rows, cached_backward, plain_backward
from embedkit.train.elastic import Columns, cut, elastic, ese, matryoshka, two_dmse
from embedkit.train.gather import gather_rows, world
from embedkit.train.objectives import Objective, Targets, targets_of, texts_of
from embedkit.train.rows import RowMaker
from embedkit.train.settings import Stage, grid_of


@dataclass(frozen=True)
class Prepared:
    """One process' share of a batch, tokenized."""

    pieces: list[Piece]
    parts: list[list[int]]  # positions of the pieces that go through the model together
    targets: Targets
    teacher_pieces: Mapping[RowMaker, list[Piece]]  # a teacher has a tokenizer of its own

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens of the texts, and with padding."""
        lengths = [piece.length for piece in self.pieces]
        padded = sum(len(part) * max(lengths[i] for i in part) for part in self.parts)
        return sum(lengths), padded


class Step:
    """The gradients of a stage's loss."""

    def __init__(
        self, maker: RowMaker, stage: Stage, teachers: Mapping[int, RowMaker], temperatures: Mapping[int, Tensor]
    ) -> None:
        self._maker, self._stage, self._teachers, self._temperatures = maker, stage, teachers, temperatures
        for place, teacher in teachers.items():
            if stage.loss[place].name == "embedding_distillation" and teacher.width != maker.width:
                raise UsageError(
                    f"embedding_distillation brings rows of {maker.width} columns to a teacher's of {teacher.width}; name a teacher of "
                    f"the same width, or take in_batch_distillation."
                )
        self.grid = grid_of(stage.elastic, maker.width, maker.depth) if stage.elastic else None
        for layer in self.grid.layers if self.grid else ():
            if layer != maker.depth:
                maker.check_layer(layer)

    def prepare(self, batch: Batch) -> Prepared:
        """Needs no model, so it may run beside the step before."""
        rows = batch.share(*world())
        texts = texts_of(batch, rows)
        pieces = self._maker.pieces(texts)
        taught = {teacher: teacher.pieces(texts) for teacher in set(self._teachers.values())}
        return Prepared(pieces, self._maker.parts(pieces), targets_of(batch, rows), taught)

    def backward(self, prepared: Prepared, number: int, generator: torch.Generator) -> Tensor:
        """Adds the gradients of step `number` to the weights; the value of the loss. generator: of what all processes draw alike."""
        pieces, parts = prepared.pieces, prepared.parts
        found = {teacher: _unit_rows(teacher, its) for teacher, its in prepared.teacher_pieces.items()}
        teacher_rows = {
            term: gather_rows(found[teacher], prepared.targets.counts) if self._compares(term) else found[teacher]
            for term, teacher in self._teachers.items()
        }
        targets = replace(prepared.targets.to(self._maker.model.device), teacher_rows=teacher_rows)
        objective = Objective(self._stage.loss, targets, self._temperatures, generator)
        layers, dims = self._cells(number, generator)
        order = torch.tensor([place for part in parts for place in part], device=self._maker.model.device)
        back = torch.argsort(order)

        def embed(part: list[int]) -> Rows:
            return self._maker.rows([pieces[place] for place in part], layers)

        def loss(rows: Rows) -> Tensor:
            states = {n: [one[back]] for n, one in zip(layers, rows, strict=True)}
            return self._elastic(objective, states, dims, targets.rows_share)

        run = cached_backward if self._stage.batch.cached else plain_backward
        return run(embed, parts, loss)

    def _compares(self, term: int) -> bool:
        """Whether the term needs the teacher's rows of all processes."""
        loss = self._stage.loss[term]
        return loss.gather and loss.name == "in_batch_distillation"

    def _cells(self, number: int, generator: torch.Generator) -> tuple[list[int], list[int]]:
        """The layers whose rows the step needs, and its dims."""
        maker, settings = self._maker, self._stage.elastic
        if settings is None or self.grid is None:
            return [maker.depth], [maker.width]
        if settings.recipe == "embedkit":
            cells = self.grid.cells(number, sampled=settings.layers_per_step)
            return list(dict.fromkeys(layer for layer, _ in cells)), list(dict.fromkeys(dim for _, dim in cells))
        if settings.recipe == "matryoshka":
            return [maker.depth], list(self.grid.dims)
        if settings.recipe == "ese":
            return list(range(maker.depth + 1)), list(settings.dims)
        # 2dmse draws a layer and a dim below the full ones
        layers = [layer for layer in self.grid.layers if layer < maker.depth]
        dims = [dim for dim in self.grid.dims if dim < maker.width]
        return [_drawn(layers, generator), maker.depth], [_drawn(dims, generator)]

    def _elastic(
        self, loss: Objective, states: Mapping[int, Columns], dims: Sequence[int], rows_share: float
    ) -> Tensor:
        settings, depth = self._stage.elastic, self._maker.depth
        if settings is None:
            return loss(cut(states[depth]))
        if settings.recipe == "embedkit":
            return elastic(loss, states, [(layer, dim) for layer in states for dim in dims])
        if settings.recipe == "matryoshka":
            return matryoshka(loss, states[depth], dims, self._weights(dims))
        if settings.recipe == "ese":
            return ese(loss, [states[layer] for layer in range(depth + 1)], dims[0], rows_share=rows_share)
        (layer,) = (one for one in states if one != depth)
        weighted = settings.recipe == "2dmse_weighted"
        early, last = states[layer], states[depth]
        return two_dmse(loss, early, last, layer, dims[0], weighted=weighted, rows_share=rows_share)

    def _weights(self, dims: Sequence[int]) -> list[float]:
        """Of the dims; 1 where the recipe gives none, as for the full width that it need not name."""
        assert self._stage.elastic is not None
        given = dict(zip(self._stage.elastic.dims, self._stage.elastic.weights, strict=False))
        return [given.get(dim, 1.0) for dim in dims]


@torch.no_grad()
def _unit_rows(maker: RowMaker, pieces: list[Piece]) -> Tensor:
    """(n, width), in the order of the pieces."""
    parts = maker.parts(pieces)
    found = torch.cat([maker.rows([pieces[place] for place in part])[0] for part in parts])
    rows = torch.empty_like(found)
    rows[torch.tensor([place for part in parts for place in part], device=found.device)] = found
    return normalize(rows, dim=-1)


def _drawn(values: Sequence[int], generator: torch.Generator) -> int:
    return values[int(torch.randint(len(values), (), generator=generator))]
