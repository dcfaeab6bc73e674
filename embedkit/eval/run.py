"""Tasks x variants of one model, evaluated one after the other; whatever is done is written before the next begins."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from embedkit.corpus import read_corpus
from embedkit.encoder import Encoder
from embedkit.encoders import load
from embedkit.errors import DataError, UsageError
from embedkit.eval.local_scores import evaluate_local
from embedkit.eval.local_tasks import LocalTask, is_beir, read_local
from embedkit.eval.mteb_tasks import HubTask, evaluate_mteb, find_tasks
from embedkit.eval.report import write_reports
from embedkit.eval.retrieval import Retrieval, evaluate_retrieval, read_retrieval
from embedkit.eval.variants import Variant
from embedkit.index import Index
from embedkit.jobs import open_index
from embedkit.types import Report

Task = Retrieval | LocalTask | HubTask
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What an evaluation was asked for."""

    tasks: Sequence[Task]
    output: Path  # of the reports
    model: Mapping[str, Any] = field(default_factory=dict)  # arguments of `load`
    query_prompt: str | None = None  # name of a stored prompt
    variants: Sequence[Variant] = (Variant(),)
    index: Path | None = None  # searched instead of all rows
    calibrate: Path | None = None  # a corpus; its first documents set the int8 profile


class Outcome(NamedTuple):
    """What one task gave: a report a subset, and mteb's own result where mteb ran it."""

    reports: dict[str, Report]
    mteb: Mapping[str, Any] | None = None


class Evaluation(NamedTuple):
    """All reports by name, and why a task has none."""

    reports: dict[str, Report]
    failed: dict[str, DataError]


def run(plan: Plan, *, progress: bool = False) -> Evaluation:
    """Evaluates every task with every variant of the model, and writes the reports after each.

    A task whose data cannot be had or used is left out with a sentence; the others go on.
    """
    reports: dict[str, Report] = {}
    results: dict[str, Mapping[str, Any]] = {}
    failed: dict[str, DataError] = {}
    for variant in plan.variants:
        searched = _open(plan, variant)
        for task in plan.tasks:
            try:
                outcome = _outcome(task, searched, progress)
            except DataError as error:
                failed[_free(task.name, task, variant, failed)] = error
                continue
            for name, report in outcome.reports.items():
                reports[_free(name, task, variant, reports)] = report
            if outcome.mteb is not None:
                results[_free(task.name, task, variant, results).replace("/", "-")] = outcome.mteb
            write_reports(plan.output, reports, results)
    return Evaluation(reports, failed)


def _open(plan: Plan, variant: Variant) -> Encoder | Index:
    """The model, or the index, that a variant asks for."""
    if plan.index is not None:
        return open_index(plan.index, prompt_name=plan.query_prompt, **plan.model)
    chosen: dict[str, Any] = {name: value for name in ("dim", "layers") if (value := getattr(variant, name))}
    if plan.query_prompt is not None:
        chosen["prompt_names"] = {"query": plan.query_prompt}
    if plan.calibrate is not None:
        texts = (document.full_text for document in read_corpus(plan.calibrate))
        chosen.update(profile="fast", calibrate=texts)
    return load(**plan.model, **chosen)


def _outcome(task: Task, searched: Encoder | Index, progress: bool) -> Outcome:
    """The one place where a task is evaluated."""
    if isinstance(task, Retrieval):
        return Outcome({task.name: evaluate_retrieval(task, searched, progress=progress)})
    if isinstance(searched, Index):
        raise UsageError(f"{task.name} is no BEIR folder; an index is evaluated on one, other tasks take a model.")
    if isinstance(task, LocalTask):
        report, own = evaluate_local(task, searched)
        return Outcome({task.name: report}, own)
    return Outcome(*evaluate_mteb(task.task, searched, progress=progress))


def _free(name: str, task: Task, variant: Variant, taken: Mapping[str, Any]) -> str:
    """A name that no other report has: where two tasks share theirs, the second is called by its path."""
    label = f" {variant.label}" if variant.label else ""
    longer = str(task.path) if isinstance(task, (Retrieval, LocalTask)) else f"mteb/{name}"
    return longer + label if name + label in taken else name + label


def read_tasks(path: Path, split: str = "test", type_asked: str | None = None) -> list[Task]:
    """The tasks of a file or folder: a BEIR folder, a folder of such, or what `local_tasks.py` describes."""
    if is_beir(path) and type_asked is None:
        return [read_retrieval(path, split)]
    inner = [folder for folder in sorted(path.iterdir()) if is_beir(folder)] if path.is_dir() else []
    if inner and type_asked is None:
        name = path.resolve().name
        return [replace(read_retrieval(folder, split), name=f"{name}/{folder.name}") for folder in inner]
    return [*read_local(path, split, type_asked)]


def evaluate(encoder: Encoder | Index, task: str | Path, *, split: str = "test", progress: bool = False) -> Report:
    """Scores an encoder, or an index as it will be served, on one task.

    task: a BEIR folder (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv), a file or folder of another kind (see
    `local_tasks.py`), or the name of a task of mteb, whose data come from the hub. split: of a folder. Metrics of a BEIR
    folder: ndcg@10, recall@100, mrr@10 and map over the 100 best, with 95 % intervals over queries.
    Raises UsageError for a task that is not there, DataError for data that cannot be scored, ModelMismatch where an
    index's model is not the one that made its rows.
    """
    tasks: Sequence[Task] = read_tasks(Path(task), split) if Path(task).exists() else find_tasks([str(task)])
    reports = {name: report for one in tasks for name, report in _outcome(one, encoder, progress).reports.items()}
    if len(reports) > 1:
        raise UsageError(f"{task} has {len(reports)} subsets ({', '.join(reports)}); run it with: embedkit eval.")
    return next(iter(reports.values()))
