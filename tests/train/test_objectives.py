"""Each loss of a recipe on rows of a batch, against the function it stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from embedkit.errors import DataError, UsageError
from embedkit.train import losses, settings
from embedkit.train.batches import Batch
from embedkit.train.contrastive import info_nce
from embedkit.train.data import Example, Task, known_positives
from embedkit.train.objectives import LOSSES, Objective, Targets, check_data, targets_of, texts_of, with_right_pairs
from embedkit.train.settings import Data, Loss
from tests.train.test_contrastive import unit

EXAMPLES = [
    Example("a", "b", ("c", "d"), score=0.2, teacher=(3.0, 1.0, 2.0)),
    Example("e", "f", ("g", "h"), score=0.9, teacher=(2.0, 1.5, 0.0)),
    Example("i", "j", ("k", "l"), score=0.5, teacher=(5.0, 4.0, 1.0)),
]
SHORT = [*EXAMPLES[:2], replace(EXAMPLES[2], negatives=("k",), teacher=(5.0, 4.0))]


def batch_of(examples: list[Example]) -> Batch:
    task = Task("t", Data("t", query_prompt="q: ", document_prompt="d: "), examples, known_positives(examples))
    return Batch(examples, [task] * len(examples))


def value(name: Any, examples: list[Example], rows: Tensor, **settings: Any) -> Tensor:
    targets = replace(targets_of(batch_of(examples), slice(0, 3)), teacher_rows={0: unit(len(rows), 6, seed=9)})
    return Objective([Loss(name, **settings)], targets, {})([rows])


ANCHORS, POSITIVES, NEGATIVES = unit(3, 6), unit(3, 6, seed=1), unit(3, 2, 6, seed=2)
ROWS = torch.cat((ANCHORS, POSITIVES, NEGATIVES.flatten(0, 1)))
SCORES = torch.cat(((ANCHORS * POSITIVES).sum(1)[:, None], torch.einsum("bd,bmd->bm", ANCHORS, NEGATIVES)), 1)
TEACHER = torch.tensor([example.teacher for example in EXAMPLES])
COLD = ("info_nce", "kl", "list_net", "in_batch_distillation")  # which take a temperature
LABELS = torch.tensor([0.2, 0.9, 0.5])
EXPECTED: dict[str, Callable[[], Tensor]] = {
    "info_nce": lambda: info_nce(ANCHORS, POSITIVES, NEGATIVES, temperature=0.1),
    "triplet": lambda: losses.triplet(ANCHORS, POSITIVES, NEGATIVES),
    "cosent": lambda: losses.cosent(SCORES[:, 0], LABELS),
    "angle": lambda: losses.angle(ANCHORS, POSITIVES, LABELS),
    "margin_mse": lambda: losses.margin_mse(SCORES, TEACHER),
    "kl": lambda: losses.kl_distillation(SCORES, TEACHER, temperature=0.1),
    "list_net": lambda: losses.list_net(SCORES, TEACHER, temperature=0.1),
    "in_batch_distillation": lambda: losses.in_batch_distillation(ROWS, unit(12, 6, seed=9), temperature=0.1),
    "embedding_distillation": lambda: losses.embedding_distillation(ROWS, unit(12, 6, seed=9)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_of_a_recipe(name: str) -> None:
    settings = {"temperature": 0.1} if name in COLD else {}
    torch.testing.assert_close(
        value(name, EXAMPLES, ROWS, weight=2.0, **settings), 2 * EXPECTED[name](), check_dtype=False
    )


def test_a_prefix_is_not_held_to_the_teachers_rows() -> None:
    assert value("embedding_distillation", EXAMPLES, ROWS[:, :3]).item() == 0


def test_a_recipe_may_give_the_teacher_a_temperature_of_its_own() -> None:
    both = {"temperature": 0.1, "teacher_temperature": 2.0}
    for name, loss in (("kl", losses.kl_distillation), ("list_net", losses.list_net)):
        got = value(name, EXAMPLES, ROWS, **both)
        torch.testing.assert_close(got, loss(SCORES, TEACHER, **both), check_dtype=False)


@pytest.mark.parametrize("name", ["info_nce", "triplet", "kl", "margin_mse"])
def test_what_is_not_there_counts_nothing(name: str) -> None:
    """The last example has one negative: the loss, and its gradient, are those of the others' lists."""
    rows = torch.cat((ANCHORS, POSITIVES, NEGATIVES.flatten(0, 1)[:5])).requires_grad_()
    got = value(name, SHORT, rows, **({"temperature": 0.1} if name in COLD else {}))
    got.backward()
    assert torch.isfinite(rows.grad).all()
    if name == "info_nce":
        hidden = torch.zeros(3, 3, 2, dtype=torch.bool)
        hidden[:, 2, 1] = True
        expected = info_nce(ANCHORS, POSITIVES, NEGATIVES, temperature=0.1, known_negatives=hidden)
    elif name == "triplet":
        gaps = (SCORES[:, :1] - SCORES[:, 1:]).flatten()[:5]
        expected = torch.relu(0.3 - gaps).mean()
    elif name == "margin_mse":
        gaps = (SCORES[:, :1] - SCORES[:, 1:] - TEACHER[:, :1] + TEACHER[:, 1:]).flatten()[:5]
        expected = gaps.pow(2).mean()
    else:
        each = [
            losses.kl_distillation(SCORES[i : i + 1, :n], TEACHER[i : i + 1, :n], temperature=0.1)
            for i, n in enumerate((3, 3, 2))
        ]
        expected = torch.stack(each).mean()
    torch.testing.assert_close(got.detach(), expected.detach(), check_dtype=False)


