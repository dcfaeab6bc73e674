"""InfoNCE against a loop over candidates, sentence-transformers' loss, and numbers worked by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from embedkit.train.contrastive import DENOMINATORS, draw_pairs, focal_mean, info_nce, mix_lists, mix_pairs

B, M, D = 5, 3, 6
TAU = 0.1


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    return unit(B, D), normalize(unit(B, D) + unit(B, D, seed=1), dim=-1), unit(B, M, D, seed=2)


def slow(
    denominator: str, known: Any = None, known_negatives: Any = None, margin: float = 9.0, alike: Any = ((), ())
) -> Tensor:
    """The table of denominators, a candidate at a time."""
    anchors, positives, negatives = batch()
    losses = []
    for i in range(B):
        true = float(anchors[i] @ positives[i])
        scores = []
        for j in range(B):
            skipped = i == j or (known is not None and bool(known[i, j]))
            if denominator != "own_hard" and not skipped:
                scores.append(anchors[i] @ positives[j])
            if denominator == "all+qq+pp" and not skipped and (i, j) not in alike[0]:
                scores.append(anchors[i] @ anchors[j])
            if denominator == "all+qq+pp" and not skipped and (i, j) not in alike[1]:
                scores.append(positives[i] @ positives[j])
            for m in range(M):
                wanted = denominator.startswith("all") or ("own_hard" in denominator and i == j)
                if wanted and not (known_negatives is not None and known_negatives[i, j, m]):
                    scores.append(anchors[i] @ negatives[j, m])
        kept = [float(score) for score in scores if score <= true + margin]
        losses.append(-true / TAU + math.log(sum(math.exp(score / TAU) for score in [true, *kept])))
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("rows_at_once", [1024, 2])
def test_each_denominator_is_what_its_row_of_the_table_says(denominator: Any, rows_at_once: int) -> None:
    got = info_nce(*batch(), temperature=TAU, denominator=denominator, rows_at_once=rows_at_once)
    torch.testing.assert_close(got, slow(denominator).mean())


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_known_positives_and_false_negatives_are_masked(denominator: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    known = torch.rand(B, B, generator=generator) < 0.3
    known_negatives = torch.rand(B, B, M, generator=generator) < 0.3
    alike = torch.rand(2, B, B, generator=generator) < 0.3
    got = info_nce(
        *batch(),
        temperature=TAU,
        denominator=denominator,
        known=known,
        known_negatives=known_negatives,
        alike_anchors=alike[0],
        alike_positives=alike[1],
        margin=-0.1,
        rows_at_once=2,
    )
    cells = [{(int(i), int(j)) for i, j in one.nonzero()} for one in alike]
    expected = slow(denominator, known, known_negatives, margin=-0.1, alike=cells)
    torch.testing.assert_close(got, expected.mean())
    assert not torch.allclose(expected, slow(denominator))


def test_it_is_the_loss_of_sentence_transformers() -> None:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    anchors, positives, negatives = batch()
    rows = [anchors, positives, *negatives.unbind(1)]
    plain = MultipleNegativesRankingLoss(None, scale=1 / TAU).compute_loss_from_embeddings(rows, None)
    torch.testing.assert_close(info_nce(anchors, positives, negatives, temperature=TAU), plain)
    both = MultipleNegativesRankingLoss(
        None, scale=1 / TAU, directions=("query_to_doc", "query_to_query", "doc_to_doc")
    ).compute_loss_from_embeddings(rows[:2], None)
    torch.testing.assert_close(info_nce(anchors, positives, temperature=TAU, denominator="all+qq+pp"), both)


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("rows_at_once", [8, 2])
def test_gradients_of_rows_and_temperature(denominator: Any, rows_at_once: int) -> None:
    temperature = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    mixed = unit(B, 1, D, seed=4)

    def loss(anchors: Tensor, positives: Tensor, negatives: Tensor, temperature: Tensor) -> Tensor:
        return info_nce(
            anchors,
            positives,
            negatives,
            temperature=temperature,
            denominator=denominator,
            mixed=mixed,
            focal_gamma=0.5,
            detach_weight=False,
            rows_at_once=rows_at_once,
        )

    inputs = (*(rows.requires_grad_() for rows in batch()), temperature)
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


def test_numbers_by_hand() -> None:
    """Similarities 0.8, 0.6, 0.3 at t = 0.1: P = 1 / (1 + e^-2 + e^-5) = 0.875601."""
    anchor = torch.tensor([[1.0, 0.0]])
    rows = torch.tensor([[0.8, 0.6], [0.6, 0.8], [0.3, 0.9]])
    got = info_nce(anchor, rows[:1], rows[None, 1:], temperature=0.1)
    assert got.item() == pytest.approx(0.132845, abs=1e-6)
    assert focal_mean(got[None], 0.5).item() == pytest.approx(0.046855, abs=1e-6)


def test_the_focal_weight_lowers_every_loss_and_zero_leaves_it() -> None:
    losses = torch.linspace(0.01, 4, 20)
    weighted = torch.stack([focal_mean(loss[None], 0.5) for loss in losses])
    assert (weighted < losses).all()
    assert (weighted / losses).diff().gt(0).all()  # the surer, the less
    assert focal_mean(losses, 0.0) == losses.mean()
    perfect = torch.zeros(1, requires_grad=True)
    focal_mean(perfect, 0.5, detach_weight=False).backward()
    assert torch.isfinite(perfect.grad).all()


def test_mixed_negatives_by_hand() -> None:
    negatives = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    pair = mix_pairs(negatives, torch.tensor([0.25]), torch.tensor([[0, 1]]))
    torch.testing.assert_close(pair, torch.tensor([[[0.316228, 0.948683]]]), atol=1e-6, rtol=0)
    anchor = torch.tensor([[0.6, 0.8]])
    mixed = mix_lists(anchor, negatives, 0.1)
    torch.testing.assert_close(mixed, torch.tensor([[[0.1341, 0.9910]]]), atol=1e-4, rtol=0)
    assert (mixed[0, 0] @ anchor[0]).item() == pytest.approx(0.873240, abs=1e-6)


def test_absent_negatives_are_not_mixed() -> None:
    present = torch.tensor([[True, False, True], [False, True, False]])
    negatives, anchors = unit(2, 3, D), unit(2, D, seed=1)
    for _ in range(10):
        shares, pairs = draw_pairs(present)
        assert set(pairs[0].tolist()) == {0, 2}
        torch.testing.assert_close(mix_pairs(negatives, shares, pairs)[1, 0], negatives[1, 1])
    torch.testing.assert_close(mix_lists(anchors, negatives, TAU, present)[1, 0], negatives[1, 1])
    two = mix_lists(anchors[:1], negatives[:1, [0, 2]], TAU)
    torch.testing.assert_close(mix_lists(anchors, negatives, TAU, present)[:1], two)


def test_shares_are_drawn_from_beta_2_2() -> None:
    torch.manual_seed(0)
    shares, _ = draw_pairs(torch.ones(40_000, 2, dtype=torch.bool))
    assert shares.mean().item() == pytest.approx(0.5, abs=0.01)
    assert shares.var().item() == pytest.approx(0.05, abs=0.005)


def test_wrong_settings_are_refused() -> None:
    anchors, positives, _ = batch()
    with pytest.raises(ValueError, match="expected one of own_hard"):
        info_nce(anchors, positives, temperature=1.0, denominator="hard")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs negatives"):
        info_nce(anchors, positives, temperature=1.0, denominator="own_hard")
