"""Runs of the trainer on a tiny BERT."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedkit.errors import IntegrityError, UsageError
from embedkit.recipe import fill
from embedkit.storage import file_record, read_json, write_json
from embedkit.train.optimizer import clipped_norm, learning_rate
from embedkit.train.settings import Evaluation, TrainingRecipe
from embedkit.train.step import Step
from embedkit.train.trainer import Cut, open_model, row_maker, teachers_of, train
from tests.conftest import WORDS, make_family


def rows(count: int = 40) -> list[dict[str, str]]:
    generator = np.random.default_rng(0)

    def text() -> str:
        return " ".join(generator.choice(WORDS[:9], size=int(generator.integers(2, 9))))

    anchors = list(dict.fromkeys(text() for _ in range(count)))
    return [
        {"anchor": one, "positive": " ".join(reversed(one.split())), "negative": f"query {text()}"} for one in anchors
    ]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows())))
    return path


@pytest.fixture
def recipe(tiny_model: Path, pairs: Path) -> Callable[..., TrainingRecipe]:
    def make(precision: str = "float32", **stage: Any) -> TrainingRecipe:
        plain = {
            "data": [{"path": str(pairs)}],
            "loss": [{"name": "info_nce", "temperature": 0.1}],
            "batch": {"size": 8, "negatives": 1, "tokens": 64},
            "optimizer": {"lr": 1e-3},
            "steps": 6,
            "checkpoint_every": 3,
        }
        return fill(TrainingRecipe, {"model": str(tiny_model), "precision": precision, "stages": [{**plain, **stage}]})

    return make


def log_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def weights_of(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


class Killed(Exception):
    pass


def test_the_loss_falls_and_the_folder_opens(recipe: Any, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    import embedkit

    folder = train(recipe(steps=30), tmp_path / "run")
    losses = [line["loss"] for line in log_of(tmp_path / "run")]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    texts = [row["anchor"] for row in rows(5)]
    ours = embedkit.load(folder, dtype="float32", backend="torch").encode(texts)
    theirs = SentenceTransformer(str(folder), device="cpu").encode(texts)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert (folder / "recipe.yaml").read_text().startswith("# hash: ")
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    assert train(recipe(steps=30), tmp_path / "run", resume=True) == folder
    with pytest.raises(UsageError, match="a finished run of another recipe"):
        train(recipe(steps=31), tmp_path / "run", resume=True)
    with pytest.raises(UsageError, match="holds a run already"):
        train(recipe(steps=30), tmp_path / "run")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_stopped_and_resumed_is_never_stopped(
    recipe: Any, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout is on. Killed at step 5, after the checkpoint of step 3."""
    from embedkit.train.trainer import Run

    chosen = recipe(
        precision, loss=[{"name": "info_nce", "temperature": 0.1, "learn_temperature": True, "mixing": "both"}]
    )
    train(chosen, tmp_path / "whole")
    step = Run._step

    def dying(self: Run, *arguments: Any) -> Any:
        if self.at.step == 5:
            raise Killed
        return step(self, *arguments)

    monkeypatch.setattr(Run, "_step", dying)
    with pytest.raises(Killed):
        train(chosen, tmp_path / "stopped")
    monkeypatch.undo()
    assert len(log_of(tmp_path / "stopped")) == 5
    train(chosen, tmp_path / "stopped", resume=True)
    assert log_of(tmp_path / "stopped") == log_of(tmp_path / "whole")
    assert weights_of(tmp_path / "stopped") == weights_of(tmp_path / "whole")


