"""The terms of a recipe's loss, over the rows of one batch.

A batch's rows come as one (N, D) tensor: the anchors, the positives where there are any, then all negatives. What else a loss
needs of the batch (labels, a teacher's scores or rows, masks, the draws of mixing) is fixed before the loss is called,
because nested dimensions and gradient caching call it several times.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from embedkit.errors import DataError, UsageError
from embedkit.train import losses, settings
from embedkit.train.batches import Batch, masks, not_negative
from embedkit.train.contrastive import HIDDEN, draw_pairs, info_nce, mix_lists, mix_pairs
from embedkit.train.data import Example, Task, with_positives_alone
from embedkit.train.elastic import Columns
from embedkit.train.gather import gather_rows
from embedkit.train.rows import Text
from embedkit.train.settings import Loss

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Targets:
    """What the losses need of one process' share of a batch beside its rows."""

    count: int  # anchors
    first: int  # where they begin in the batch
    counts: tuple[int, ...]  # rows of each process; N is this one's
    rows_share: float  # N, times processes, over the rows of the batch; a mean over N rows is multiplied by it
    negatives_share: float  # the same of the negatives
    places: Tensor  # (K,) where each negative stands among count * M
    present: Tensor  # (count, M) bool: the negatives that are there
    present_everywhere: Tensor  # (B, M) bool: those of the whole batch
    labels: Tensor  # (count,) how near anchor and positive are; NaN where not known
    teacher: Tensor  # (count, 1 + M) a teacher's scores; -inf where not known
    known: Tensor | None  # this and the next three: see batches.Masks
    known_negatives: Tensor | None
    alike_anchors: Tensor | None
    alike_positives: Tensor | None
    teacher_rows: Mapping[int, Tensor]  # term -> (N, D') unit rows; of all processes where the term compares them

    def to(self, device: torch.device) -> Targets:
        moved: dict[str, Any] = {name: one.to(device) for name, one in vars(self).items() if isinstance(one, Tensor)}
        return replace(self, **moved)


def texts_of(batch: Batch, rows: slice) -> list[Text]:
    """(prompt, text) of the anchors, the positives and the negatives of one process' share, in the order of its rows."""
    pairs = list(zip(batch.examples[rows], batch.tasks[rows], strict=True))
    anchors = [(task.settings.query_prompt or "", example.anchor) for example, task in pairs]
    positives = [(task.settings.document_prompt or "", example.positive) for example, task in pairs if example.positive]
    negatives = [(task.settings.document_prompt or "", text) for example, task in pairs for text in example.negatives]
    return anchors + positives + negatives


def targets_of(batch: Batch, rows: slice) -> Targets:
    examples = batch.examples[rows]
    most = max(len(example.negatives) for example in batch.examples)
    there = [[m < len(example.negatives) for m in range(most)] for example in batch.examples]
    everywhere = torch.tensor(there, dtype=torch.bool).reshape(len(there), most)
    present = everywhere[rows]
    shares = [batch.examples[start : start + len(examples)] for start in range(0, len(there), len(examples))]
    teacher = torch.full((len(examples), 1 + most), HIDDEN)
    for row, example in enumerate(examples):
        teacher[row, : len(example.teacher)] = torch.tensor(example.teacher)
    counts = tuple(sum(map(_rows_of, share)) for share in shares)
    labels = [float("nan") if example.score is None else example.score for example in examples]
    return Targets(
        count=len(examples),
        first=rows.start,
        counts=counts,
        rows_share=sum(map(_rows_of, examples)) * len(counts) / sum(counts),
        negatives_share=float(present.sum() * len(shares) / everywhere.sum().clamp(min=1)),
        places=present.flatten().nonzero()[:, 0],
        present=present,
        present_everywhere=everywhere,
        labels=torch.tensor(labels),
        teacher=teacher,
        **masks(batch, rows)._asdict(),
        teacher_rows={},
    )


def _rows_of(example: Example) -> int:
    return 1 + bool(example.positive) + len(example.negatives)


