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

import numpy as np
import torch
from torch import Tensor

from embedkit.errors import UsageError
from embedkit.train import settings
from embedkit.train.data import Example, Task

WAITING = 512  # examples of a task that may wait
WINDOW = 16  # semi-homogeneous batches that are dealt among each other


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
            and self._candidates.isdisjoint(_not_negative(task, example))
        )

    def add(self, task: Task, example: Example) -> None:
        self._anchors.add(example.anchor)
        self._candidates.update(example.texts[1:])
        self._taken.update(_not_negative(task, example))


def _not_negative(task: Task, example: Example) -> frozenset[str]:
    """Texts that are no negatives of this anchor."""
    return task.known.get(example.anchor, frozenset()) | {example.anchor, example.positive}


def masks(batch: Batch, rows: slice) -> tuple[Tensor | None, Tensor | None]:
    """(known (b, B), known_negatives (b, B, M)) bool for `info_nce`, of the anchors in `rows` against the whole batch.

    None where nothing is hidden beside an anchor's own positive. Where examples have fewer negatives than others, what is
    missing is hidden from all.
    """
    examples = batch.examples
    most = max(len(example.negatives) for example in examples)
    places: dict[str, list[tuple[int, int]]] = {}  # text -> (row, -1 for its positive or the number of its negative)
    for j, example in enumerate(examples):
        for m, text in enumerate((example.positive, *example.negatives), -1):
            places.setdefault(text, []).append((j, m))
    shape = (rows.stop - rows.start, len(examples), most)
    hidden: tuple[list[tuple[int, int]], list[tuple[int, int, int]]] = ([], [])  # cells of the two masks
    for row, i in enumerate(range(rows.start, rows.stop)):
        for text in places.keys() & _not_negative(batch.tasks[i], examples[i]):
            hidden[0].extend((row, j) for j, m in places[text] if m < 0 and j != i)
            hidden[1].extend((row, j, m) for j, m in places[text] if m >= 0)
    short = [j for j, example in enumerate(examples) if len(example.negatives) < most]
    alone = [i for i in range(rows.start, rows.stop) if not batch.tasks[i].settings.in_batch]
    known = known_negatives = None  # of large batches they are large, and mostly there is nothing to hide
    if hidden[0] or alone:
        known = torch.zeros(shape[:2], dtype=torch.bool)
        known[tuple(torch.tensor(hidden[0], dtype=torch.int64).reshape(-1, 2).T)] = True
    if most and (hidden[1] or short or alone):
        known_negatives = torch.zeros(shape, dtype=torch.bool)
        known_negatives[tuple(torch.tensor(hidden[1], dtype=torch.int64).reshape(-1, 3).T)] = True
        for j in short:
            known_negatives[:, j, len(examples[j].negatives) :] = True
    for i in alone:
        row = i - rows.start
        if known is not None:
            known[row] = True
            known[row, i] = False
        if known_negatives is not None:
            own = known_negatives[row, i].clone()
            known_negatives[row] = True
            known_negatives[row, i] = own
    return known, known_negatives