@pytest.fixture
def begun(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[TrainingRecipe, Path]:
    """A run that was killed after the checkpoint of step 3."""
    from embedkit.train.trainer import Run

    step, chosen = Run._step, recipe()

    def dying(self: Run, *arguments: Any) -> Any:
        if self.at.step == 4:
            raise Killed
        return step(self, *arguments)

    monkeypatch.setattr(Run, "_step", dying)
    with pytest.raises(Killed):
        train(chosen, tmp_path / "run")
    monkeypatch.undo()
    return chosen, tmp_path / "run"


def test_a_resumed_run_writes_through_no_link(begun: tuple[TrainingRecipe, Path], tmp_path: Path) -> None:
    """Its folder may have come from elsewhere."""
    chosen, folder = begun
    victim = tmp_path / "victim"
    victim.write_text("precious")
    log = (folder / "log.jsonl").read_bytes()
    for link in (Path.symlink_to, Path.hardlink_to):
        (folder / "log.jsonl").unlink()
        link(folder / "log.jsonl", victim)
        with pytest.raises(IntegrityError, match=r"log\.jsonl"):
            train(chosen, folder, resume=True)
    (folder / "log.jsonl").unlink()
    (folder / "log.jsonl").write_bytes(log)
    name = "checkpoint-0-00000006.safetensors"
    for place in ("training.json.partial", name, f"{name}.partial", "model.partial"):
        (folder / place).symlink_to(victim)
    train(chosen, folder, resume=True)
    assert victim.read_text() == "precious"
    assert len(log_of(folder)) == 6


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"progress": {"step": "3"}}, "progress.step is '3', not a whole number"),
        ({"progress": {"step": 10**12}}, "step 1000000000000"),
        ({"progress": {"stage": 1}}, "stage 1, step 3"),
        ({"progress": {"log_bytes": 10**15}}, "do not fit"),
        ({"weights": {"name": "../../elsewhere.safetensors"}}, "as its checkpoint"),
        ({"facts": {"recipe": 5}}, "facts.recipe is 5, not a text"),
    ],
    ids=str,
)
def test_a_record_that_no_run_wrote_is_refused(
    begun: tuple[TrainingRecipe, Path], change: dict[str, Any], reason: str
) -> None:
    chosen, folder = begun
    body = read_json(folder / "training.json")
    write_json(folder / "training.json", {name: {**body[name], **change.get(name, {})} for name in body})
    with pytest.raises(IntegrityError, match=reason):
        train(chosen, folder, resume=True)


@pytest.mark.parametrize("kind", ["another shape", "another name", "one less", "state of another shape"])
def test_a_checkpoint_of_another_model_is_refused(begun: tuple[TrainingRecipe, Path], kind: str) -> None:
    """A tensor of one number would be copied into every place of the weight."""
    from safetensors.torch import load_file, save

    chosen, folder = begun
    (path,) = folder.glob("checkpoint-*")
    tensors = load_file(path)
    name = next(name for name in tensors if name.startswith("exp_avg/" if "state" in kind else "weight/"))
    value = tensors.pop(name)
    if "shape" in kind:
        tensors[name] = torch.ones(1)
    elif kind == "another name":
        tensors[f"{name}.other"] = value
    path.write_bytes(save(tensors))
    body = read_json(folder / "training.json")
    write_json(folder / "training.json", {**body, "weights": {"name": path.name, **file_record(path)}})
    with pytest.raises(IntegrityError, match=r"checkpoint-0-00000003\.safetensors (holds|lacks) "):
        train(chosen, folder, resume=True)