class Objective:
    """The weighted sum of the terms, for one batch. The mean over the processes is the loss of one with the whole batch.

    temperatures: term -> its logarithm, where it is learned. generator: of what is drawn, the same in all processes.
    """

    def __init__(
        self,
        terms: Sequence[Loss],
        targets: Targets,
        temperatures: Mapping[int, Tensor],
        generator: torch.Generator | None = None,
    ) -> None:
        self._terms, self._targets, self._temperatures = terms, targets, temperatures
        self._pairs: list[Tensor] | None = None
        if any(term.mixing in ("pair", "both") for term in terms):  # drawn for the whole batch, whoever has its rows
            own = slice(targets.first, targets.first + targets.count)
            self._pairs = [one[own] for one in draw_pairs(targets.present_everywhere, generator)]

    def __call__(self, columns: Columns) -> Tensor:
        """columns: one (N, D) tensor of unit rows. Returns ()."""
        (rows,) = columns
        terms = [term.weight * LOSSES[term.name](self, place, rows) for place, term in enumerate(self._terms)]
        return torch.stack(terms).sum()

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """anchors (B, D), positives (B, D), negatives (B, M, D), zero where there is none."""
        count, present = self._targets.count, self._targets.present
        if not present.numel():
            return rows[:count], rows[count : 2 * count], None
        negatives = rows.new_zeros(present.numel(), rows.shape[1]).index_copy(
            0, self._targets.places, rows[2 * count :]
        )
        return rows[:count], rows[count : 2 * count], negatives.view(*present.shape, -1)

    def _info_nce(self, place: int, rows: Tensor) -> Tensor:
        term, targets = self._terms[place], self._targets
        anchors, positives, negatives = self._split(rows)
        temperature = self._temperatures[place].exp() if place in self._temperatures else term.temperature
        mixed = []
        if term.mixing in ("pair", "both") and self._pairs is not None and negatives is not None:
            mixed.append(mix_pairs(negatives, *self._pairs))
        if term.mixing in ("list", "both") and negatives is not None:
            mixed.append(mix_lists(anchors, negatives, temperature, targets.present))
        return info_nce(
            anchors,
            positives,
            negatives,
            temperature=temperature,
            denominator=term.denominator,
            mixed=torch.cat(mixed, dim=1) if mixed else None,
            known=targets.known,
            known_negatives=targets.known_negatives,
            alike_anchors=targets.alike_anchors,
            alike_positives=targets.alike_positives,
            margin=term.margin,
            focal_gamma=term.focal_gamma,
            gather=term.gather,
        )

    def _triplet(self, place: int, rows: Tensor) -> Tensor:
        anchors, positives, negatives = self._split(rows)
        assert negatives is not None
        there = self._targets.present  # each negative with its anchor, as a row of its own
        row = there.nonzero()[:, 0]
        margin = self._terms[place].margin
        value = losses.triplet(
            anchors[row], positives[row], negatives[there][:, None], margin=0.3 if margin is None else margin
        )
        return value * self._targets.negatives_share

    def _gathered(self, place: int, *columns: Tensor) -> list[Tensor]:
        """(count, ...) each; those of all processes where the term gathers."""
        return [gather_rows(one) if self._terms[place].gather else one for one in columns]

    def _cosent(self, place: int, rows: Tensor) -> Tensor:
        left, right, _ = self._split(rows)
        scores, labels = self._gathered(place, (left * right).sum(-1), self._targets.labels)
        return losses.cosent(scores, labels, scale=self._terms[place].scale)

    def _angle(self, place: int, rows: Tensor) -> Tensor:
        left, right, _ = self._split(rows)
        left, right, labels = self._gathered(place, left, right, self._targets.labels)
        return losses.angle(left, right, labels, scale=self._terms[place].scale)

    def _scores(self, rows: Tensor) -> Tensor:
        """(B, 1 + M) of the positive and of the negatives."""
        anchors, positives, negatives = self._split(rows)
        assert negatives is not None
        scores = torch.cat(
            ((anchors * positives).sum(-1)[:, None], torch.einsum("bd,bmd->bm", anchors, negatives)), dim=1
        )
        return scores.masked_fill(self._targets.teacher == HIDDEN, HIDDEN)

    def _margin_mse(self, place: int, rows: Tensor) -> Tensor:
        student, teacher = self._scores(rows), self._targets.teacher
        there = self._targets.present
        row = there.nonzero()[:, 0]
        pairs = [torch.stack((scores[row, 0], scores[:, 1:][there]), dim=1) for scores in (student, teacher)]
        return losses.margin_mse(*pairs) * self._targets.negatives_share

    def _kl(self, place: int, rows: Tensor) -> Tensor:
        return losses.kl_distillation(self._scores(rows), self._targets.teacher, **self._both_temperatures(place))

    def _list_net(self, place: int, rows: Tensor) -> Tensor:
        return losses.list_net(self._scores(rows), self._targets.teacher, **self._both_temperatures(place))

    def _both_temperatures(self, place: int) -> dict[str, Any]:
        term = self._terms[place]
        return {"temperature": term.temperature, "teacher_temperature": term.teacher_temperature}

    def _in_batch_distillation(self, place: int, rows: Tensor) -> Tensor:
        term, targets = self._terms[place], self._targets
        return losses.in_batch_distillation(
            rows,
            targets.teacher_rows[place],
            temperature=term.temperature,
            counts=targets.counts if term.gather else None,
        )

    def _embedding_distillation(self, place: int, rows: Tensor) -> Tensor:
        """Of rows at full width; prefixes learn more from what the whole rows say of their similarities."""
        teacher = self._targets.teacher_rows[place]
        if rows.shape[1] < teacher.shape[1]:
            return rows.new_zeros(())
        return losses.embedding_distillation(rows, teacher) * self._targets.rows_share