def test_terms_are_summed_and_mixing_adds_negatives() -> None:
    targets = targets_of(batch_of(EXAMPLES), slice(0, 3))
    both = Objective([Loss("info_nce"), Loss("cosent", weight=0.5)], targets, {})([ROWS])
    torch.testing.assert_close(both, value("info_nce", EXAMPLES, ROWS) + 0.5 * value("cosent", EXAMPLES, ROWS))
    found = []
    for mixing in ("none", "pair", "both"):
        torch.manual_seed(0)
        found.append(float(value("info_nce", EXAMPLES, ROWS, mixing=mixing)))
    assert found == sorted(set(found))
    mixed = Objective([Loss("info_nce", mixing="both")], targets, {})
    torch.testing.assert_close(mixed([ROWS]), mixed([ROWS]))  # one draw a batch


def test_a_learned_temperature_gets_a_gradient() -> None:
    logarithm = torch.tensor(-2.0, requires_grad=True)
    targets = targets_of(batch_of(EXAMPLES), slice(0, 3))
    got = Objective([Loss("info_nce", learn_temperature=True)], targets, {0: logarithm})([ROWS])
    torch.testing.assert_close(got, info_nce(ANCHORS, POSITIVES, NEGATIVES, temperature=logarithm.detach().exp()))
    got.backward()
    assert logarithm.grad is not None


def test_texts_stand_in_the_order_of_their_rows() -> None:
    texts = texts_of(batch_of(SHORT), slice(1, 3))
    assert texts == [("q: ", "e"), ("q: ", "i"), ("d: ", "f"), ("d: ", "j"), *(("d: ", one) for one in "ghk")]
    targets: Targets = targets_of(batch_of(SHORT), slice(1, 3))
    assert targets.places.tolist() == [0, 1, 2]
    assert targets.present.tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize(
    ("name", "examples", "negatives", "message"),
    [
        ("info_nce", [Example("a")], 0, "needs positives"),
        ("triplet", EXAMPLES, 0, "needs negatives.*; set batch.negatives"),
        ("cosent", [Example("a", "b")], 0, "needs scores"),
        ("kl", [Example("a", "b", ("c",))], 1, "needs a teacher's scores"),
        ("list_net", SHORT, 2, "as many negatives with every example; there are 1 to 2"),
    ],
)
def test_data_that_a_loss_cannot_use_are_refused(
    name: Any, examples: list[Example], negatives: int, message: str
) -> None:
    task = batch_of(examples).tasks[0]
    with pytest.raises(DataError, match=message):
        check_data([Loss(name)], [task], settings.Batch(negatives=negatives))
    check_data([Loss("info_nce")], [batch_of(EXAMPLES).tasks[0]], settings.Batch(negatives=negatives))


PAIRS = [Example("a", "b"), Example("c", "d")]
SAME = [Example("a", "b", score=0.5), Example("c", "d", score=0.5)]
LISTS = [Example("a", "b", ("n",), alike=frozenset("ab")), Example("b", "a", ("n",), alike=frozenset("ab"))]


@pytest.mark.parametrize(
    ("name", "data", "examples", "message"),
    [
        ("info_nce", {}, PAIRS[:1], "leaves no negatives; give more pairs"),
        ("info_nce", {}, [Example("a", "b"), Example("a", "c")], "leaves no negatives"),
        ("info_nce", {}, LISTS, "leaves no negatives"),
        ("info_nce", {"in_batch": False}, PAIRS, "in_batch is false and no negatives are used; set batch.negatives"),
        ("cosent", {}, SAME, "all scores are 0.5"),
        ("in_batch_distillation", {}, [Example("a")] * 3, "there is one text"),
    ],
)
def test_data_that_would_train_nothing_are_refused(
    name: Any, data: dict[str, Any], examples: list[Example], message: str
) -> None:
    """The gradient of a batch of all examples is zero, which is the reason."""
    task = Task("t", Data("t", **data), examples, known_positives(examples))
    with pytest.raises(UsageError, match=f"{name} can learn nothing from t: .*{message}"):
        check_data([Loss(name)], [task], settings.Batch())
    bare = [replace(one, negatives=()) for one in examples]
    targets = targets_of(Batch(bare, [task] * len(bare)), slice(0, len(bare)))
    texts = [text for part in zip(*(one.texts for one in bare), strict=True) for text in part]
    places = [list(dict.fromkeys(texts)).index(text) for text in texts]  # one text, one row
    rows = unit(len(texts), 6)[places].requires_grad_()
    teacher = unit(len(texts), 4, seed=9)[places]
    loss = Objective([Loss(name)], replace(targets, teacher_rows={0: teacher}), {})([rows])
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert rows.grad is not None
    assert rows.grad.abs().max() < 1e-6


