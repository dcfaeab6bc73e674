"""Training recipes: shared settings, stages, and the recipes that embedkit brings."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedkit.errors import UsageError
from embedkit.train.settings import read_training_recipe

RECIPES = sorted((Path(__file__).parents[2] / "train" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_of_the_project_are_read_and_open_with_their_command(path: Path) -> None:
    recipe = read_training_recipe(path.stem)
    assert recipe.hash == read_training_recipe(str(path)).hash
    assert path.read_text().startswith(f"# embedkit train {path.stem} -o ")
    assert read_training_recipe(path.stem, ["seed=7"]).hash != recipe.hash


def test_stages_change_what_stands_above_them(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(
        "model: m\nsteps: 5\ndata: [{path: a}]\nloss: [{name: info_nce}]\nbatch: {size: 8, kind: blended}\n"
        "stages:\n  - {name: first}\n  - {name: second, steps: 2, batch: {size: 4}, data: [{path: b}]}\n"
    )
    first, second = read_training_recipe(str(path)).stages
    assert (first.name, first.steps, first.batch.size, first.data[0].path) == ("first", 5, 8, "a")
    assert (second.name, second.steps, second.batch.size, second.data[0].path) == ("second", 2, 4, "b")
    assert second.batch.kind == "blended"
    with pytest.raises(UsageError, match=r"stages\.1\.batch\.sise is no setting"):
        read_training_recipe(str(path), ["stages.1.batch.sise=3"])
    with pytest.raises(UsageError, match="has no data"):
        read_training_recipe(str(path), ["data=[]"])
