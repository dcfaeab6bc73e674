"""What meets in a batch, and what the masks hide."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import pytest

from embedkit.errors import UsageError
from embedkit.train import settings
from embedkit.train.batches import Batch, BatchStream, masks
from embedkit.train.data import Example, Task, known_positives
from embedkit.train.settings import Data


def task(name: str, examples: Sequence[Example], **data: Any) -> Task:
    return Task(name, Data(path=name, **data), examples, known_positives(examples))


def many(name: str, count: int = 50) -> list[Example]:
    return [Example(f"{name}{i}", f"{name}+{i}", tuple(f"{name}-{i}{j}" for j in range(3))) for i in range(count)]


def stream(tasks: Sequence[Task], **batch: Any) -> BatchStream:
    return BatchStream(tasks, settings.Batch(**batch), seed=7)


def take(tasks: Sequence[Task], count: int, **batch: Any) -> list[Batch]:
    return list(islice(stream(tasks, **batch), count))


TASKS = [task("a", many("a")), task("b", many("b"), weight=150.0)]


def test_homogeneous_batches_are_of_one_task_drawn_by_weight() -> None:
    batches = take(TASKS, 200, size=8, negatives=2)
    assert all(len({one.name for one in batch.tasks}) == 1 for batch in batches)
    share = sum(batch.tasks[0].name == "b" for batch in batches) / 200
    assert 0.65 < share < 0.85  # 150 of 50 + 150
    assert all(len(example.negatives) == 2 for batch in batches for example in batch.examples)
    drawn = {example.negatives for batch in batches for example in batch.examples if example.anchor == "b1"}
    assert len(drawn) > 1


def test_every_example_is_used_before_any_is_used_again() -> None:
    anchors = [example.anchor for batch in take(TASKS[:1], 10, size=10) for example in batch.examples]
    assert sorted(anchors[:50]) == sorted(anchors[50:]) == sorted(example.anchor for example in TASKS[0].examples)
    assert anchors[:50] != anchors[50:]


def test_blended_batches_draw_the_task_of_each_row() -> None:
    batches = take(TASKS, 50, size=16, kind="blended")
    names = [one.name for batch in batches for one in batch.tasks]
    assert 0.7 < names.count("b") / len(names) < 0.8
    assert sum(len({one.name for one in batch.tasks}) == 2 for batch in batches) > 40


def test_semi_homogeneous_batches_keep_a_share_of_their_task() -> None:
    batches = take(TASKS, 32, size=8, kind="semi_homogeneous", ratio=0.75)
    assert all(len({one.name for one in batch.tasks[:6]}) == 1 for batch in batches)
    assert any(len({one.name for one in batch.tasks}) == 2 for batch in batches)
    plain = take(TASKS, 32, size=8)
    used = sorted(example.anchor for batch in batches for example in batch.examples)
    assert len(used) == 256 == sum(len(batch.examples) for batch in plain)


def test_processes_have_equal_shares_of_a_batch() -> None:
    (batch,) = take(TASKS, 1, size=6)
    assert [batch.share(rank, 3) for rank in range(3)] == [slice(0, 2), slice(2, 4), slice(4, 6)]
    with pytest.raises(UsageError, match=r"batch\.size is 6 and there are 4 processes.*; choose a multiple of 4"):
        batch.share(0, 4)


def test_the_same_seed_gives_the_same_batches() -> None:
    for kind in ("homogeneous", "blended", "semi_homogeneous"):
        assert take(TASKS, 20, size=8, negatives=1, kind=kind) == take(TASKS, 20, size=8, negatives=1, kind=kind)


def test_no_anchor_meets_itself_or_its_positives_as_a_negative() -> None:
    """Thirty anchors with four positives each, which are negatives of others."""
    examples = [
        Example(f"q{i}", f"p{i}{j}", (f"p{(i + 1) % 30}{j}", f"q{(i + 2) % 30}")) for i in range(30) for j in range(4)
    ]
    known = known_positives(examples)
    for batch in take([task("t", examples)], 30, size=3, negatives=2):
        anchors = [example.anchor for example in batch.examples]
        assert len(set(anchors)) == 3
        for i, example in enumerate(batch.examples):
            others = {text for j, other in enumerate(batch.examples) if j != i for text in other.texts[1:]}
            assert others.isdisjoint(known[example.anchor] | {example.anchor})
        assert masks(batch, slice(0, 3)) == (None, None, None, None)


def test_masks_hide_what_the_batch_could_not_avoid() -> None:
    examples = [Example("q", "p", ("n", "m")), Example("q", "r", ("p",)), Example("s", "t", ("q", "u"))]
    one = task("t", examples)
    known, negatives, _, _ = masks(Batch(examples, [one] * 3), slice(0, 3))
    assert known is not None
    assert negatives is not None
    assert known.tolist() == [[False, True, False], [True, False, False], [False, False, False]]
    assert negatives[0].tolist() == [[False, False], [True, True], [True, False]]  # its positive, none, itself
    assert negatives[2].tolist() == [[False, False], [False, True], [False, False]]
    part = masks(Batch(examples, [one] * 3), slice(1, 2)).known
    assert part is not None
    assert part.tolist() == known[1:2].tolist()


@pytest.mark.parametrize("in_batch", [True, False])
def test_masks_are_those_of_a_slow_loop(in_batch: bool) -> None:
    """Batches of few texts, so that an anchor is a positive of another, which is a negative of a third."""
    generator = np.random.default_rng(0)
    texts = np.array(list("abcdefghijkl"))
    for _ in range(30):
        drawn = (generator.choice(texts, size=int(generator.integers(2, 5)), replace=False) for _ in range(9))
        examples = [Example(str(one[0]), str(one[1]), tuple(map(str, one[2:]))) for one in drawn]
        one = task("t", examples[:6], in_batch=in_batch)
        batch = Batch(examples, [one] * 6 + [task("u", examples[6:])] * 3)
        got = masks(batch, slice(3, 9))
        most = max(len(example.negatives) for example in examples)

        def positives(i: int, text: str, batch: Batch = batch) -> set[str]:
            return {x.positive for x in batch.tasks[i].examples if x.anchor == text}

        def avoids(i: int, examples: Sequence[Example] = examples) -> set[str]:
            return {examples[i].anchor, examples[i].positive} | positives(i, examples[i].anchor)

        for i in range(3, 9):
            for j, other in enumerate(examples):
                shut = not batch.tasks[i].settings.in_batch and i != j
                for m in range(most):
                    gone = m >= len(other.negatives) or other.negatives[m] in avoids(i)
                    assert (got.known_negatives is not None and bool(got.known_negatives[i - 3, j, m])) == (
                        shut or gone
                    )
                if i == j:
                    continue
                shared = other.positive in avoids(i) or examples[i].positive in avoids(j)
                anchors = other.anchor in avoids(i) or examples[i].anchor in avoids(j)
                two = other.positive in positives(i, examples[i].positive)
                two |= examples[i].positive in positives(j, other.positive)
                for mask, expected in (
                    (got.known, shut or other.positive in avoids(i)),
                    (got.alike_anchors, shared or anchors),
                    (got.alike_positives, shared or two),
                ):
                    assert (mask is not None and bool(mask[i - 3, j])) == expected


def test_an_anchor_is_no_negative_of_one_whose_positive_it_is() -> None:
    """a -> b and b -> c: b stands against a as an anchor, and c against b as a positive; d -> e has nothing to do with them."""
    examples = [Example("a", "b"), Example("b", "c"), Example("d", "e")]
    _, _, anchors, positives = masks(Batch(examples, [task("t", examples)] * 3), slice(0, 3))
    assert anchors is not None
    assert positives is not None
    together = [[False, True, False], [True, False, False], [False, False, False]]
    assert anchors.tolist() == positives.tolist() == together


def test_tasks_without_in_batch_negatives_see_their_own_alone() -> None:
    examples = [Example("a", "b", ("c",)), Example("d", "e", ("f",))]
    tasks = [task("x", examples[:1], in_batch=False), task("y", examples[1:])]
    known, negatives, _, _ = masks(Batch(examples, tasks), slice(0, 2))
    assert known is not None
    assert negatives is not None
    assert known.tolist() == [[False, True], [False, False]]
    assert negatives.tolist() == [[[False], [True]], [[False], [False]]]


@pytest.mark.parametrize("size", [2, 8])
def test_few_examples_that_contradict_each_other_still_fill_a_batch(size: int) -> None:
    (batch,) = take([task("t", [Example("q", f"p{i}") for i in range(3)])], 1, size=size)
    assert len(batch.examples) == size
    known = masks(batch, slice(0, size)).known
    assert known is not None
    assert known.sum() == size * (size - 1)
