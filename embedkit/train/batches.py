"""Which examples meet in a batch, and which of them are no negatives of each other.

A batch is of one task (homogeneous), of one task with a share of its rows dealt among neighbouring batches (semi-homogeneous, KaLM), or
each row's task is drawn (blended, NV-Embed stage 2). Tasks are drawn by weight, the examples of a task in a new order each
time they have all been used. An example waits for a later batch where its anchor, or a candidate of it, stands in the batch
as a positive's or a negative's contradiction; where too many wait, one is taken, and the masks leave out what contradicts.

All of it follows from the seed: the batches from step k on are found by drawing those before it, which costs some
microseconds a row, so a resumed run needs no state from here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from embedkit.errors import UsageError
from embedkit.train import settings
from embedkit.train.data import Example, Task

WAITING = 512  # examples of a task that may wait
WINDOW = 16  # semi-homogeneous batches that are dealt among each other
Cell = tuple[int, int]  # two rows of a batch


@dataclass(frozen=True)
class Batch:
    """Rows of one step: examples with the negatives that they have in it, each with its task."""

    examples: list[Example]
    tasks: list[Task]

    def share(self, rank: int, processes: int) -> slice:
        """The rows of one process. Raises UsageError where the processes cannot have as many."""
        each = share_size(len(self.examples), processes)
        return slice(rank * each, (rank + 1) * each)


def share_size(size: int, processes: int) -> int:
    """The rows that each process has of a batch. Raises UsageError where they cannot have as many."""
    if size % processes:
        raise UsageError(
            f"batch.size is {size} and there are {processes} processes, which take equal shares; choose a multiple of {processes}."
        )
    return size // processes


class BatchStream:
    """Endless batches of `size` rows."""

    def __init__(self, tasks: Sequence[Task], batch: settings.Batch, seed: int) -> None:
        self._tasks, self._batch = tasks, batch
        self._generator = np.random.default_rng(seed)
        self._orders = [self._shuffled(task) for task in tasks]
        self._waiting: list[deque[Example]] = [deque() for _ in tasks]
        weights = np.array(
            [len(task.examples) if task.settings.weight is None else task.settings.weight for task in tasks],
            dtype=float,
        )
        self._weights = weights / weights.sum()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            if self._batch.kind == "blended":
                yield self._fill(lambda: int(self._generator.choice(len(self._tasks), p=self._weights)))
            elif self._batch.kind == "homogeneous":
                yield self._of_one_task()
            else:
                yield from self._dealt([self._of_one_task() for _ in range(WINDOW)])

    def _shuffled(self, task: Task) -> Iterator[Example]:
        while True:
            for place in self._generator.permutation(len(task.examples)):
                yield task.examples[place]

    def _of_one_task(self) -> Batch:
        task = int(self._generator.choice(len(self._tasks), p=self._weights))
        return self._fill(lambda: task)

    def _fill(self, draw_task: Callable[[], int]) -> Batch:
        content, batch = Content(), Batch([], [])
        for _ in range(self._batch.size):
            number = draw_task()
            example = self._next(number, content)
            content.add(self._tasks[number], example)
            batch.examples.append(example)
            batch.tasks.append(self._tasks[number])
        return batch

    def _next(self, number: int, content: Content) -> Example:
        """The first example of the task that contradicts nothing in the batch, those that waited longest first."""
        waiting, task = self._waiting[number], self._tasks[number]
        for place, example in enumerate(waiting):
            if content.takes(task, example):
                del waiting[place]
                return example
        while len(waiting) < min(WAITING, len(task.examples)):
            example = self._with_negatives(next(self._orders[number]))
            if content.takes(task, example):
                return example
            waiting.append(example)
        return waiting.popleft()

    def _with_negatives(self, example: Example) -> Example:
        """With as many of its negatives, drawn, as the recipe asks for, and their scores."""
        count = min(self._batch.negatives, len(example.negatives))
        kept = sorted(self._generator.choice(len(example.negatives), count, replace=False)) if count else []
        teacher = (example.teacher[0], *(example.teacher[1 + i] for i in kept)) if example.teacher else ()
        return replace(example, negatives=tuple(example.negatives[i] for i in kept), teacher=teacher)

    def _dealt(self, batches: list[Batch]) -> list[Batch]:
        """The last rows of all batches, shuffled among them (KaLM-Embedding's semi-homogeneous batches)."""
        stay = round(self._batch.size * self._batch.ratio)
        loose = [row for one in batches for row in list(zip(one.examples, one.tasks, strict=True))[stay:]]
        order = iter(self._generator.permutation(len(loose)))
        dealt = []
        for one in batches:
            rows = [loose[next(order)] for _ in range(self._batch.size - stay)]
            dealt.append(
                Batch(
                    one.examples[:stay] + [example for example, _ in rows],
                    one.tasks[:stay] + [task for _, task in rows],
                )
            )
        return dealt


class Content:
    """The texts of a batch while it is filled."""

    def __init__(self) -> None:
        self._anchors: set[str] = set()
        self._candidates: set[str] = set()
        self._taken: set[str] = set()  # no candidate of another row may be one of these

    def takes(self, task: Task, example: Example) -> bool:
        """Whether no anchor would meet itself or a known positive of its own as somebody's candidate."""
        candidates = example.texts[1:]
        return (
            example.anchor not in self._anchors
            and self._taken.isdisjoint(candidates)
            and all(self._candidates.isdisjoint(texts) for texts in not_negative(task, example))
        )

    def add(self, task: Task, example: Example) -> None:
        self._anchors.add(example.anchor)
        self._candidates.update(example.texts[1:])
        self._taken.update(*not_negative(task, example))


def not_negative(task: Task, example: Example) -> tuple[frozenset[str], frozenset[str]]:
    """Texts that are no negatives of this anchor, in two sets: those of a label are many, and not copied."""
    return task.known.get(example.anchor, frozenset()), frozenset((example.anchor, example.positive))


class Masks(NamedTuple):
    """bool, of b anchors of a process against the B rows of the batch, for `info_nce`; None where nothing is to be hidden."""

    known: Tensor | None  # (b, B)
    known_negatives: Tensor | None  # (b, B, M)
    alike_anchors: Tensor | None  # (b, B)
    alike_positives: Tensor | None  # (b, B)


def masks(batch: Batch, rows: slice) -> Masks:
    """Of the anchors in `rows`. An anchor's own positive is not hidden by them.

    Where examples have fewer negatives than others, what is missing is hidden from all.
    """
    examples = batch.examples
    most = max(len(example.negatives) for example in examples)
    known, negatives, anchors, positives = _cells(batch, rows)
    shape = (rows.stop - rows.start, len(examples))
    short = [j for j, example in enumerate(examples) if len(example.negatives) < most]
    alone = [i for i in range(rows.start, rows.stop) if not batch.tasks[i].settings.in_batch]
    hidden = hidden_negatives = None  # of large batches they are large, and mostly there is nothing to hide
    if known or alone:
        hidden = _marked(shape, [(i - rows.start, j) for i, j in known if rows.start <= i < rows.stop])
    if most and (negatives or short or alone):
        hidden_negatives = _marked((*shape, most), negatives)
        for j in short:
            hidden_negatives[:, j, len(examples[j].negatives) :] = True
    for i in alone:
        row = i - rows.start
        if hidden is not None:
            hidden[row] = True
            hidden[row, i] = False
        if hidden_negatives is not None:
            own = hidden_negatives[row, i].clone()
            hidden_negatives[row] = True
            hidden_negatives[row, i] = own
    return Masks(hidden, hidden_negatives, _either_way(shape, anchors, rows), _either_way(shape, positives, rows))


def _cells(batch: Batch, rows: slice) -> tuple[list[Cell], list[tuple[int, int, int]], list[Cell], list[Cell]]:
    """What is to be hidden: (i, j) positive j from anchor i; (row, j, m) negative m of row j from anchor `row` of `rows`;
    (i, j) of two anchors and of two positives, in one order or in both."""
    anchors: dict[str, list[int]] = {}  # text -> rows that have it as their anchor
    positives: dict[str, list[int]] = {}
    negatives: dict[str, list[tuple[int, int]]] = {}  # text -> (row, number)
    for j, example in enumerate(batch.examples):
        anchors.setdefault(example.anchor, []).append(j)
        if example.positive:
            positives.setdefault(example.positive, []).append(j)
        for m, text in enumerate(example.negatives):
            negatives.setdefault(text, []).append((j, m))
    known: list[Cell] = []
    hidden: list[tuple[int, int, int]] = []
    of_anchors: list[Cell] = []
    of_positives: list[Cell] = []
    places = set(anchors), set(positives), set(negatives)
    for i, (example, task) in enumerate(zip(batch.examples, batch.tasks, strict=True)):
        for texts in not_negative(task, example):
            of_anchors += [(i, j) for text in texts & places[0] for j in anchors[text] if j != i]
            known += [(i, j) for text in texts & places[1] for j in positives[text] if j != i]
            if rows.start <= i < rows.stop:
                row = i - rows.start
                hidden += [(row, j, m) for text in texts & places[2] for j, m in negatives[text]]
        alike = task.known.get(example.positive, frozenset())
        of_positives += [(i, j) for text in alike & places[1] for j in positives[text] if j != i]
    return known, hidden, known + of_anchors, known + of_positives


def _either_way(shape: tuple[int, int], cells: Sequence[Cell], rows: slice) -> Tensor | None:
    """(b, B): the cells, and each with its two rows exchanged, because two texts are alike in either order."""
    if not cells:
        return None
    both = (cell for i, j in cells for cell in ((i, j), (j, i)))
    return _marked(shape, [(i - rows.start, j) for i, j in both if rows.start <= i < rows.stop])


def _marked(shape: tuple[int, ...], cells: Sequence[tuple[int, ...]]) -> Tensor:
    """True in these cells."""
    marked = torch.zeros(shape, dtype=torch.bool)
    marked[tuple(torch.tensor(cells, dtype=torch.int64).reshape(-1, len(shape)).T)] = True
    return marked
