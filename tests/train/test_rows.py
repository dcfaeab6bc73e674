"""Rows that are trained are the rows that the model gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from embedkit.encoders.loading import open_for_training
from embedkit.train.packed import Dropout, attention_with_dropout
from embedkit.train.rows import RowMaker
from tests.conftest import make_family

TEXTS = ["cat", "dog fish bird red blue", "one two run swim cat dog fish one two", "bird red", "query : cat"]


def maker_of(folder: Path, **settings: Any) -> RowMaker:
    model = open_for_training(str(folder), "cpu").eval()
    return RowMaker(model, **{"budget": 1000, **settings})


@pytest.mark.parametrize("family", ["Bert", "XLMRoberta", "ModernBert"])
def test_rows_and_gradients_are_those_of_sentence_transformers(family: str, plain_model: Path, tmp_path: Path) -> None:
    maker = maker_of(make_family(family, plain_model, tmp_path / family))
    assert maker._packs == (family != "ModernBert")
    model = maker.model

    def gradients(rows: torch.Tensor) -> list[torch.Tensor]:
        model.zero_grad()
        rows.pow(3).sum().backward()
        return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]

    ours = maker.rows(maker.pieces([("", text) for text in TEXTS]))[0]
    theirs = model(model.preprocess(TEXTS))["sentence_embedding"]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradients(ours), gradients(theirs), atol=1e-5, rtol=1e-3)
    assert model[0].auto_model.config._attn_implementation != "embedkit_packed"


def test_prompts_are_left_out_of_pooling_where_the_model_says_so(make_model: Callable[..., Path]) -> None:
    folder = make_model()
    maker = maker_of(folder)
    maker.model[1].include_prompt = False
    maker = RowMaker(maker.model, budget=1000)
    prompted = maker.rows(maker.pieces([("query : ", "cat dog")]))[0]
    expected = maker.model.encode(["cat dog"], prompt="query : ", convert_to_tensor=True)
    torch.testing.assert_close(normalize(prompted), expected, atol=1e-5, rtol=1e-4)


def test_a_normalize_at_the_end_is_left_to_what_cuts(make_model: Callable[..., Path]) -> None:
    """The same weights with it and without it give the same rows, of their own length: 2DMSE and ESE align those."""
    whole, bare = (maker_of(make_model(normalize=last)) for last in (True, False))
    rows = whole.rows(whole.pieces([("", text) for text in TEXTS]), [1, 2])
    for one, other in zip(rows, bare.rows(bare.pieces([("", text) for text in TEXTS]), [1, 2]), strict=True):
        torch.testing.assert_close(one, other)
        assert float((one.detach().norm(dim=1) - 1).abs().min()) > 0.1
    torch.testing.assert_close(
        normalize(rows[1]), whole.model.encode(TEXTS, convert_to_tensor=True), atol=1e-5, rtol=1e-4
    )


def test_dropout_is_there_without_padding(tiny_model: Path) -> None:
    maker = maker_of(tiny_model)
    pieces = maker.pieces([("", "cat dog fish"), ("", "cat")])
    still = maker.rows(pieces)[0]
    maker.model.train()
    torch.manual_seed(0)
    one, other = maker.rows(pieces)[0], maker.rows(pieces)[0]
    torch.manual_seed(0)
    torch.testing.assert_close(maker.rows(pieces)[0], one, rtol=0, atol=0)
    assert not torch.allclose(one, other, atol=1e-4)
    assert not torch.allclose(one, still, atol=1e-4)


def test_parts_keep_to_the_budget_and_long_texts_are_cut(tiny_model: Path) -> None:
    maker = maker_of(tiny_model, budget=20, max_tokens=8)
    pieces = maker.pieces([("", text) for text in [*TEXTS, "cat " * 50]])
    parts = maker.parts(pieces)
    assert sorted(place for part in parts for place in part) == list(range(6))
    assert all(len(part) * max(pieces[i].length for i in part) <= 20 for part in parts)
    assert pieces[-1].length == 8


def test_attention_with_dropout_is_that_of_torch_where_nothing_is_dropped() -> None:
    """A share that rounds to nothing; the mask leaves the second text two tokens."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 4, requires_grad=True) for _ in range(3))
    mask = torch.arange(5) < torch.tensor([5, 2])[:, None, None, None]
    ours = attention_with_dropout(q, k, v, mask, 1e-9, 0.3)
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    for one, other in zip(
        *(torch.autograd.grad((rows * weights).sum(), (q, k, v)) for rows in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_dropout_drops_its_share_and_keeps_the_mean(share: float) -> None:
    torch.manual_seed(0)
    count = 100_001  # no multiple of the four values that share a random number
    ones = torch.ones(count, dtype=torch.float64, requires_grad=True)
    dropped = Dropout.apply(ones, share)
    gone = float((dropped == 0).double().mean())
    assert gone == pytest.approx(share, abs=5 * (share * (1 - share) / count) ** 0.5)
    kept = dropped[dropped != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - share)), rtol=1e-4, atol=0)
    (gradient,) = torch.autograd.grad(dropped.sum(), ones)
    assert torch.equal(gradient, dropped.detach())
    torch.manual_seed(0)
    assert torch.equal(Dropout.apply(ones, share), dropped)
    pairs = (dropped[:-1] == 0) & (dropped[1:] == 0)
    assert float(pairs.double().mean()) == pytest.approx(share**2, abs=0.01)  # neighbours are drawn apart