def test_data_that_train_something_are_taken(caplog: pytest.LogCaptureFixture) -> None:
    alone, pairs = (Task("t", Data("t", in_batch=way), EXAMPLES, known_positives(EXAMPLES)) for way in (False, True))
    small = Task("s", Data("s"), PAIRS[:1], known_positives(PAIRS[:1]))
    check_data([Loss("info_nce")], [alone], settings.Batch(size=3, negatives=1))
    check_data([Loss("info_nce")], [small, pairs], settings.Batch(size=3, kind="blended", negatives=1))
    one_anchor = [Example("a", "b", score=0.1), Example("a", "c", score=0.7)]
    check_data([Loss("cosent")], [replace(small, examples=one_anchor)], settings.Batch(size=1))
    assert not caplog.records
    check_data([Loss("info_nce")], [pairs], settings.Batch(size=4))
    assert [record.getMessage() for record in caplog.records] == [
        "batch.size is 4 and the data have 3 different anchors: batches repeat some.",
        "t has negatives, and batch.negatives is 0: none are used; set it to use them.",
    ]
    caplog.clear()
    check_data([Loss("info_nce")], [pairs], settings.Batch(size=2, negatives=9))
    assert [record.getMessage() for record in caplog.records] == [
        "batch.negatives is 9, and no example has more than 2."
    ]


SCORED = [Example(f"a{place}", f"p{place}", score=score) for place, score in enumerate((1, 0, 0.5, -1))]


def scored(examples: Sequence[Example]) -> Task:
    return Task("t", Data("t"), examples, known_positives(examples))


def test_pairs_that_are_no_positives_are_left_to_losses_of_scores(caplog: pytest.LogCaptureFixture) -> None:
    (whole,) = with_right_pairs([Loss("cosent")], [scored(SCORED)])
    assert (whole.examples, caplog.records) == (SCORED, [])
    (right,) = with_right_pairs([Loss("info_nce"), Loss("in_batch_distillation")], [scored(SCORED)])
    assert right.examples == [SCORED[0], SCORED[2]]
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "t has scores other than 0 and 1: info_nce takes every pair above 0 for a positive; cosent and angle learn from scores."
    ]
    with pytest.raises(
        DataError, match=r"2 pairs of t .* cosent learns from them, and info_nce would take them for pos"
    ):
        with_right_pairs([Loss("info_nce"), Loss("cosent")], [scored(SCORED)])
    with pytest.raises(DataError, match="All 2 pairs of t have a score or label of 0 or less"):
        with_right_pairs([Loss("triplet")], [scored(SCORED[1::2])])


def test_what_is_drawn_for_a_batch_does_not_depend_on_who_has_its_rows() -> None:
    """The mixed negatives of the whole batch, and of its rows one by one, by the same generator."""
    batch = batch_of(EXAMPLES)

    def loss(rows: slice) -> Tensor:
        objective = Objective(
            [Loss("info_nce", mixing="pair", denominator="own_hard")],
            targets_of(batch, rows),
            {},
            torch.Generator().manual_seed(3),
        )
        return objective([torch.cat((ANCHORS[rows], POSITIVES[rows], NEGATIVES[rows].flatten(0, 1)))])

    alone = torch.stack([loss(slice(i, i + 1)) for i in range(3)])
    torch.testing.assert_close(alone.mean(), loss(slice(0, 3)))


@pytest.mark.parametrize("name", ["triplet", "margin_mse"])
def test_means_over_negatives_are_weighted_by_their_number(name: Any) -> None:
    """Two, two and one: the mean over the shares of a batch is that of the batch."""
    batch = batch_of(SHORT)
    alone = []
    for i in range(3):
        negatives = NEGATIVES[i, : len(SHORT[i].negatives)]
        rows = torch.cat((ANCHORS[i : i + 1], POSITIVES[i : i + 1], negatives))
        alone.append(Objective([Loss(name)], targets_of(batch, slice(i, i + 1)), {})([rows]))
    whole = torch.cat((ANCHORS, POSITIVES, NEGATIVES.flatten(0, 1)[:5]))
    torch.testing.assert_close(torch.stack(alone).mean(), value(name, SHORT, whole))


def test_means_over_rows_are_weighted_by_their_number() -> None:
    """Four, four and three rows."""
    batch, teacher, student = batch_of(SHORT), unit(11, 6, seed=9), unit(11, 6, seed=8)
    alone = []
    for i, places in enumerate(([0, 3, 6, 7], [1, 4, 8, 9], [2, 5, 10])):
        targets = replace(targets_of(batch, slice(i, i + 1)), teacher_rows={0: teacher[places]})
        alone.append(Objective([Loss("embedding_distillation")], targets, {})([student[places]]))
    torch.testing.assert_close(torch.stack(alone).mean(), losses.embedding_distillation(student, teacher))
