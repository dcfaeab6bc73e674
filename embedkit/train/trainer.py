"""Runs a recipe: stages, steps, log, checkpoints, evaluation, and the model folder at the end.

The loop is plain torch. sentence-transformers brings the model and opens the result; its trainer pads every column to its
longest text, and goes on after a stop with other batches and other dropout. Here step k of a stage depends on the recipe,
the data and the weights before it, and on nothing else: its batch follows from the seed, and its random numbers begin anew
from (seed, stage, step), for dropout with the number of the process. A run that was stopped and resumed is therefore the
same, to the bit on a CPU with as many threads.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import yaml
from torch import Tensor, nn
from tqdm import tqdm

from embedkit.encoders.foreign import quiet
from embedkit.encoders.layers import GRID
from embedkit.encoders.loading import open_for_training
from embedkit.encoders.torch_backend import default_dtype, versions
from embedkit.errors import IntegrityError, UsageError
from embedkit.storage import (
    PositionalFile,
    atomic_file,
    atomic_folder,
    locked_file,
    make_folder,
    remove,
    remove_folder,
    write_json,
)
from embedkit.train.adapters import with_trained_weights
from embedkit.train.batches import BatchStream, share_size
from embedkit.train.checkpoint import (
    FROM_THE_START,
    RECORD,
    Progress,
    named_weights,
    read_record,
    read_weights,
    remove_checkpoints,
    write_checkpoint,
    write_weights,
)
from embedkit.train.data import Task, data_digest, read_tasks
from embedkit.train.gather import average_gradients, world
from embedkit.train.leaks import without_leaks
from embedkit.train.objectives import check_data, with_right_pairs
from embedkit.train.optimizer import adamw, clipped_norm, learning_rate
from embedkit.train.prompts import with_prompts
from embedkit.train.rows import RowMaker
from embedkit.train.settings import TAKERS, Evaluation, Stage, TrainingRecipe, grid_of
from embedkit.train.step import Prepared, Step
from embedkit.train.stopping import Held, held_signals

MODEL, LOG, BEST, CANDIDATE = "model", "log.jsonl", "best-{stage}.safetensors", "candidate"
TOKENS = {"cpu": 512, "cuda": 16384}  # a pass; on a CPU few enough that a layer's states stay in its cache
Cut = tuple[int | None, int | None]  # layers and dim of embedkit.load
Evaluate = Callable[
    [Path, Evaluation, Sequence[Cut]], list[float]
]  # a model folder, cut so -> scores that the recipe names
logger = logging.getLogger(__name__)


def train(
    recipe: TrainingRecipe,
    output: Path,
    *,
    resume: bool = False,
    evaluate: Evaluate | None = None,
    device: str = "auto",
    progress: bool = False,
) -> Path:
    """Trains, and returns the model's folder, `output`/model.

    `output` also holds log.jsonl (one line a step, and one of what leaks left out), training.json and, until the run ends, the
    last checkpoint. resume: go on with what is there. evaluate: scores a model folder, where the recipe asks for it. In a group of
    processes (torchrun) all of them call this; the first one writes. Raises UsageError where they cannot have equal shares of a batch,
    or `output` holds a run already, or another one than is to be resumed, Stopped where another process trains into it, DataError
    and ModelError for data and models that cannot be used.
    """
    check_output(output, resume)
    for stage in recipe.stages:
        share_size(stage.batch.size, world()[1])
    if is_finished(recipe, output):
        return output / MODEL
    if any(stage.evaluation for stage in recipe.stages) and evaluate is None:
        raise UsageError("The recipe evaluates on the way, and no function to evaluate with was given.")
    if world()[0] != 0:
        return Run(recipe, output, None, evaluate, device, progress=False).run(resume)
    make_folder(output)
    with locked_file(output / LOG, output) as log:
        return Run(recipe, output, log, evaluate, device, progress).run(resume)


def check_output(output: Path, resume: bool) -> None:
    if not resume and ((output / RECORD).exists() or (output / MODEL).exists()):
        raise UsageError(f"{output} holds a run already; go on with it by --resume, or choose another folder.")


def is_finished(recipe: TrainingRecipe, output: Path) -> bool:
    """Whether a run ended there, and its model is published. Raises UsageError where that was another recipe's."""
    record = read_record(output)
    if record is None or not record[0].finished or not (output / MODEL).is_dir():
        return False
    if record[1]["recipe"] != recipe.hash:
        raise UsageError(f"{output} holds a finished run of another recipe; choose another folder.")
    return True


