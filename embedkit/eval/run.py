"""Tasks x variants of one model, evaluated one after the other; whatever is done is written before the next begins."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from embedkit.corpus import read_corpus
from embedkit.encoder import Encoder
from embedkit.encoders import load
from embedkit.errors import DataError, UsageError
from embedkit.eval.embedding_cache import CachedEncoder
from embedkit.eval.local_tasks import LocalTask, is_beir, read_local
from embedkit.eval.mteb_index import IndexRecipe, MtebIndex, reads_corpus
from embedkit.eval.mteb_model import MtebModel
from embedkit.eval.mteb_tasks import HubTask, evaluate_mteb, find_tasks, identity, result_files
from embedkit.eval.report import write_reports
from embedkit.eval.result_cache import Outcome, ResultCache
from embedkit.eval.retrieval import Retrieval, data_hashes, evaluate_retrieval, read_retrieval
from embedkit.index import Index
from embedkit.jobs import open_index
from embedkit.storage import make_folder
from embedkit.types import Report
from embedkit.vectors import Precision
from embedkit.version import __version__

Task = Retrieval | LocalTask | HubTask
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Variant:
    """One way to use a model; None is the model's own."""

    dim: int | None = None
    layers: int | None = None
    precision: Precision = "float32"  # of the rows that are compared

    @property
    def label(self) -> str:
        """ "dim=128 layers=3 int8"; empty for the model as it is."""
        parts = [f"{name}={value}" for name in ("dim", "layers") if (value := getattr(self, name)) is not None]
        return " ".join([*parts, *([self.precision] if self.precision != "float32" else [])])


@dataclass(frozen=True)
class Plan:
    """What an evaluation was asked for."""

    tasks: Sequence[Task]
    output: Path  # of the reports
    model: Mapping[str, Any] = field(default_factory=dict)  # arguments of `load`
    query_prompt: str | None = None  # name of a stored prompt
    variants: Sequence[Variant] = (Variant(),)
    index: Path | IndexRecipe | None = None  # searched instead of all rows; or how one is built for each corpus
    calibrate: Path | None = None  # a corpus; its first documents set the int8 profile
    cache: Path | None = None  # of rows and outcomes; None: nothing is kept


@dataclass(frozen=True)
class System:
    """What is evaluated: an encoder whose rows are all compared, or searched through an index."""

    encoder: Encoder
    through: Index | IndexRecipe | None = None
    scratch: Path | None = None  # where indexes are built


class Evaluation(NamedTuple):
    """All reports by name, and why a task has none."""

    reports: dict[str, Report]
    failed: dict[str, DataError]


def run(plan: Plan, *, progress: bool = False) -> Evaluation:
    """Evaluates every task with every variant of the model, and writes the reports after each.

    A task whose data cannot be had or used is left out with a sentence; the others go on. With a cache, outcomes that are
    there are taken from it, so that an interrupted run goes on at its task.
    """
    reports: dict[str, Report] = {}
    results: dict[str, Mapping[str, Any]] = {}
    failed: dict[str, DataError] = {}
    for variant in plan.variants:
        system = _open(plan, variant)
        for task in plan.tasks:
            try:
                outcome = _kept(plan, task, variant, system, progress)
            except DataError as error:
                failed[_free(task.name, task, variant, failed)] = error
                continue
            for name, report in outcome.reports.items():
                reports[_free(name, task, variant, reports)] = report
            results.update(outcome.results)
            write_reports(plan.output, reports, results)
    return Evaluation(reports, failed)


def _open(plan: Plan, variant: Variant) -> System:
    """The model, or the index, that a variant asks for."""
    if isinstance(plan.index, Path):
        index = open_index(plan.index, prompt_name=plan.query_prompt, **plan.model)
        return System(_caching(plan, index.encoder()), index)
    chosen: dict[str, Any] = {name: value for name in ("dim", "layers") if (value := getattr(variant, name))}
    if plan.query_prompt is not None:
        chosen["prompt_names"] = {"query": plan.query_prompt}
    if plan.calibrate is not None:
        texts = (document.full_text for document in read_corpus(plan.calibrate))
        chosen.update(profile="fast", calibrate=texts)
    return System(_caching(plan, load(**plan.model, **chosen)), plan.index, plan.cache)