@pytest.mark.parametrize(
    ("fastest", "taken"), [("bfloat16", "bfloat16"), ("float32", "float32"), ("float16", "float32")]
)
def test_auto_is_the_precision_that_the_device_is_fast_in(
    recipe: Any, tmp_path: Path, fastest: str, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float16 would overflow without scaled losses, so float32 stands in for it."""
    monkeypatch.setattr("embedkit.train.trainer.default_dtype", lambda place: fastest)
    train(recipe("auto"), tmp_path / "auto")
    train(recipe(taken), tmp_path / "taken")
    assert log_of(tmp_path / "auto") == log_of(tmp_path / "taken")
    assert weights_of(tmp_path / "auto") == weights_of(tmp_path / "taken")


def test_the_best_of_several_evaluations_is_published(
    recipe: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A score that falls from the second evaluation on: stopped after two without a better one, with the second's weights."""
    import embedkit

    scores, kept = iter([0.1, math.nan, 0.5, math.nan, 0.4, math.nan, 0.3, 0.9]), []

    def evaluate(folder: Path, asked: Evaluation, cuts: Sequence[Cut]) -> list[float]:
        assert cuts == [(None, None)]
        assert asked.metric == "spearman"
        assert len(embedkit.load(folder, backend="torch", dtype="float32").encode(["cat"])) == 1
        kept.append((folder / "model.safetensors").read_bytes())
        return [next(scores)]

    chosen = recipe(evaluation={"task": "t", "metric": "spearman", "every": 1, "patience": 2}, steps=9)
    folder = train(chosen, tmp_path / "run", evaluate=evaluate)
    assert len(kept) == 7
    assert (folder / "model.safetensors").read_bytes() == kept[2]
    logged = [line.get("spearman") for line in log_of(tmp_path / "run") if "spearman" in line]
    assert logged == [
        0.1,
        None,
        0.5,
        None,
        0.4,
        None,
        0.3,
    ]  # what is no number does not count for patience, and is said
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == [f"spearman of t is no number at step {step} of train; the log has null." for step in (2, 4, 6)]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["log.jsonl", "model", "training.json"]
    with pytest.raises(UsageError, match="no function to evaluate with"):
        train(chosen, tmp_path / "other")


def test_every_cell_of_the_grid_is_tested_and_the_model_carries_the_scores(recipe: Any, tmp_path: Path) -> None:
    import embedkit

    def similarity(folder: Path, layers: int | None, dim: int | None) -> float:
        rows = embedkit.load(folder, layers=layers, dim=dim, backend="torch", dtype="float32").encode(["cat", "dog"])
        return float(rows[0] @ rows[1])

    def evaluate(folder: Path, asked: Evaluation, cuts: Sequence[Cut]) -> list[float]:
        return [similarity(folder, layers, dim) for layers, dim in cuts]

    evaluation = {"task": "some/pairs.jsonl", "metric": "spearman", "every": 9}
    chosen = recipe(elastic={"dims": [8], "layers": [1]}, evaluation=evaluation, dropout=False, steps=1)
    folder = train(chosen, tmp_path / "run", evaluate=evaluate)
    tested = json.loads((folder / "elastic.json").read_text())["tested"]
    assert (tested["task"], tested["metric"], len(tested["scores"])) == ("pairs.jsonl", "spearman", 4)
    for cell, score in tested["scores"].items():
        assert score == similarity(folder, *map(int, cell.split("/")))


@pytest.mark.parametrize(
    "elastic",
    [
        {"dims": [8, 16], "layers": [1]},
        {"recipe": "matryoshka", "dims": [8, 16], "weights": [1, 0.5]},
        {"recipe": "2dmse", "dims": [8], "layers": [1]},
        {"recipe": "2dmse_weighted", "dims": [8], "layers": [1]},
        {"recipe": "ese", "dims": [8]},
    ],
    ids=lambda elastic: elastic.get("recipe", "embedkit"),
)
def test_elastic_recipes_run_cached_or_not_and_the_model_carries_its_grid(
    recipe: Any, tmp_path: Path, elastic: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    import embedkit

    stage = {"elastic": elastic, "dropout": False, "steps": 2}
    for cached in (False, True):
        chosen = recipe(batch={"size": 8, "negatives": 1, "tokens": 64, "cached": cached}, **stage)
        folder = train(chosen, tmp_path / str(cached))
    plain, cached = (log_of(tmp_path / name) for name in ("False", "True"))
    np.testing.assert_allclose([one["loss"] for one in plain], [one["loss"] for one in cached], rtol=1e-5)
    np.testing.assert_allclose(
        [one["gradient_norm"] for one in plain], [one["gradient_norm"] for one in cached], rtol=1e-4
    )
    with caplog.at_level("WARNING", "embedkit"):
        embedkit.load(folder, dim=8, layers=1 if "layers" in elastic else None, backend="torch")
        assert "trained for" not in caplog.text
        embedkit.load(folder, dim=9, backend="torch")
    assert f"dim=9 came; the model was trained for 8, {'16, ' if 16 in elastic['dims'] else ''}32" in caplog.text


def test_the_first_layers_of_ese_are_off_the_grid_at_full_width(
    recipe: Any, plain_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import embedkit

    deep = make_family("Bert", plain_model, tmp_path / "deep", layers=4)
    chosen = replace(recipe(elastic={"recipe": "ese", "dims": [8]}, steps=1), model=str(deep))
    folder = train(chosen, tmp_path / "run")
    grid = json.loads((folder / "elastic.json").read_text())
    assert [grid[name] for name in ("layers", "dims", "early_dims")] == [[1, 2, 4], [8, 32], [8]]
    with caplog.at_level("WARNING", "embedkit"):
        embedkit.load(folder, layers=2, dim=8, backend="torch")
        embedkit.load(folder, backend="torch")
        assert "trained for" not in caplog.text
        embedkit.load(folder, layers=2, backend="torch")
    assert "layers=2 with 32 dimensions came; the model's first layers were trained for 8" in caplog.text


def test_a_teacher_reads_texts_with_its_own_tokenizer(
    recipe: Any, make_model: Any, pairs: Path, tmp_path: Path
) -> None:
    """The same weights behind a vocabulary that is turned round: nothing to learn, only if the teacher gets its own ids."""
    from safetensors.torch import load_file, save_file

    turned = tmp_path / "turned"
    shutil.copytree(make_model(), turned)
    path = turned / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary, special = tokenizer["model"]["vocab"], {one["content"] for one in tokenizer["added_tokens"]}
    words = [word for word in vocabulary if word not in special]
    other = dict(zip(words, reversed([vocabulary[word] for word in words]), strict=True))
    weights = load_file(turned / "model.safetensors")
    (name,) = (name for name in weights if name.endswith("word_embeddings.weight"))
    table = weights[name].clone()
    for word in words:
        table[other[word]] = weights[name][vocabulary[word]]
    save_file({**weights, name: table}, turned / "model.safetensors", metadata={"format": "pt"})
    tokenizer["model"]["vocab"] = {**vocabulary, **other}
    path.write_text(json.dumps(tokenizer))
    loss = [{"name": "in_batch_distillation", "teacher": str(turned)}]
    texts = [{"path": str(pairs), "texts": ["anchor"]}]
    train(recipe(data=texts, loss=loss, dropout=False, steps=1, batch={"size": 8}), tmp_path / "run")
    assert log_of(tmp_path / "run")[0]["loss"] == pytest.approx(0, abs=1e-6)


def test_teachers(recipe: Any, tiny_model: Path, tmp_path: Path) -> None:
    """Terms of one teacher share it; rows cannot be brought to those of another width."""
    chosen = recipe(
        loss=[{"name": "in_batch_distillation"}, {"name": "embedding_distillation", "teacher": str(tiny_model)}]
    )
    teachers = teachers_of(chosen, chosen.stages[0], "cpu")
    assert list(teachers) == [0, 1]
    assert teachers[0] is teachers[1]
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense

    parts = list(SentenceTransformer(str(tiny_model), device="cpu").children())
    SentenceTransformer(modules=[*parts[:2], Dense(32, 16)], device="cpu").save_pretrained(str(tmp_path / "narrow"))
    narrow = recipe(loss=[{"name": "embedding_distillation", "teacher": str(tmp_path / "narrow")}])
    maker = row_maker(narrow, narrow.stages[0], open_model(narrow, "cpu"))
    with pytest.raises(UsageError, match="rows of 32 columns to a teacher's of 16"):
        Step(maker, narrow.stages[0], teachers_of(narrow, narrow.stages[0], "cpu"), {})


@pytest.mark.parametrize("loss", ["in_batch_distillation", "embedding_distillation"])
def test_stages_run_in_order_and_distil_from_the_untouched_model(
    loss: str, recipe: Any, pairs: Path, tmp_path: Path
) -> None:
    """The second stage, at a learning rate of almost nothing, finds the first one's model away from its teacher."""
    plain = recipe().stages[0]
    texts = {"path": str(pairs), "texts": ["anchor"]}
    second = recipe(data=[texts], loss=[{"name": loss}], optimizer={"lr": 1e-9}, steps=2, name="second").stages[0]
    still = replace(recipe(), stages=(replace(second, dropout=False),))
    train(still, tmp_path / "still")
    assert log_of(tmp_path / "still")[0]["loss"] == pytest.approx(0, abs=1e-6)
    chosen = replace(recipe(), stages=(plain, replace(second, dropout=False)))
    train(chosen, tmp_path / "both")
    lines = log_of(tmp_path / "both")
    assert [line["stage"] for line in lines] == ["train"] * 6 + ["second"] * 2
    assert lines[6]["loss"] > 1e-4


def test_another_run_is_not_resumed(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from embedkit.train.trainer import Run

    monkeypatch.setattr(Run, "_publish", lambda self: None)  # as if it was killed just before
    train(recipe(), tmp_path / "run")
    monkeypatch.undo()
    with pytest.raises(UsageError, match="a run with another recipe"):
        train(recipe(optimizer={"lr": 2e-3}), tmp_path / "run", resume=True)
    weights = next((tmp_path / "run").glob("checkpoint-*"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match="has changed"):
        train(recipe(), tmp_path / "run", resume=True)


def come(number: int) -> None:
    """As if the signal came. A real one was seen to end pytest with a segmentation fault, after OpenVINO had run in the process and
    while pytest's faulthandler was on, whose stack of its own the handlers of signals then use."""
    handler = signal.getsignal(number)
    assert callable(handler)
    handler(number, None)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_waits_for_its_step_and_a_checkpoint(
    recipe: Any, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes in the midst of step 4, after the optimizer and before the log; nothing of the five steps is lost."""
    from embedkit.train.trainer import Run

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    log = Run._log

    def interrupted(self: Run, *arguments: Any) -> Any:
        if self.at.step == 5:
            come(getattr(signal, name))
        return log(self, *arguments)

    chosen = recipe(checkpoint_every=100)
    before = signal.signal(getattr(signal, name), stop)
    try:
        monkeypatch.setattr(Run, "_log", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(chosen, tmp_path / "stopped")
        assert signal.getsignal(getattr(signal, name)) is stop
    finally:
        signal.signal(getattr(signal, name), before)
    monkeypatch.undo()
    assert json.loads((tmp_path / "stopped" / "training.json").read_text())["progress"]["step"] == 5
    train(chosen, tmp_path / "stopped", resume=True)
    train(chosen, tmp_path / "whole")
    assert log_of(tmp_path / "stopped") == log_of(tmp_path / "whole")
    assert weights_of(tmp_path / "stopped") == weights_of(tmp_path / "whole")


def test_a_second_signal_does_not_wait() -> None:
    from embedkit.train.stopping import held_signals

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with held_signals() as held:
            come(signal.SIGTERM)
            with pytest.raises(KeyboardInterrupt):
                come(signal.SIGTERM)
            (due,) = held
            with pytest.raises(KeyboardInterrupt):
                due()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_nothing_is_poisoned_by_what_is_no_number(
    recipe: Any, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the gradients of step 2, or of its loss, one is NaN: the run ends, its weights are those of two steps."""
    from embedkit.train.step import Step
    from embedkit.train.trainer import Run

    runs = []
    backward, begin = Step.backward, Run.run

    def poisoned(self: Step, prepared: Any, number: int, *more: Any) -> Any:
        loss = backward(self, prepared, number, *more)
        if number == 2:
            if what == "loss":
                return loss * math.nan
            next(self._maker.model.parameters()).grad.view(-1)[0] = math.nan
        return loss

    def watched(self: Run, resume: bool) -> Path:
        runs.append(self)
        return begin(self, resume)

    monkeypatch.setattr(Step, "backward", poisoned)
    monkeypatch.setattr(Run, "run", watched)
    with pytest.raises(UsageError, match=f"The {what} is nan at step 2 of train; lower optimizer.lr"):
        train(recipe(), tmp_path / "run")
    assert all(torch.isfinite(weight).all() for weight in runs[0].model.parameters())
    assert len(log_of(tmp_path / "run")) == 2


def test_a_score_that_is_no_number_is_never_the_best(recipe: Any, tmp_path: Path) -> None:
    """Neither the first one nor those of the grid's cells; all are null in what is written."""
    from embedkit.cli.learning_curve import draw

    scores, kept = iter([math.nan, 0.2, math.inf, *[math.nan] * 4]), []

    def evaluate(folder: Path, asked: Evaluation, cuts: Sequence[Cut]) -> list[float]:
        kept.append((folder / "model.safetensors").read_bytes())
        return [next(scores) for _ in cuts]

    evaluation = {"task": "t", "metric": "spearman", "every": 1}
    chosen = recipe(steps=3, evaluation=evaluation, elastic={"dims": [8], "layers": [1]})
    folder = train(chosen, tmp_path / "run", evaluate=evaluate)
    assert (folder / "model.safetensors").read_bytes() == kept[1]
    lines = [line for line in log_of(tmp_path / "run") if "spearman" in line]
    assert [(line["spearman"], line["best"]) for line in lines] == [(None, False), (0.2, True), (None, False)]
    assert set(json.loads((folder / "elastic.json").read_text())["tested"]["scores"].values()) == {None}
    draw(tmp_path / "run")
    assert (tmp_path / "run" / "scores.svg").exists()


def test_more_tokens_than_the_model_has_positions_are_refused(recipe: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"max_tokens=9999 came; .* takes \d+ tokens"):
        train(recipe(max_tokens=9999), tmp_path / "run")


def test_the_memory_of_a_plan_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from embedkit.train.plan import _most_held

    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 123)
    assert _most_held(torch.device("cuda", 0)) == ("gpu", 123)
    whose, held = _most_held(torch.device("cpu"))
    assert whose == "process" and 10**7 < held < 10**12


def test_the_norm_is_clipped_or_left() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    for clip, left in ((None, [3.0, 4.0]), (10.0, [3.0, 4.0]), (0.5, [0.3, 0.4])):
        weight.grad = torch.tensor([3.0, 4.0])
        assert clipped_norm([weight], clip) == pytest.approx(5)
        torch.testing.assert_close(weight.grad, torch.tensor(left), rtol=1e-5, atol=0)


def test_what_leaks_left_out_stands_in_the_log_once(
    recipe: Any, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two stages of the same data under one name, stopped within the second and resumed: the log of a run that never stopped."""
    from embedkit.cli.learning_curve import draw
    from embedkit.train.trainer import Run

    (tmp_path / "set.jsonl").write_text(json.dumps({"text": rows()[0]["anchor"]}))
    stage = recipe(leaks=[str(tmp_path / "set.jsonl")], data=[{"path": str(pairs)}] * 2, steps=2).stages[0]
    chosen = replace(recipe(), stages=(stage, replace(stage, name="second", leaks=())))
    train(chosen, tmp_path / "whole")
    first, *steps = log_of(tmp_path / "whole")
    words = " ".join(rows()[0]["anchor"].split())
    holding = [row for row in rows() if words in row.values()]
    assert first["leaks"]["pairs"]["exact"] == len(holding) > 0
    assert first == {"stage": "train", "leaks": dict.fromkeys(("pairs", "pairs (2)"), first["leaks"]["pairs"])}
    assert [line["step"] for line in steps] == [1, 2, 1, 2]
    draw(tmp_path / "whole")
    assert (tmp_path / "whole" / "loss.svg").exists()
    step = Run._step

    def dying(self: Run, *arguments: Any) -> Any:
        if (self.at.stage, self.at.step) == (1, 1):
            raise Killed
        return step(self, *arguments)

    monkeypatch.setattr(Run, "_step", dying)
    with pytest.raises(Killed):
        train(chosen, tmp_path / "stopped")
    monkeypatch.undo()
    train(chosen, tmp_path / "stopped", resume=True)
    assert log_of(tmp_path / "stopped") == log_of(tmp_path / "whole")


def test_learning_rates() -> None:
    from embedkit.train.settings import Optimizer

    rates = [learning_rate(Optimizer(lr=1.0, warmup=0.2), step, 10) for step in range(10)]
    np.testing.assert_allclose(rates, [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert learning_rate(Optimizer(lr=1.0, warmup=0, schedule="cosine"), 5, 10) == pytest.approx(0.5)
    assert torch.get_default_dtype() == torch.float32