def open_model(recipe: TrainingRecipe, device: str, name: str | None = None) -> Any:
    """The SentenceTransformer to train, or another: float32 weights, on the device."""
    return with_trained_weights(open_for_training(name or recipe.model, device), name or recipe.model)


def read_stage(stage: Stage, seed: int) -> list[Task]:
    """The data of a stage, without what leaks and what its losses would take wrongly."""
    tasks = read_tasks(stage.data, seed)
    tasks = with_right_pairs(stage.loss, tasks)
    tasks = without_leaks(tasks, stage.leaks) if stage.leaks else tasks
    check_data(stage.loss, tasks, stage.batch)
    return tasks


def row_maker(recipe: TrainingRecipe, stage: Stage, model: Any) -> RowMaker:
    budget = stage.batch.tokens or TOKENS.get(model.device.type, TOKENS["cuda"])
    return RowMaker(model, budget=budget, precision=precision_of(recipe, model.device), max_tokens=stage.max_tokens)


def precision_of(recipe: TrainingRecipe, device: torch.device) -> str:
    """What the recipe asks for; for "auto" bfloat16 where the device multiplies it faster, else float32."""
    if recipe.precision != "auto":
        return recipe.precision
    return "bfloat16" if default_dtype(device) == "bfloat16" else "float32"  # float16 would need scaled losses


def teachers_of(recipe: TrainingRecipe, stage: Stage, device: str) -> dict[int, RowMaker]:
    """term -> what makes the rows of its teacher, which is never trained; terms of one teacher share it."""
    taught = {
        place: term.teacher or recipe.model for place, term in enumerate(stage.loss) if term.name in TAKERS["teacher"]
    }
    makers = {
        name: row_maker(recipe, stage, open_model(recipe, device, name).eval().requires_grad_(False))
        for name in dict.fromkeys(taught.values())
    }
    return {place: makers[name] for place, name in taught.items()}


def temperatures_of(stage: Stage, device: torch.device) -> dict[int, nn.Parameter]:
    """term -> the logarithm of its temperature, where it is learned."""
    return {
        place: nn.Parameter(torch.tensor(math.log(term.temperature), device=device))
        for place, term in enumerate(stage.loss)
        if term.learn_temperature
    }


def seed_step(seed: int, stage: int, step: int) -> torch.Generator:
    """Torch's random numbers for one step of one process (dropout). Returns the generator of what all processes draw alike."""
    own = np.random.SeedSequence([seed, stage, step, world()[0]])
    shared = np.random.SeedSequence([seed, stage, step], spawn_key=(0,))  # without a key it is that of process 0
    states = [int(high) << 32 | int(low) for high, low in (one.generate_state(2) for one in (own, shared))]
    torch.manual_seed(states[0])
    return torch.Generator().manual_seed(states[1])


