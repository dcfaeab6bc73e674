"""Training recipes: shared settings, stages, and the recipes that embedkit brings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from embedkit.errors import DataError, UsageError
from embedkit.train.settings import Loss, TrainingRecipe, from_environment, read_training_recipe

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


@pytest.fixture
def plain(tmp_path: Path) -> str:
    path = tmp_path / "plain.yaml"
    path.write_text(
        "model: m\nsteps: 5\ndata: [{path: a}]\nloss: [{name: info_nce}, {name: cosent}]\n"
        "elastic: {dims: [8]}\nevaluation: {task: t, metric: spearman}\n"
    )
    return str(path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("steps=0", "steps is 0 in the stage 'train'; expected 1 to 1,000,000,000"),
        ("max_tokens=0", "max_tokens is 0"),
        ("checkpoint_every=0", "checkpoint_every is 0"),
        ("data.0.weight=0", r"data\.0\.weight is 0.0 .* 1e-09 to "),
        ("data.0.weight=-1", r"data\.0\.weight is -1.0"),
        ("data.0.limit=0", r"data\.0\.limit is 0"),
        ("loss.0.temperature=0", r"loss\.0\.temperature is 0.0 .* 0.0001 to 10,000"),
        ("loss.0.temperature=-0.1", r"loss\.0\.temperature is -0.1"),
        ("loss.0.temperature=.nan", r"loss\.0\.temperature is nan"),
        ("loss.1.scale=0", r"loss\.1\.scale is 0.0"),
        ("loss.1.weight=-1", r"loss\.1\.weight is -1.0"),
        ("loss=[{name: info_nce, weight: 0}]", "Every loss of the stage 'train' has the weight 0"),
        ("loss.0.focal_gamma=-1", r"loss\.0\.focal_gamma is -1.0"),
        ("loss.0.margin=.inf", r"loss\.0\.margin is inf"),
        ("batch.size=1", r"batch\.size is 1 .* 2 to 131,072"),
        ("batch.ratio=1.5", r"batch\.ratio is 1.5 .* 0 to 1"),
        ("batch.negatives=-1", r"batch\.negatives is -1"),
        ("batch.tokens=0", r"batch\.tokens is 0"),
        ("elastic.layers_per_step=0", r"elastic\.layers_per_step is 0"),
        ("optimizer.lr=0", r"optimizer\.lr is 0.0 .* 1e-12 to 10"),
        ("optimizer.lr=.inf", r"optimizer\.lr is inf"),
        (f"batch.size={10**12}", r"batch\.size is 1000000000000 .* 2 to 131,072"),
        (f"steps={'9' * 4000}", r"^steps is 999+\.\.\.9+ in the stage"),
        (f"optimizer.lr={'9' * 4000}", r"^optimizer\.lr is 999+\.\.\.9+; expected a number that is finite"),
        (f"data.0.limit={2**63}", r"data\.0\.limit is 9223372036854775808 "),
        ("elastic.dims=[8, 0]", r"elastic\.dims\.1 is 0 "),
        ("elastic={recipe: matryoshka, dims: [8], weights: [-1]}", r"elastic\.weights\.0 is -1.0 "),
        ("elastic.layers_per_step=1000000", r"elastic\.layers_per_step is 1000000 "),
        ("seed=-5", r"^seed is -5; expected 0 to 4,294,967,295\.$"),
        (f"seed={2**32}", r"^seed is 4294967296; "),
        ("optimizer.weight_decay=-0.1", r"optimizer\.weight_decay is -0.1"),
        ("optimizer.warmup=100", r"optimizer\.warmup is 100.0 .* and no number of steps"),
        ("optimizer.clip=0", r"optimizer\.clip is 0.0 .* null for no clipping"),
        ("evaluation.every=0", r"evaluation\.every is 0"),
        ("evaluation.patience=0", r"evaluation\.patience is 0"),
        ("stages=[]", "stages is an empty list"),
    ],
)
def test_numbers_that_cannot_be_are_refused(plain: str, wrong: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_training_recipe(plain, [wrong])


@pytest.mark.parametrize("right", ["optimizer.warmup=1", "batch.ratio=0", "optimizer.clip=null", "loss.1.weight=0"])
def test_the_ends_of_a_range_belong_to_it(plain: str, right: str) -> None:
    found: Any = read_training_recipe(plain, [right]).resolved["stages"][0]
    path, value = right.split("=")
    for key in path.split("."):
        found = found[int(key) if key.isdigit() else key]
    assert found == yaml.safe_load(value)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("kl", {"focal_gamma": 0.5}),
        ("cosent", {"learn_temperature": True}),
        ("triplet", {"denominator": "own_hard"}),
        ("margin_mse", {"mixing": "both"}),
        ("list_net", {"margin": 0.1}),
        ("angle", {"temperature": 0.1}),
        ("info_nce", {"teacher_temperature": 0.1}),
        ("info_nce", {"scale": 5.0}),
        ("kl", {"teacher": "m"}),
        ("embedding_distillation", {"gather": False}),
    ],
)
def test_what_a_loss_does_not_look_at_is_refused(name: Any, setting: dict[str, Any]) -> None:
    (key,) = setting
    with pytest.raises(UsageError, match=f"^{key} is .* with the loss {name}, which takes none; leave it out"):
        Loss(name, **setting)
    Loss(name, **{key: Loss.__dataclass_fields__[key].default})


@pytest.mark.parametrize("elastic", ["{dims: [8]}", "{recipe: 2dmse}"])
def test_whole_rows_alone_teach_no_cuts(plain: str, elastic: str) -> None:
    """The losses of the recipe, not embedding_distillation alone, nor with layers alone."""
    read_training_recipe(plain, [f"elastic={elastic}"])
    read_training_recipe(plain, ["loss=[{name: embedding_distillation}]", "elastic={layers: [1]}"])
    with pytest.raises(UsageError, match="cuts rows, and embedding_distillation, its only loss, is of whole ones"):
        read_training_recipe(plain, ["loss=[{name: embedding_distillation}]", f"elastic={elastic}"])


@pytest.mark.parametrize("value", ["hf_topsecret", "hf_topsecret/"])
def test_the_value_of_a_variable_is_in_no_error(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", value)
    monkeypatch.setenv("SHORT", "a")
    with from_environment("$HF_TOKEN/${SHORT}.jsonl") as path:
        assert path == f"{value}/a.jsonl"
    for error in (DataError(f"{Path(path)}, line 1: bad"), FileNotFoundError(2, "No such file", str(Path(path)))):
        with pytest.raises(type(error)) as caught, from_environment("$HF_TOKEN/${SHORT}.jsonl"):
            raise error
        assert "hf_topsecret" not in str(caught.value)
        assert "$HF_TOKEN" in str(caught.value)
    with pytest.raises(DataError, match=r"^a word of a sentence$"), from_environment("$SHORT"):
        raise DataError("a word of a sentence")
    with pytest.raises(UsageError, match=r"^\$NOT_SET/x is named in the recipe and \$NOT_SET is not set"):
        from_environment("$NOT_SET/x").__enter__()


def test_stages_have_names_of_their_own(plain: str) -> None:
    assert [one.name for one in read_training_recipe(plain).stages] == ["train"]
    recipe = read_training_recipe(plain, ["stages=[{}, {steps: 7}, {name: last}]"])
    assert [(one.name, one.steps) for one in recipe.stages] == [("train 1", 5), ("train 2", 7), ("last", 5)]
    with pytest.raises(UsageError, match="Two stages have the name 'one'"):
        read_training_recipe(plain, ["stages=[{name: one}, {name: one}]"])
    with pytest.raises(UsageError, match="stages is an empty list"):
        TrainingRecipe("m", ())
