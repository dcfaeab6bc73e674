"""embedkit train: a model folder, a plan, and sentences for what cannot be run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest

import embedkit
from embedkit.recipe import find_recipe

from .conftest import Run

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def recipe(tiny_model: Path, tmp_path: Path) -> Path:
    rows = [
        {"sentence1": f"cat {word}", "sentence2": f"dog {word}", "score": i / 6} for i, word in enumerate("abcdefg")
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = f"data:\n  - {{path: {tmp_path}/pairs.jsonl, query_prompt: 'query : '}}\n"
    evaluation = f"evaluation: {{task: {tmp_path}/pairs.jsonl, metric: spearman, every: 1}}\n"
    path = tmp_path / "mine.yaml"
    path.write_text(f"model: {tiny_model}\n{data}loss:\n  - name: cosent\nbatch: {{size: 4}}\nsteps: 2\n{evaluation}")
    return path


def test_a_recipe_is_run_evaluated_and_not_run_twice(run: Run, recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = run("train", recipe, "optimizer.lr=1e-4", "-o", folder, "--threads", "1")
    assert (done.code, done.out) == (0, f"The model is in {folder / 'model'}\n")
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [set(line) >= {"spearman"} for line in lines] == [False, True, False, True]
    assert "lr: 0.0001" in (folder / "model" / "recipe.yaml").read_text()
    for name, said in (("loss.svg", "The loss of each step"), ("scores.svg", "Scores on the way")):
        picture = ElementTree.parse(folder / name).getroot()
        assert picture.attrib["aria-label"] == said
        (line,) = picture.iter("{http://www.w3.org/2000/svg}polyline")
        assert len(line.attrib["points"].split()) == 2  # steps, evaluations
    assert f"{folder} holds a run already" in run("train", recipe, "-o", folder).sentence(2)
    again = run("train", recipe, "optimizer.lr=1e-4", "-o", folder, "--resume", "--json")
    assert again.facts["model"] == str(folder / "model")


@pytest.mark.parametrize("name", ["contrastive", "matryoshka", "2dmse", "ese"])
def test_a_recipe_for_pairs_runs_as_its_first_line_says(
    name: str, run: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"anchor": f"cat {word}", "positive": f"dog {word}"} for word in "abcdefg"]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first = find_recipe(name, "train").read_text().splitlines()[0]
    program, *command = shlex.split(first.removeprefix("# "))
    smaller = ["elastic.dims=[8]"] if name in ("matryoshka", "ese") else []  # than the tiny model's width
    done = run(*command, f"model={tiny_model}", "batch.size=4", "steps=1", *smaller)
    assert (program, done.code, done.out) == ("embedkit", 0, f"The model is in {name}/model\n")
    assert embedkit.load(f"{name}/model").encode(["cat"]).shape == (1, 32)


def test_a_plan_shows_the_literal_inputs_and_writes_nothing(run: Run, recipe: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.jsonl"
    more.write_text((tmp_path / "pairs.jsonl").read_text() + '\n{"query": "a", "pos": []}')
    before = sorted(tmp_path.iterdir())
    done = run("train", recipe, f"data.0.path={more}", "--plan")
    assert done.code == 0
    assert "  7 examples of more\n    left out: 1 rows without a positive\n" in done.out
    assert "  the model's prompt of a query will be 'query : '\n" in done.out
    assert "Stage train: 2 steps, 1.14 epochs" in done.out
    assert "anchor     query : cat " in done.out
    assert "positive   dog " in done.out
    (stage,) = run("train", recipe, "--plan", "--json").facts["stages"]
    assert stage["examples"] == {"pairs": 7}
    assert len(stage["batches"]) == 3
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["stesp=3"], 2, "Error: stesp is no setting (did you mean 'steps'?)"),
        (["loss.0.name=info_nse"], 2, "Error: loss.0.name is 'info_nse' (did you mean 'info_nce'?)"),
        (["steps=0"], 2, "steps is 0"),
        (["loss.0.name=triplet"], 3, "The loss triplet needs negatives"),
        (
            ["optimizer.warmup=10"],
            2,
            "optimizer.warmup is 10.0 in the stage 'train'; expected 0 to 1, a share of the steps",
        ),
    ],
)
def test_what_cannot_be_run_is_one_sentence(
    run: Run, recipe: Path, tmp_path: Path, arguments: list[str], code: int, sentence: str
) -> None:
    assert sentence in run("train", recipe, *arguments, "-o", tmp_path / "run").sentence(code)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            "metric=ndcg@10",
            "evaluation.metric is 'ndcg@10'; {folder}/pairs.jsonl has spearman, pearson: choose one of them.",
        ),
        (
            "task={folder}/none.jsonl",
            "There is no file or folder {folder}/none.jsonl; check the path, or give the name of",
        ),
        ("task={folder}/none", "There is no file or folder {folder}/none; check the path"),
        ("task=STSBenchmrk", "'STSBenchmrk' not found. Did you mean: 'STSBenchmark'; mteb lists its tasks"),
        ("task=STSBenchmark", "split='dev' came; mteb scores STSBenchmark on test: choose one of them."),
        ("task=STS22", "split='dev' came; mteb scores STS22 on test"),
        ("split=test", "has no split 'test'; it has dev, train"),
    ],
)
def test_a_wrong_evaluation_is_found_before_anything_is_trained_and_in_a_plan(
    run: Run, recipe: Path, tmp_path: Path, wrong: str, sentence: str
) -> None:
    if wrong == "split=test":
        rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
        splits = [{**row, "split": ("dev", "train")[i % 2]} for i, row in enumerate(rows)]
        (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, splits)))
    override = f"evaluation.{wrong.format(folder=tmp_path)}"
    for more in (["-o", tmp_path / "run"], ["--plan"]):
        assert sentence.format(folder=tmp_path) in run("train", recipe, override, *more).sentence(2)
    assert not (tmp_path / "run").exists()


def test_a_folder_and_a_recipe_are_asked_for(run: Run, recipe: Path) -> None:
    assert "No folder came for the model" in run("train", recipe).sentence(2)
    assert "no recipe 'elastik' (did you mean 'elastic'?)" in run("train", "elastik", "-o", "x").sentence(2)