def _caching(plan: Plan, encoder: Encoder) -> Encoder:
    return encoder if plan.cache is None else CachedEncoder(encoder, plan.cache / "embeddings")


def _kept(plan: Plan, task: Task, variant: Variant, system: System, progress: bool) -> Outcome:
    """The outcome of a task: from the cache, or evaluated and put there."""
    if plan.cache is None:
        return _outcome(task, system, progress)
    cache, key = ResultCache(plan.cache / "results"), _key(task, variant, system)
    if (found := cache.get(key)) is not None:
        logger.info("%s: taken from %s", task.name, cache.path(key))
        return found
    outcome = _outcome(task, system, progress)
    cache.put(key, outcome)
    return outcome


def _key(task: Task, variant: Variant, system: System) -> dict[str, Any]:
    """All that an outcome depends on."""
    through: Any = system.through
    if isinstance(through, Index):
        through = {"manifest": sha256(through.manifest.sealed()).hexdigest(), "options": through.query_options}
    elif isinstance(through, IndexRecipe):
        through = through.settings
    return {
        "task": _identity(task),
        "fingerprint": system.encoder.fingerprint,
        "compute": dict(system.encoder.compute),
        "prompts": {
            name: getattr(system.encoder, name, None) for name in ("stored_prompts", "default_prompt", "prompts")
        },
        "prompt_names": system.encoder.settings.get("prompt_names"),
        "precision": variant.precision,
        "index": through,
        "embedkit": __version__,
    }


def _identity(task: Task) -> dict[str, Any]:
    """Which data a task scores, to the byte or the revision, and by which protocol."""
    if isinstance(task, Retrieval):
        protocol = {"metrics": list(task.metrics), "ignore_identical_ids": task.ignore_identical_ids}
        return {"name": task.name, "type": "beir", "split": task.split, "sha256": data_hashes(task), **protocol}
    if isinstance(task, LocalTask):
        return {"name": task.name, "type": task.type, "data": dict(task.data), **identity(task.task)}
    return identity(task.task)


def _outcome(task: Task, system: System, progress: bool) -> Outcome:
    """The one place where a task is evaluated."""
    if isinstance(task, Retrieval):
        return Outcome({task.name: _retrieval(task, system, progress)})
    if isinstance(system.through, Index):
        check_searched([task])
    model = (
        MtebModel(system.encoder)
        if system.through is None
        else MtebIndex(system.encoder, system.through, system.scratch)
    )
    context = {"data": dict(task.data), "type": task.type} if isinstance(task, LocalTask) else {}
    measured = evaluate_mteb(task.task, model, context, progress=progress)
    if isinstance(task, LocalTask):
        (report,) = measured.reports.values()
        return Outcome({task.name: report}, result_files(measured.results, model))
    return Outcome(measured.reports, result_files(measured.results, model))


def check_searched(tasks: Sequence[Task]) -> None:
    """Raises UsageError for a task that no single index can be searched for: one without a corpus."""
    for task in tasks:
        if not (isinstance(task, Retrieval) or (isinstance(task, HubTask) and reads_corpus(task.task))):
            raise UsageError(f"{task.name} searches no corpus; an index is evaluated on one, other tasks take a model.")


def _retrieval(task: Retrieval, system: System, progress: bool) -> Report:
    if not isinstance(system.through, IndexRecipe):
        return evaluate_retrieval(task, system.through or system.encoder, progress=progress)
    if system.scratch is not None:
        make_folder(system.scratch)
    with (
        tempfile.TemporaryDirectory(dir=system.scratch) as folder,
        system.through.build(task.path, Path(folder) / "index", system.encoder) as index,
    ):
        return evaluate_retrieval(task, index, progress=progress)


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
    system = System(encoder.encoder(), encoder) if isinstance(encoder, Index) else System(encoder)
    reports = {name: report for one in tasks for name, report in _outcome(one, system, progress).reports.items()}
    if len(reports) > 1:
        raise UsageError(f"{task} has {len(reports)} subsets ({', '.join(reports)}); run it with: embedkit eval.")
    return next(iter(reports.values()))