LOSSES: dict[str, Callable[[Objective, int, Tensor], Tensor]] = {
    "info_nce": Objective._info_nce,
    "triplet": Objective._triplet,
    "cosent": Objective._cosent,
    "angle": Objective._angle,
    "margin_mse": Objective._margin_mse,
    "kl": Objective._kl,
    "list_net": Objective._list_net,
    "in_batch_distillation": Objective._in_batch_distillation,
    "embedding_distillation": Objective._embedding_distillation,
}
NEEDS = {  # loss -> what every example must have
    "info_nce": ("positives",),
    "triplet": ("positives", "negatives"),
    "cosent": ("positives", "scores"),
    "angle": ("positives", "scores"),
    "margin_mse": ("positives", "negatives", "a teacher's scores"),
    "kl": ("positives", "negatives", "a teacher's scores"),
    "list_net": ("positives", "negatives", "a teacher's scores"),
    "in_batch_distillation": (),
    "embedding_distillation": (),
}


def with_right_pairs(terms: Sequence[Loss], tasks: Sequence[Task]) -> list[Task]:
    """The tasks without pairs of a score of 0 or less, where a loss would take them for positives.

    Raises DataError where no pair is left, or another loss learns from those scores. Warns of scores that are no labels.
    """
    takers = [term.name for term in terms if term.name in ("info_nce", "triplet")]
    scored = [term.name for term in terms if "scores" in NEEDS[term.name]]
    if not takers:
        return list(tasks)
    kept = []
    for task in tasks:
        right = with_positives_alone(task)
        if scored and len(right.examples) < len(task.examples):
            raise DataError(
                f"{len(task.examples) - len(right.examples):,} pairs of {task.name} have a score or label of 0 or less; {scored[0]} learns "
                f"from them, and {takers[0]} would take them for positives: give each loss a stage of its own."
            )
        if not scored and any(one.score not in (None, 1) for one in right.examples):
            logger.warning(
                "%s has scores other than 0 and 1: %s takes every pair above 0 for a positive; cosent and angle learn from scores.",
                task.name,
                takers[0],
            )
        kept.append(right)
    return kept


def check_data(terms: Sequence[Loss], tasks: Sequence[Task], batch: settings.Batch) -> None:
    """Raises DataError where a loss needs what the examples of a task do not have, UsageError where it would be zero whatever
    the model does. Warns of what is not used, and of batches that must repeat anchors."""
    for task in tasks:
        has = {
            "positives": all(example.positive for example in task.examples),
            "negatives": batch.negatives > 0 and all(example.negatives for example in task.examples),
            "scores": all(example.score is not None for example in task.examples),
            "a teacher's scores": all(example.teacher for example in task.examples),
        }
        for term in terms:
            needs = [
                *NEEDS[term.name],
                *(["negatives"] if term.mixing != "none" or term.denominator == "own_hard" else []),
            ]
            if missing := [need for need in needs if not has[need]]:
                hint = "; set batch.negatives" if missing[0] == "negatives" and not batch.negatives else ""
                raise DataError(
                    f"The loss {term.name} needs {missing[0]} with every example, and not all of {task.name} have them{hint}."
                )
            if reason := _nothing_to_learn(term, task, [task] if batch.kind == "homogeneous" else tasks, batch):
                raise UsageError(f"The loss {term.name} can learn nothing from {task.name}: {reason}.")
    if any(term.name == "list_net" for term in terms):
        counts = {min(batch.negatives, len(example.negatives)) for task in tasks for example in task.examples}
        if len(counts) > 1:
            raise DataError(
                f"list_net needs as many negatives with every example; there are {min(counts)} to {max(counts)}: set batch.negatives."
            )
    _warn(tasks, batch)


def _nothing_to_learn(term: Loss, task: Task, met: Sequence[Task], batch: settings.Batch) -> str | None:
    """Why the loss and its gradient are zero in every batch; None where they are not. met: the tasks it shares batches with."""
    first, others = task.examples[0], (example for one in met for example in one.examples)
    if term.name in ("cosent", "angle") and all(one.score == first.score for one in others):
        return f"all scores are {first.score}; give pairs of different scores"
    if term.name == "in_batch_distillation" and all({*one.texts} == {first.anchor} for one in others):
        return "there is one text and no other to compare it with; give more"
    if term.name != "info_nce" or term.mixing != "none":
        return None
    if term.denominator != "inbatch_pos" and batch.negatives and any(one.negatives for one in task.examples):
        return None
    if not task.settings.in_batch:
        return "in_batch is false and no negatives are used; set batch.negatives, with data that have some, or in_batch: true"
    anchors = {one.anchor: not_negative(task, one) for one in task.examples}
    if all(one.positive in known or one.positive in own for known, own in anchors.values() for one in others):
        return "every positive is one of every anchor, which leaves no negatives; give more pairs"
    return None


def _warn(tasks: Sequence[Task], batch: settings.Batch) -> None:
    anchors = len({example.anchor for task in tasks for example in task.examples})
    if anchors < batch.size:
        logger.warning(
            "batch.size is %d and the data have %d different anchors: batches repeat some.", batch.size, anchors
        )
    for task in tasks:
        if not batch.negatives and any(example.negatives for example in task.examples):
            logger.warning("%s has negatives, and batch.negatives is 0: none are used; set it to use them.", task.name)
    most = max(len(example.negatives) for task in tasks for example in task.examples)
    if most < batch.negatives:
        logger.warning("batch.negatives is %d, and no example has more than %d.", batch.negatives, most)