class Run:
    """One run of a recipe in one process. log: the locked file of the process that writes, None in the others."""

    def __init__(
        self,
        recipe: TrainingRecipe,
        output: Path,
        log: PositionalFile | None,
        evaluate: Evaluate | None,
        device: str,
        progress: bool,
    ) -> None:
        self.recipe, self.output, self.log, self.score = recipe, output, log, evaluate
        self.device, self.bar_wanted = device, progress
        self.model: Any = open_model(recipe, device)
        self.at = Progress()

    def run(self, resume: bool) -> Path:
        record = read_record(self.output) if resume else None
        self.at = record[0] if record else Progress()
        self._check_progress()
        if self.log is not None:
            self.log.truncate(self.at.log_bytes)
        for number, written in enumerate(self.recipe.stages):
            stage = with_prompts(written, self.model)  # of the stages that are done, too
            if number < self.at.stage:
                continue
            self._stage(number, stage, record if record and number == record[0].stage else None)
            record = None
        return self._publish()

    def _check_progress(self) -> None:
        """Raises IntegrityError for a place that no run of this recipe comes to."""
        stages, at = self.recipe.stages, self.at
        inside = 0 <= at.stage < len(stages) and 0 <= at.step <= stages[at.stage].steps
        if not inside or (self.log is not None and not 0 <= at.log_bytes <= self.log.size):
            raise IntegrityError(
                f"{self.output / RECORD} says stage {at.stage}, step {at.step} and {at.log_bytes} bytes of {LOG}, which do not fit "
                f"the recipe and the log; {FROM_THE_START}."
            )

    def _stage(self, number: int, stage: Stage, record: tuple[Progress, dict[str, Any], Path | None] | None) -> None:
        tasks = read_stage(stage, self.recipe.seed)
        maker = row_maker(self.recipe, stage, self.model)
        temperatures = temperatures_of(stage, self.model.device)
        weights = named_weights(self.model, {f"temperature {place}": one for place, one in temperatures.items()})
        optimizer = adamw(weights, stage.optimizer)
        step = Step(maker, stage, teachers_of(self.recipe, stage, self.device), temperatures)
        facts = self._facts(tasks)
        if record:
            self._check_facts(record[1], facts)
            if record[2] is not None:
                read_weights(record[2], weights, optimizer)
        else:
            self.at = Progress(stage=number, log_bytes=self.at.log_bytes)
            if stage.leaks:
                self._write({"stage": stage.name, "leaks": {task.name: dict(task.leaked) for task in tasks}})
        self.model.train(stage.dropout)
        prepared = self._prepared(BatchStream(tasks, stage.batch, self.recipe.seed + number), step, self.at.step)
        shown = tqdm(total=stage.steps, initial=self.at.step, desc=stage.name, disable=not self.bar_wanted)
        # several processes would have to agree on the step after which they stop
        holding: AbstractContextManager[Held] = held_signals() if world()[1] == 1 else nullcontext([])
        with shown as bar, holding as stop:
            while self.at.step < stage.steps and not self._gave_up(stage):
                started = time.monotonic()
                ready = next(prepared)
                done = self._step(number, stage, step, ready, weights, optimizer)
                self.at = replace(self.at, step=self.at.step + 1)
                self._log(stage, done, ready, time.monotonic() - started)
                bar.update()
                bar.set_postfix(loss=f"{done['loss']:.4f}", refresh=False)
                self._evaluate(stage, weights)
                ends = self.at.step == stage.steps or self._gave_up(stage)
                followed = number + 1 < len(self.recipe.stages)  # the last stage ends in the published model
                if self.at.step % stage.checkpoint_every == 0 or (ends and followed) or stop:
                    self._checkpoint(weights, optimizer, facts)
                if stop:
                    stop.pop()()
        prepared.close()
        if self.at.best_step is not None:
            _barrier()
            read_weights(self._best, weights)

    @property
    def _best(self) -> Path:
        """The best weights of the stage."""
        return self.output / BEST.format(stage=self.at.stage)

    def _prepared(self, stream: BatchStream, step: Step, first: int) -> Generator[Prepared, None, None]:
        """Batches from step `first` on, each prepared while the step before it runs."""
        batches = iter(stream)
        for _ in range(first):
            next(batches)
        with ThreadPoolExecutor(1) as pool:

            def ready() -> Prepared:
                return step.prepare(next(batches))

            coming = pool.submit(ready)
            while True:
                now = coming.result()
                coming = pool.submit(ready)
                yield now

    def _step(
        self,
        number: int,
        stage: Stage,
        step: Step,
        prepared: Prepared,
        weights: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> dict[str, float]:
        generator = seed_step(self.recipe.seed, number, self.at.step)
        optimizer.zero_grad()
        loss = step.backward(prepared, self.at.step, generator)
        if world()[1] > 1:
            dist.all_reduce(loss)
            loss /= world()[1]
        trained = list(weights.values())
        average_gradients(trained)
        found = {"loss": float(loss), "gradient_norm": clipped_norm(trained, stage.optimizer.clip)}
        for name, value in found.items():
            if not math.isfinite(value):  # and no weight has changed
                raise UsageError(
                    f"The {name.replace('_', ' ')} is {value} at step {self.at.step} of {stage.name}; lower optimizer.lr, or raise the "
                    f"temperature."
                )
        rate = learning_rate(stage.optimizer, self.at.step, stage.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        return {**found, "lr": rate}

    def _log(self, stage: Stage, done: Mapping[str, float], prepared: Prepared, seconds: float) -> None:
        tokens, padded = prepared.tokens
        self._write(
            {
                "stage": stage.name,
                "step": self.at.step,
                **done,
                "tokens": tokens,
                "padded": padded,
                "seconds": round(seconds, 4),
            }
        )

    def _write(self, line: Mapping[str, Any]) -> None:
        if self.log is None:
            return
        self.log.write(self.log.size, json.dumps(line).encode() + b"\n")
        self.at = replace(self.at, log_bytes=self.log.size)

    def _gave_up(self, stage: Stage) -> bool:
        """Whether too many evaluations have passed without a better score."""
        patience = stage.evaluation.patience if stage.evaluation else None
        return patience is not None and self.at.since_best >= patience

    def _evaluate(self, stage: Stage, weights: Mapping[str, Tensor]) -> None:
        """Scores the model where it is time to, and keeps the weights of the best."""
        asked = stage.evaluation
        if asked is None or (self.at.step % asked.every and self.at.step != stage.steps):
            return
        score = 0.0
        if self.log is not None and self.score is not None:
            folder = self.output / CANDIDATE
            self._save_model(folder)
            (score,) = self.score(folder, asked, [(None, None)])
            remove_folder(folder)
        score = _from_first(score)
        better = math.isfinite(score) and (self.at.best is None or score > self.at.best)
        if better:
            self.at = replace(self.at, best=score, best_step=self.at.step, since_best=0)
            if self.log is not None:
                write_weights(self._best, weights)
        elif math.isfinite(score):
            self.at = replace(self.at, since_best=self.at.since_best + 1)
        elif self.log is not None:  # which says nothing of the model, and does not count for patience
            where = asked.metric, asked.task, self.at.step, stage.name
            logger.warning("%s of %s is no number at step %d of %s; the log has null.", *where)
        self._write(
            {
                "stage": stage.name,
                "step": self.at.step,
                "task": asked.task,
                asked.metric: _number(score),
                "best": better,
            }
        )

    def _facts(self, tasks: list[Task]) -> dict[str, Any]:
        return {
            "recipe": self.recipe.hash,
            "data": data_digest(tasks),
            "processes": world()[1],
            "threads": torch.get_num_threads(),
            "device": self.model.device.type,
            "precision": precision_of(self.recipe, self.model.device),
            **versions(),
        }

    def _check_facts(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        for name in ("recipe", "data", "processes"):
            if before.get(name) != now[name]:
                raise UsageError(
                    f"{self.output} holds a run with another {name}; resume it as it was begun, or choose another folder."
                )
        if other := [name for name in now if before.get(name) != now[name]]:
            logger.warning("Resumed with other %s than before: the run goes on, not bit for bit.", ", ".join(other))

    def _checkpoint(
        self, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, facts: Mapping[str, Any]
    ) -> None:
        if self.log is not None:
            self.log.sync()
            write_checkpoint(self.output, self.at, weights, optimizer, facts)

    def _save_model(self, folder: Path, tested: Mapping[str, Any] | None = None) -> None:
        """A folder that SentenceTransformer and embedkit.load open, with the recipe that made it. tested: what is known of the cells
        of its grid."""
        text = yaml.safe_dump(json.loads(json.dumps(self.recipe.resolved)), sort_keys=False, allow_unicode=True)
        with atomic_folder(folder) as partial, quiet():
            self.model.save_pretrained(str(partial), create_model_card=False)
            with atomic_file(partial / "recipe.yaml") as stream:
                stream.write(f"# hash: {self.recipe.hash}\n{text}".encode())
            if elastic := self.recipe.stages[self.at.stage].elastic:
                maker = row_maker(self.recipe, self.recipe.stages[self.at.stage], self.model)
                grid = asdict(grid_of(elastic, maker.width, maker.depth))
                write_json(partial / GRID, {**grid, **({"tested": tested} if tested else {})})

    def _tested(self) -> dict[str, Any] | None:
        """The score of each cell of the grid on what the last stage is evaluated on; None where there is nothing to test."""
        stage = self.recipe.stages[-1]
        if stage.elastic is None or stage.evaluation is None or self.score is None:
            return None
        maker = row_maker(self.recipe, stage, self.model)
        grid, asked = grid_of(stage.elastic, maker.width, maker.depth), stage.evaluation
        folder = self.output / CANDIDATE
        self._save_model(folder)
        cells = [(n, d) for n in grid.layers for d in (grid.dims if n == maker.depth else grid.early_dims)]
        cuts = [(None if n == maker.depth else n, None if d == maker.width else d) for n, d in cells]
        found = self.score(folder, asked, cuts)
        scores = {f"{n}/{d}": _number(score) for (n, d), score in zip(cells, found, strict=True)}
        remove_folder(folder)
        return {"task": Path(asked.task).name, "split": asked.split, "metric": asked.metric, "scores": scores}

    def _publish(self) -> Path:
        folder = self.output / MODEL
        if self.log is not None:
            self._save_model(folder, self._tested())
            ended = asdict(replace(self.at, finished=True))
            write_json(
                self.output / RECORD, {"progress": ended, "weights": None, "facts": {"recipe": self.recipe.hash}}
            )
            remove_checkpoints(self.output)
            for best in self.output.glob(BEST.format(stage="*")):
                remove(best)
        _barrier()
        return folder


def _number(score: float) -> float | None:
    """As JSON has it: the correlation of rows that are all the same is no number, and is null there."""
    return score if math.isfinite(score) else None


def _from_first(value: float) -> float:
    """What the first process has."""
    if world()[1] == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.broadcast(shared, 0)
    return float(shared)


def _barrier() -> None:
    if world()[1] > 1:
        dist.barrier()
