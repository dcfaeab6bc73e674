"""Tasks run by mteb, its own or local ones, and reported in embedkit's words."""

from __future__ import annotations

import io
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedkit.errors import DataError, UsageError, is_full_disk
from embedkit.eval.mteb_import import import_mteb
from embedkit.eval.mteb_model import MtebModel
from embedkit.eval.mteb_scores import Part, read_scores
from embedkit.eval.retrieval import describe_encoder
from embedkit.types import Report

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubTask:
    """A task of mteb, whose data come from the hub."""

    name: str
    task: Any  # mteb's


def find_tasks(names: Sequence[str]) -> list[HubTask]:
    """Tasks by mteb's names. Raises UsageError for a name that mteb does not know."""
    if not names:
        return []
    mteb = import_mteb()
    try:
        return [HubTask(name, mteb.get_task(name)) for name in names]
    except (KeyError, ValueError) as error:
        reason = str(error.args[0] if error.args else error).removeprefix("KeyError: ")  # which mteb writes itself
        raise UsageError(f"{reason.rstrip('?.')}; mteb lists its tasks with: mteb available-tasks.") from None


def find_benchmark(name: str) -> list[HubTask]:
    """The tasks of a benchmark of mteb ("MTEB(eng, v2)", "BEIR", "NanoBEIR"). Raises UsageError for an unknown one."""
    mteb = import_mteb()
    try:
        benchmark = mteb.get_benchmark(name)
    except KeyError as error:
        raise UsageError(f"{error.args[0]} mteb lists its benchmarks with: mteb available-benchmarks.") from None
    return [HubTask(task.metadata.name, task) for task in benchmark.tasks]


def load_data(task: Any) -> None:
    """Has the task get its data. Raises DataError where it cannot."""
    try:
        task.load_data()
    except Exception as error:  # datasets and the hub fail in their own ways
        if is_full_disk(error):
            raise
        from huggingface_hub import constants

        reason = next(iter(str(error).splitlines()), type(error).__name__)
        step = "check the network, or set HF_HUB_OFFLINE=1 to take what is here without asking"
        if constants.HF_HUB_OFFLINE:
            step = "HF_HUB_OFFLINE is set and they are not here: fetch them once without it"
        raise DataError(
            f"The data of {task.metadata.name} cannot be had: {reason.rstrip('.')}; they come from the hub: {step}."
        ) from error


@dataclass(frozen=True)
class Measured:
    """What mteb's run of one task gave."""

    reports: dict[str, Report]  # by name: "STS22/en" where the task has several subsets
    results: list[Any]  # mteb's TaskResult of the task; of its parts as well where it is made of several


def evaluate_mteb(
    task: Any, model: MtebModel, context: Mapping[str, Any] | None = None, *, progress: bool = False
) -> Measured:
    """Runs one mteb task: a report for each subset and split.

    context: what the reports say beside model and versions. Raises DataError where mteb cannot get its data.
    """
    parts = getattr(task.metadata, "tasks", None)
    if parts is not None:  # one made of others, as CQADupstack
        measured = [evaluate_mteb(part, model, context, progress=progress) for part in parts]
        reports = {name: report for one in measured for name, report in one.reports.items()}
        results = [result for one in measured for result in one.results]
        return Measured(reports, [*results, task.combine_task_results(results)])
    if not set(task.metadata.modalities) <= set(model.mteb_model_meta.modalities or ["text"]):
        raise DataError(
            f"{task.metadata.name} is of {' and '.join(task.metadata.modalities)}, which {model.mteb_model_meta.name} "
            f"does not take; choose tasks of {' and '.join(model.mteb_model_meta.modalities or ['text'])}."
        )
    given = task.data_loaded
    if not given:
        load_data(task)
    result, predicted = _run(task, model, progress)
    reports = dict(_reports(task, result, predicted, model, context or {}))
    if not given:
        task.unload_data()
    return Measured(reports, [result])


def _run(task: Any, model: MtebModel, progress: bool) -> tuple[Any, Mapping[str, Any]]:
    """mteb's result and its predictions: subset -> split -> as the type has them."""
    import datasets

    mteb = import_mteb()
    if not progress:
        datasets.disable_progress_bars()
    with (
        tempfile.TemporaryDirectory() as folder,  # mteb gives its predictions as a file only
        nullcontext()
        if progress
        else redirect_stderr(io.StringIO()),  # some of its progress bars cannot be switched off
    ):
        found = mteb.evaluate(
            model, task, cache=None, prediction_folder=folder, show_progress_bar=progress, co2_tracker=False
        )
        files = list(Path(folder).glob("*.json"))
        predicted = json.loads(files[0].read_text(encoding="utf-8")) if files else {}
    if not found.task_results:
        raise DataError(f"mteb gave no result for {task.metadata.name}; its data may be private.")
    return found.task_results[0], predicted


def _reports(
    task: Any, result: Any, predicted: Mapping[str, Any], model: MtebModel, context: Mapping[str, Any]
) -> Iterator[tuple[str, Report]]:
    own = result.to_dict()
    one_subset = len({row["hf_subset"] for rows in own["scores"].values() for row in rows}) == 1
    for split, rows in own["scores"].items():
        for row in rows:
            subset = row["hf_subset"]
            part = Part(task, _data(task, subset, split), row, predicted.get(subset, {}).get(split))
            names = [own["task_name"], *([] if one_subset else [subset]), *([split] if len(own["scores"]) > 1 else [])]
            data = {"name": own["task_name"], "revision": own["dataset_revision"], "subset": subset, "split": split}
            yield (
                "/".join(names),
                Report(
                    **read_scores(part),
                    context={
                        **describe_encoder(model.encoder),
                        "data": data,
                        "type": task.metadata.type,
                        "mteb": own["mteb_version"],
                        **{f"first_{role}": literal for role, literal in model.first_inputs.items()},
                        "seconds": own.get("evaluation_time"),
                        **context,
                    },
                ),
            )


def _data(task: Any, subset: str, split: str) -> Any:
    """The rows of one part; tasks of one subset may leave its name out."""
    return task.dataset[subset][split] if subset in task.dataset else task.dataset[split]


def result_files(results: Sequence[Any], model: MtebModel) -> dict[str, Mapping[str, Any]]:
    """mteb's own files, as its ResultCache lays them out: path without .json -> content."""
    meta = model.mteb_model_meta
    parts = [meta.model_name_as_path(), meta.revision]
    parts += ["experiments", meta.experiment_name] if meta.experiment_name else []
    folder = "/".join(["results", *parts])
    files = {f"{folder}/{result.task_name}": result.to_dict() for result in results}
    return {f"{folder}/model_meta": meta.to_dict(), **files}


def identity(task: Any) -> dict[str, Any]:
    """Which data and protocol a task of mteb stands for."""
    metadata = task.metadata
    parts = getattr(metadata, "tasks", None) or []
    return {
        "mteb_task": metadata.name,
        "dataset": dict(metadata.dataset),
        "main_score": metadata.main_score,
        "splits": list(task.eval_splits),
        "subsets": list(task.hf_subsets or []),
        "parts": [identity(part) for part in parts],
        "mteb": import_mteb().__version__,
    }
