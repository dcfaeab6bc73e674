"""Losses on scored pairs, triplets and a teacher's scores. Functions of tensors; see contrastive.py for InfoNCE.

Formulas are those of sentence-transformers where these are right (CoSENT in O(B log B), AnglE as cosine plus sine); there they
are modules that hold the model, here they are functions that gradient caching and nested dimensions can wrap.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from embedkit.train.contrastive import HIDDEN, in_blocks
from embedkit.train.gather import first_row, gather_rows


def cosent(scores: Tensor, labels: Tensor, *, scale: float = 20.0) -> Tensor:
    """log(1 + sum of exp(scale * (s_i - s_j)) over all pairs with label_i < label_j) (CoSENT, Huang et al. 2024).

    scores (B,), higher is nearer, a cosine for CoSENT itself; labels (B,). Returns (). A suffix sum over the sorted labels
    takes the place of the (B, B) differences.
    """
    labels, order = labels.sort()
    scores = scores[order] * scale
    above = torch.searchsorted(labels, labels, right=True)  # where the strictly higher labels begin
    suffix = torch.logcumsumexp(-scores.flip(0), dim=0).flip(0)
    suffix = torch.cat((suffix, suffix.new_full((1,), HIDDEN)))
    return torch.logsumexp(torch.cat((scores.new_zeros(1), scores + suffix[above])), dim=0)


def angle(left: Tensor, right: Tensor, labels: Tensor, *, scale: float = 20.0) -> Tensor:
    """CoSENT's ranking over AnglE's score (Li & Li 2024, arXiv 2309.12871). left, right (B, D); labels (B,). Returns ().

    An auxiliary term: the score is largest off y = x and the same for y = -x; the authors' default weight is 0.02.
    """
    return cosent(angle_score(left, right), labels, scale=scale)


def angle_score(left: Tensor, right: Tensor) -> Tensor:
    """|cos(x, y) + cos(x, iy)|, the halves of a row being its real and imaginary parts. (B, D), (B, D) -> (B,)."""
    if left.shape[-1] % 2:
        left, right = F.pad(left, (0, 1)), F.pad(right, (0, 1))
    left, right = F.normalize(left, dim=-1), F.normalize(right, dim=-1)
    real, imaginary = left.chunk(2, dim=-1)
    other_real, other_imaginary = right.chunk(2, dim=-1)
    sines = (imaginary * other_real - real * other_imaginary).sum(-1)
    return ((left * right).sum(-1) + sines).abs()


def triplet(anchors: Tensor, positives: Tensor, negatives: Tensor, *, margin: float = 0.3) -> Tensor:
    """mean of max(0, margin - s(q, p) + s(q, n)) over all negatives (Schroff et al. 2015, with the dot product).

    anchors, positives (B, D), negatives (B, M, D). Returns ().
    """
    gaps = (anchors * positives).sum(-1)[:, None] - torch.einsum("bd,bmd->bm", anchors, negatives)
    return F.relu(margin - gaps).mean()


def margin_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of the margins s(q, p) - s(q, n) (Hofstaetter et al. 2020, arXiv 2010.02666).

    student, teacher (B, 1 + M): the scores of the positive, then of the negatives. Returns ().
    """
    return F.mse_loss(student[:, :1] - student[:, 1:], (teacher[:, :1] - teacher[:, 1:]).detach())


def kl_distillation(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, teacher_temperature: float | None = None
) -> Tensor:
    """KL(softmax(teacher / t') || softmax(student / t)), mean over the rows (Hinton et al. 2015, section 2).

    student, teacher (B, C), scores of the same candidates; a candidate with -inf in both is left out. teacher_temperature:
    t' where it is not t. The teacher gets no gradient. Returns (). Without Hinton's factor t^2, as in KaLM-Embedding V2.5 (Zhao
    et al. 2025), which adds it to InfoNCE: t is 0.05 here, and the term would be 400 times smaller than its neighbour.
    """
    log_student = torch.log_softmax(student / temperature, dim=1)
    log_teacher = torch.log_softmax(teacher.detach() / (teacher_temperature or temperature), dim=1)
    gaps = torch.where(log_teacher == HIDDEN, 0.0, log_teacher - log_student)
    return (log_teacher.exp() * gaps).sum(1).mean()


def list_net(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, teacher_temperature: float | None = None
) -> Tensor:
    """Cross-entropy of the top-one probabilities (ListNet, Cao et al. 2007, eq. 6): KL plus the teacher's entropy.

    student, teacher (B, C), scores of the same candidates, of which none may be left out; temperatures as in `kl_distillation`.
    Returns (), mean over the rows.
    """
    target = torch.softmax(teacher.detach() / (teacher_temperature or temperature), dim=1)
    return F.cross_entropy(student / temperature, target)


def in_batch_distillation(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 0.05,
    counts: Sequence[int] | None = None,
    rows_at_once: int = 256,
) -> Tensor:
    """KL between the similarities of a batch's rows under the teacher and under the student, each row without itself.

    student (B, D), teacher (B, D') unit rows of the same B >= 2 texts; the widths may differ, which is what lets a prefix or an early
    layer learn from whole rows. Returns (), mean over the rows. (Relational distillation, Park et al. 2019, with the softmax
    of SEED, Fang et al. 2021, eq. 4.) Without temperature^2, so that its gradient has the size of InfoNCE's.
    counts: the B of each process, where rows are compared with those of all processes; `teacher` then holds the rows of all. The
    mean of what the processes return is the loss of one process with all rows.
    """
    everywhere = student if counts is None else gather_rows(student, counts)
    first, processes = (0, 1) if counts is None else (first_row(counts), len(counts))

    def losses(start: int, stop: int) -> Tensor:
        places = torch.arange(len(everywhere), device=student.device)
        block = slice(first + start, first + stop)
        own = places[block, None] == places
        log_student, log_teacher = (
            torch.log_softmax((rows[block] @ rows.T / temperature).masked_fill(own, HIDDEN), dim=1)
            for rows in (everywhere, teacher.detach())
        )
        return (log_teacher.exp() * torch.where(own, 0.0, log_teacher - log_student)).sum(1)

    return in_blocks(losses, len(student), rows_at_once).sum() * processes / len(everywhere)


def embedding_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine of each row and the teacher's row of the same text; half the squared distance of Reimers & Gurevych 2020
    (arXiv 2004.09813, eq. 1), for unit rows. student, teacher (B, D). Returns (), mean over the rows."""
    return (1 - (student * teacher.detach()).sum(1)).mean()
