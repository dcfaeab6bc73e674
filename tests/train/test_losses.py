"""Each loss against a loop, the loss of sentence-transformers, or a number worked by hand, and its gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from embedkit.train import losses
from tests.train.test_contrastive import unit

LABELS = torch.tensor([0.2, 0.9, 0.5, 0.5, 0.0], dtype=torch.float64)


def teacher_and_student(candidates: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    scores = torch.randn(2, 5, candidates, generator=generator, dtype=torch.float64)
    return scores[0], scores[1]


def test_cosent_by_hand_and_by_loop() -> None:
    scores = torch.tensor([0.5, 0.9, 0.7])
    got = losses.cosent(scores, torch.tensor([1.0, 0.0, 0.5]))
    assert got.item() == pytest.approx(math.log(1 + math.exp(8) + 2 * math.exp(4)), abs=1e-5)
    scores = unit(1, 5)[0]
    terms = [math.exp(20 * float(scores[i] - scores[j])) for i in range(5) for j in range(5) if LABELS[i] < LABELS[j]]
    assert losses.cosent(scores, LABELS).item() == pytest.approx(math.log1p(sum(terms)))
    assert losses.cosent(scores, torch.ones(5)).item() == pytest.approx(0)


def test_angle_by_hand_and_against_sentence_transformers() -> None:
    from sentence_transformers.sentence_transformer.losses import AnglELoss

    one, other = torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[2.0, 1, 0, 1]])
    assert losses.angle_score(one, other).item() == pytest.approx(1.192569, abs=1e-6)
    assert losses.angle_score(other, one).item() == pytest.approx(0, abs=1e-6)
    assert losses.angle_score(one, -one).item() == pytest.approx(1, abs=1e-6)
    for width in (6, 7):
        left, right = unit(5, width), unit(5, width, seed=1)
        theirs = AnglELoss(None).compute_loss_from_embeddings([left, right], LABELS)
        torch.testing.assert_close(losses.angle(left, right, LABELS), theirs)


def test_triplet_by_hand() -> None:
    anchor, positive = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
    negatives = torch.tensor([[[0.8, 0.6], [0.0, 1.0]]])
    assert losses.triplet(anchor, positive, negatives, margin=0.3).item() == pytest.approx((0.5 + 0) / 2)


def test_margin_mse_by_hand() -> None:
    student, teacher = torch.tensor([[0.9, 0.5, 0.2]]), torch.tensor([[8.0, 7.0, 7.0]])
    assert losses.margin_mse(student, teacher).item() == pytest.approx(((0.4 - 1) ** 2 + (0.7 - 1) ** 2) / 2)


def test_kl_by_hand_by_loop_and_at_rest() -> None:
    student, teacher = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[2.0, 1.0, 0.0]])
    assert losses.kl_distillation(student, teacher).item() == pytest.approx(0.119630, abs=1e-6)
    assert losses.kl_distillation(teacher, teacher, temperature=0.3).item() == pytest.approx(0, abs=1e-6)
    left_out = torch.tensor([[-math.inf]])
    wider = losses.kl_distillation(torch.cat((student, left_out), 1), torch.cat((teacher, left_out), 1))
    assert wider.item() == pytest.approx(0.119630, abs=1e-6)
    student, teacher = teacher_and_student()
    p, q = torch.softmax(teacher / 0.5, 1), torch.softmax(student / 2, 1)
    slow = sum(float(p[i, j]) * math.log(p[i, j] / q[i, j]) for i in range(5) for j in range(4)) / 5
    got = losses.kl_distillation(student, teacher, temperature=2, teacher_temperature=0.5)
    assert got.item() == pytest.approx(slow)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.05}, {"temperature": 0.05, "teacher_temperature": 2.0}])
def test_list_net_is_kl_plus_the_entropy_of_the_teacher(settings: dict[str, float]) -> None:
    """So their gradients are the same at any temperature, and KL has no factor of it (KaLM-Embedding V2.5)."""
    student, teacher = teacher_and_student()
    p = torch.softmax(teacher / settings.get("teacher_temperature", settings.get("temperature", 1.0)), 1)
    entropy = -torch.xlogy(p, p).sum(1).mean()
    got = losses.list_net(student, teacher, **settings) - entropy
    torch.testing.assert_close(got, losses.kl_distillation(student, teacher, **settings))


@pytest.mark.parametrize("rows_at_once", [8, 2])
def test_in_batch_distillation_by_loop(rows_at_once: int) -> None:
    student, teacher = unit(5, 3), unit(5, 6, seed=1)
    total = 0.0
    for i in range(5):
        others = [j for j in range(5) if j != i]
        p = torch.softmax(torch.stack([teacher[i] @ teacher[j] for j in others]) / 0.1, 0)
        q = torch.softmax(torch.stack([student[i] @ student[j] for j in others]) / 0.1, 0)
        total += float((p * (p / q).log()).sum()) / 5
    got = losses.in_batch_distillation(student, teacher, temperature=0.1, rows_at_once=rows_at_once)
    assert got.item() == pytest.approx(total)
    assert losses.in_batch_distillation(teacher, teacher).item() == pytest.approx(0, abs=1e-9)


def test_embedding_distillation_by_hand() -> None:
    student = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    teacher = torch.tensor([[0.0, 1.0], [0.6, 0.8]])
    assert losses.embedding_distillation(student, teacher).item() == pytest.approx((1 + 0) / 2)


def test_gradients() -> None:
    left, right = unit(5, 6).requires_grad_(), unit(5, 6, seed=1).requires_grad_()
    negatives = unit(5, 2, 6, seed=2).requires_grad_()
    student, teacher = teacher_and_student()
    student.requires_grad_()
    check = torch.autograd.gradcheck
    assert check(lambda a, b: losses.cosent((a * b).sum(1), LABELS, scale=3), (left, right))
    assert check(lambda a, b: losses.angle(a, b, LABELS, scale=3), (left, right))
    assert check(losses.triplet, (left, right, negatives))
    assert check(lambda s: losses.margin_mse(s, teacher), (student,))
    assert check(lambda s: losses.kl_distillation(s, teacher, temperature=0.7), (student,))
    assert check(lambda s: losses.list_net(s, teacher, temperature=0.7), (student,))
    assert check(lambda s: losses.embedding_distillation(s, right), (left,))
    for rows_at_once in (8, 2):
        assert check(
            lambda s: losses.in_batch_distillation(s, right, temperature=0.5, rows_at_once=rows_at_once),  # noqa: B023
            (left,),
        )


def test_a_teacher_gets_no_gradient() -> None:
    student, teacher = teacher_and_student()
    student.requires_grad_(), teacher.requires_grad_()
    for loss in (losses.margin_mse, losses.kl_distillation, losses.list_net):
        loss(student, teacher).backward()
    losses.in_batch_distillation(student, teacher).backward()
    losses.embedding_distillation(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
