"""Nested dimensions and layers against their formulas, and on models that are really cut."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, mse_loss, normalize

from embedkit.encoders.layers import keep_layers
from embedkit.errors import UsageError
from embedkit.train.contrastive import info_nce
from embedkit.train.elastic import (
    Columns,
    Grid,
    NestedClassifier,
    compressed,
    cut,
    elastic,
    ese,
    feature_kl,
    matryoshka,
    two_dmse,
)
from embedkit.train.rows import RowMaker
from embedkit.train.settings import Elastic, grid_of
from tests.conftest import make_family

D = 8


def columns(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, D, generator=generator, dtype=torch.float64) * 3 for _ in range(2)]


def base(pair: Columns) -> Tensor:
    return info_nce(*pair, temperature=0.1)


def at(pair: Columns, dim: int) -> float:
    """The base loss of rows that are truncated, and only then normalised."""
    return float(base([normalize(rows[:, :dim], dim=1) for rows in pair]))


def test_matryoshka_is_the_weighted_sum_over_prefixes() -> None:
    pair = columns()
    got = float(matryoshka(base, pair, [2, 8], [0.5, 2.0]))
    assert got == pytest.approx(0.5 * at(pair, 2) + 2 * at(pair, 8))
    assert float(matryoshka(base, pair, [8])) == pytest.approx(at(pair, 8))
    normal_first = [normalize(rows, dim=1)[:, :2] for rows in pair]
    assert at(pair, 2) != pytest.approx(float(base(normal_first)))  # the order matters to the base loss
    with pytest.raises(ValueError, match="distinct numbers from 1 to 8"):
        matryoshka(base, pair, [2, 9])


def test_the_gradient_of_a_dimension_comes_from_the_prefixes_that_hold_it() -> None:
    rows = [one.requires_grad_() for one in columns()]
    matryoshka(base, rows, [2, 4]).backward()
    assert (rows[0].grad[:, :4] != 0).all()
    assert (rows[0].grad[:, 4:] == 0).all()


@pytest.mark.parametrize("efficient", [False, True])
def test_nested_classifiers(efficient: bool) -> None:
    torch.manual_seed(0)
    head = NestedClassifier([2, 8], classes=3, efficient=efficient).double()
    rows, labels = columns()[0], torch.tensor([0, 1, 2, 1, 0])
    small, large = head(rows)
    if efficient:
        (one,) = head.heads
        torch.testing.assert_close(small, rows[:, :2] @ one.weight[:, :2].T + one.bias)
        assert sum(weight.numel() for weight in head.parameters()) == 8 * 3 + 3
    else:
        torch.testing.assert_close(small, head.heads[0](rows[:, :2]))
    expected = 0.5 * cross_entropy(small, labels) + 2 * cross_entropy(large, labels)
    torch.testing.assert_close(head.loss(rows, labels, [0.5, 2.0]), expected)


def test_2dmse_by_its_formulas() -> None:
    early, last = columns(0), columns(1)
    joined = [torch.cat(one) for one in (early, last)]
    align = float(
        kl_div(joined[0].log_softmax(1), joined[1].softmax(1), reduction="sum") / len(joined[0])
    )  # with torch's own, on probabilities
    plain = at(last, D) + at(early, D) + align + at(last, 4) + at(early, 4)
    assert float(two_dmse(base, early, last, 2, 4)) == pytest.approx(plain)
    weighted = at(last, D) + at(early, D) / 2 + align * math.log(4) + at(last, 4) + at(early, 4) / 2
    assert float(two_dmse(base, early, last, 2, 4, weighted=True)) == pytest.approx(weighted)
    whole = two_dmse(base, last, last, 1, D)
    assert float(whole) == pytest.approx(4 * at(last, D))  # the same rows: no KL


def test_ese_by_its_formula() -> None:
    states = [columns(i) for i in range(4)]  # embeddings and three layers

    def distance(pair: Columns) -> float:
        rows = torch.cat(list(pair))
        target = compressed(rows, 3)
        return float(mse_loss(rows[:, :3], target)) + float(
            kl_div(rows[:, :3].log_softmax(1), target.softmax(1), reduction="batchmean")
        )

    early = sum((at(states[i], 3) + distance(states[i])) / (1 + math.log(1 + i)) for i in (0, 1))
    expected = at(states[3], D) + at(states[3], 3) + distance(states[3]) + early / 2
    assert float(ese(base, states, 3)) == pytest.approx(expected)


def test_compression_keeps_the_first_singular_directions() -> None:
    rows = columns()[0]
    attention = torch.softmax(rows.T @ rows / math.sqrt(D), dim=1)
    full = compressed(rows, D)
    left = torch.linalg.svd(attention)[0]
    values = torch.linalg.svdvals(attention)
    torch.testing.assert_close(full.abs(), (rows @ left * values).abs())
    torch.testing.assert_close(compressed(rows, 3), full[:, :3])


def test_a_detached_teacher_gets_no_gradient_from_the_kl() -> None:
    student, teacher = ([one.requires_grad_() for one in columns(i)] for i in range(2))
    feature_kl(student, teacher, temperature=0.3).backward()
    assert student[0].grad is not None
    assert teacher[0].grad is None
    assert float(feature_kl(teacher, teacher, temperature=0.3).detach()) == pytest.approx(0)


def test_ours_always_trains_the_whole_model_and_takes_the_layers_in_turn() -> None:
    grid = Grid(layers=(1, 2, 3, 6), dims=(2, 8), early_dims=(2, 8))
    seen: Counter[int] = Counter()
    for step in range(9):
        cells = grid.cells(step, sampled=1)
        assert {(6, 8), (6, 2)} < set(cells)
        (early,) = {layer for layer, _ in cells} - {6}
        assert {(early, 8), (early, 2)} < set(cells)
        seen[early] += 1
    assert seen == {1: 3, 2: 3, 3: 3}
    assert grid.cells(5, sampled=1) == grid.cells(5, sampled=1)
    assert Grid((6,), (8,), (8,)).cells(3, sampled=1) == [(6, 8)]
    states = {3: columns(0), 6: columns(1)}
    got = float(elastic(base, states, [(6, 8), (3, 8), (6, 2), (3, 2)]))
    assert got == pytest.approx((at(states[6], 8) + at(states[3], 8) + at(states[6], 2) + at(states[3], 2)) / 4)


def test_settings_that_cannot_be_are_refused() -> None:
    assert grid_of(Elastic(dims=(4,), layers=(1,)), 8, 2) == Grid((1, 2), (4, 8), (4, 8))
    assert grid_of(Elastic("ese", dims=(4,)), 8, 6) == Grid((1, 2, 3, 4, 6), (4, 8), (4,))
    for recipe in ("2dmse", "2dmse_weighted"):  # what its authors take where nothing is said
        dims = (8, 16, 32, 64, 128, 256, 384)
        assert grid_of(Elastic(recipe), 384, 6) == Grid((1, 2, 3, 4, 5, 6), dims, dims)
        assert grid_of(Elastic(recipe), 64, 2) == Grid((1, 2), (8, 16, 32, 64), (8, 16, 32, 64))
        assert grid_of(Elastic(recipe, dims=(5,)), 64, 3) == Grid((1, 2, 3), (5, 64), (5, 64))
    for wrong, message in (
        ({"dims": (9,)}, "the model has 8"),
        ({"layers": (3,)}, "the model has 2"),
        ({"recipe": "2dmse", "dims": (4,), "layers": (2,)}, "draws from those below"),
        ({"recipe": "2dmse"}, "dims is .*draws from those below 8"),
    ):
        with pytest.raises(UsageError, match=message):
            grid_of(Elastic(**wrong), 8, 2)
    for wrong in ({"recipe": "ese"}, {"recipe": "matryoshka", "layers": (1,)}, {"dims": (2,), "weights": (1.0, 2.0)}):
        with pytest.raises(UsageError):
            Elastic(**wrong)


@pytest.mark.parametrize("family", ["Bert", "ModernBert", "Qwen3"])
def test_rows_after_a_layer_are_those_of_the_model_that_is_cut_there(
    family: str, plain_model: Path, tmp_path: Path
) -> None:
    """ModernBert and Qwen3 norm before each block: the states pass the last norm."""
    model = opened(make_family(family, plain_model, tmp_path / family, layers=3))
    maker = RowMaker(model, budget=1000)
    pieces = maker.pieces([("", "cat dog"), ("query : ", "fish bird red")])
    rows = maker.rows(pieces, [1, 2, 3])
    for layer in (1, 2):
        maker.check_layer(layer)
        short = copy.deepcopy(model)
        assert keep_layers(short, layer, family)
        expected = short.encode(["cat dog", "query : fish bird red"], convert_to_tensor=True)
        torch.testing.assert_close(rows[layer - 1], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rows[2], maker.rows(pieces)[0])
    assert not model[0].auto_model.config.output_hidden_states
    assert not torch.allclose(rows[0], rows[2], atol=1e-4)


def test_no_gradient_reaches_the_layers_above(tiny_model: Path) -> None:
    model = opened(tiny_model)
    maker = RowMaker(model, budget=1000)
    early, last = maker.rows(maker.pieces([("", "cat dog")]), [1, 2])
    (early[:, :3]).sum().backward()
    layers = model[0].auto_model.encoder.layer
    assert any(weight.grad is not None and weight.grad.any() for weight in layers[0].parameters())
    assert all(weight.grad is None or not weight.grad.any() for weight in layers[1].parameters())
    assert last.requires_grad


def opened(folder: Path) -> Any:
    from embedkit.encoders.loading import open_for_training

    model = open_for_training(str(folder), "cpu")
    return model.eval()


def test_wrong_layers_are_found(plain_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from embedkit.errors import ModelError

    maker = RowMaker(opened(make_family("ModernBert", plain_model, tmp_path / "m", layers=2)), budget=1000)
    wrong: Callable[..., Tensor] = lambda self, state: state  # noqa: E731 - without the last norm
    monkeypatch.setattr(RowMaker, "_normed", wrong)
    with pytest.raises(ModelError, match="not those of the model that is cut"):
        maker.check_layer(1)


def test_prefixes_are_cut_before_they_are_normalised() -> None:
    (rows,) = cut([torch.tensor([[3.0, 4.0, 12.0]])], 2)
    torch.testing.assert_close(rows, torch.tensor([[0.6, 0.8]]))
