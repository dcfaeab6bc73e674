"""Tasks x variants of one model, evaluated one after the other; whatever is done is written before the next begins."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

from embedkit.corpus import read_corpus
from embedkit.encoder import Encoder
from embedkit.encoders import load
from embedkit.errors import DataError, UsageError
from embedkit.eval.cost import SAMPLE, Encoding, Searching, costs, exact_search, index_search, machine
from embedkit.eval.embedding_cache import CachedEncoder
from embedkit.eval.local_tasks import ENDINGS, LocalTask, is_beir, read_local
from embedkit.eval.mteb_index import MtebIndex, reads_corpus
from embedkit.eval.mteb_model import MtebModel
from embedkit.eval.mteb_scores import SCORES, known_scores
from embedkit.eval.mteb_tasks import HubTask, evaluate_mteb, find_tasks, identity, result_files
from embedkit.eval.report import write_grid, write_reports
from embedkit.eval.result_cache import Outcome, ResultCache
from embedkit.eval.retrieval import Retrieval, check_relevant, data_hashes, evaluate_retrieval, read_retrieval
from embedkit.eval.task_file import TaskFile, read_task_file
from embedkit.eval.variants import Narrowed, Variant
from embedkit.index import Index
from embedkit.jobs import IndexRecipe, build_index, open_index
from embedkit.storage import make_folder
from embedkit.types import Report
from embedkit.version import __version__

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
    index: Path | IndexRecipe | None = None  # searched instead of all rows; or how one is built for each corpus
    calibrate: Path | None = None  # a corpus; its first documents set the int8 profile
    cache: Path | None = None  # of rows and outcomes; None: nothing is kept
    command: str = ""  # as it was typed, for the reports


@dataclass(frozen=True)
class System:
    """What is evaluated: an encoder whose rows are all compared, or searched through an index."""

    encoder: Encoder
    through: Index | IndexRecipe | None = None
    scratch: Path | None = None  # where indexes are built
    timed: Encoder | None = None  # the encoder without a cache, whose cost is measured; None: no cost is
    times: dict[str, Encoding] = field(default_factory=dict)  # of the tasks so far; equal for all dims and precisions


class Evaluation(NamedTuple):
    """All reports by name, and why a task has none."""

    reports: dict[str, Report]
    failed: dict[str, DataError]


def run(plan: Plan, *, progress: bool = False) -> Evaluation:
    """Evaluates every task with every variant of the model, and writes the reports after each.

    A task whose data cannot be had or used is left out with a sentence; the others go on. With a cache, outcomes that are
    there are taken from it, so that an interrupted run goes on at its task. Of several variants each has a folder of its own
    in the plan's output, which itself gets one report of them all.
    """
    done: dict[Variant, dict[str, Report]] = {variant: {} for variant in plan.variants}
    failed: dict[str, DataError] = {}
    for layers, variants in groupby(plan.variants, key=lambda variant: variant.layers):
        opened, alike = _open(plan, layers), list(variants)
        for variant in alike:
            _narrowed(opened, variant)  # a dim that the model has not is named before anything is embedded
        for variant in alike:
            results: dict[str, Mapping[str, Any]] = {}
            for task in plan.tasks:
                try:
                    outcome = _kept(plan, task, variant, _narrowed(opened, variant), progress)
                except DataError as error:
                    failed[_free(f"{task.name} {variant.label}".strip(), task, failed)] = error
                    continue
                for name, report in outcome.reports.items():
                    if none := [metric for metric, score in report.scores.items() if not math.isfinite(score)]:
                        logger.warning(
                            "%s: %s is no number; texts or scores that are all alike have none.", name, ", ".join(none)
                        )
                    done[variant][_free(name, task, done[variant])] = report
                results.update(outcome.results)
                _write(plan, done, variant, results)
    named = {f"{name} {one.label}".strip(): report for one, some in done.items() for name, report in some.items()}
    return Evaluation(named, failed)


def _write(
    plan: Plan, done: Mapping[Variant, dict[str, Report]], variant: Variant, results: Mapping[str, Mapping[str, Any]]
) -> None:
    if len(plan.variants) == 1:
        write_reports(plan.output, done[variant], results, plan.command)
        return
    write_reports(plan.output / variant.folder, done[variant], results, plan.command)
    write_grid(plan.output, {one: reports for one, reports in done.items() if reports}, plan.command)


def _open(plan: Plan, layers: int | None) -> System:
    """The model with so many layers, or the index."""
    if isinstance(plan.index, Path):
        index = open_index(plan.index, prompt_name=plan.query_prompt, **plan.model)
        return System(_caching(plan, index.encoder()), index, timed=index.encoder())
    chosen: dict[str, Any] = {} if layers is None else {"layers": layers}
    if plan.query_prompt is not None:
        chosen["prompt_names"] = {"query": plan.query_prompt}
    if plan.calibrate is not None:
        texts = (document.full_text for document in read_corpus(plan.calibrate))
        chosen.update(profile="fast", calibrate=texts)
    encoder = load(**plan.model, **chosen)
    return System(_caching(plan, encoder), plan.index, plan.cache, encoder)


def _narrowed(system: System, variant: Variant) -> System:
    """The system with the dim and the precision of a variant, for one task."""
    if variant.dim is None and variant.precision == "float32":
        return system
    return replace(system, encoder=Narrowed(system.encoder, variant.dim, variant.precision))


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
        data = {"split": task.split, "sha256": data_hashes(task), "about": asdict(task.about)}
        scoring = {"metrics": list(task.metrics), "ignore_identical_ids": task.ignore_identical_ids}
        return {"name": task.name, "type": "retrieval", **data, **scoring}
    if isinstance(task, LocalTask):
        own = {"data": dict(task.data), "about": asdict(task.about)}
        return {"name": task.name, "type": task.type, **own, **identity(task.task)}
    return identity(task.task)


def _outcome(task: Task, system: System, progress: bool) -> Outcome:
    """The one place where a task is evaluated."""
    if isinstance(task, Retrieval):
        return Outcome({task.name: _described(task.about, _retrieval(task, system, progress))})
    if isinstance(system.through, Index):
        check_searched([task])
    model = (
        MtebModel(system.encoder)
        if system.through is None
        else MtebIndex(system.encoder, system.through, system.scratch)
    )
    context = {"data": dict(task.data), "type": task.type} if isinstance(task, LocalTask) else {}
    measured = evaluate_mteb(task.task, model, context, progress=progress)
    reports = {name: _with_cost(report, task, system) for name, report in measured.reports.items()}
    if isinstance(task, LocalTask):
        (report,) = reports.values()
        reports = {task.name: _described(task.about, report)}
    return Outcome(reports, result_files(measured.results, model))


def _with_cost(report: Report, task: Task, system: System, index: Index | None = None) -> Report:
    """The report with what its answers cost, and on which machine."""
    documents, queries, count = _sample(task, report)
    if system.timed is None or not documents:
        return report
    if task.name not in system.times:
        system.times[task.name] = Encoding.of(system.timed, documents, queries)
    encoder = system.encoder
    size = encoder.bytes_per_row if isinstance(encoder, Narrowed) else 4 * encoder.dim
    if index is not None:
        searching, size = index_search(index, queries), round(index.bytes_on_disk() / max(1, len(index)))
    else:
        searching = exact_search(count, encoder.dim, size, len(queries)) if count else Searching()
    found = costs(system.times[task.name], searching, size, report.context.get("seconds"))
    return replace(report, cost=found, context={**report.context, "machine": machine()})


def _sample(task: Task, report: Report) -> tuple[list[str], list[str], int]:
    """Some documents, some queries, and how many documents are searched; 0 where none are."""
    if isinstance(task, Retrieval):
        corpus = read_corpus(task.path)
        documents = [document.full_text for document in islice(corpus, SAMPLE)]
        return documents, list(islice(task.queries.values(), SAMPLE)), len(documents) + sum(1 for _ in corpus)
    if isinstance(task, LocalTask):
        names = ("text", "sentence1", "query")
        texts = [str(row[name]) for row in task.rows[:SAMPLE] for name in names if isinstance(row.get(name), str)]
        return texts, texts, 0
    texts = [text.split(" | ")[0] for text in islice(report.texts.values(), SAMPLE)]
    return texts, texts, 0


def _described(about: TaskFile, report: Report) -> Report:
    """The report, with what task.yaml adds to it."""
    if about.metric is not None and about.metric not in report.scores:
        raise DataError(f"task.yaml names the metric {about.metric!r}; this task has {', '.join(report.scores)}.")
    data = {**report.context["data"], **({"licence": about.licence} if about.licence else {})}
    return replace(report, main=about.metric or report.main, context={**report.context, "data": data})


def check_searched(tasks: Sequence[Task]) -> None:
    """Raises UsageError for a task that no single index can be searched for: one without a corpus."""
    for task in tasks:
        if not (isinstance(task, Retrieval) or (isinstance(task, HubTask) and reads_corpus(task.task))):
            raise UsageError(f"{task.name} searches no corpus; an index is evaluated on one, other tasks take a model.")


def _retrieval(task: Retrieval, system: System, progress: bool) -> Report:
    if not isinstance(system.through, IndexRecipe):
        report = evaluate_retrieval(task, system.through or system.encoder, progress=progress)
        return _with_cost(report, task, system, system.through)
    if system.scratch is not None:
        make_folder(system.scratch)
    with (
        tempfile.TemporaryDirectory(dir=system.scratch) as folder,
        build_index(task.path, Path(folder) / "index", model=system.encoder, **vars(system.through)) as index,
    ):
        return _with_cost(evaluate_retrieval(task, index, progress=progress), task, system, index)


def _free(name: str, task: Task, taken: Mapping[str, Any]) -> str:
    """A name that no other report has: where two tasks share theirs, the second is called by its path."""
    if name not in taken:
        return name
    return str(task.path) if isinstance(task, (Retrieval, LocalTask)) else f"mteb/{name}"


def read_tasks(path: Path, split: str | None = None, type_asked: str | None = None) -> list[Task]:
    """The tasks of a file or folder: a BEIR folder, a folder of such, or what `local_tasks.py` describes.

    split, type_asked: None is what task.yaml says, else "test" and what the files tell. Raises IntegrityError for files that are
    not those of task.yaml, and what the readers raise.
    """
    about = read_task_file(path)
    tasks = _read(path, split or about.split or "test", type_asked or about.type)
    described: list[Task] = []
    for task in tasks:
        about.check_hashes(task.data["sha256"] if isinstance(task, LocalTask) else data_hashes(task), path)
        if isinstance(task, Retrieval) and about.metric is not None:
            task = replace(task, metrics=tuple(dict.fromkeys([about.metric, *task.metrics])))
        _, *subset = task.name.split("/", 1)
        described.append(replace(task, name="/".join([about.name or task.name.split("/")[0], *subset]), about=about))
    return described


def _read(path: Path, split: str, kind: str | None) -> Sequence[Retrieval | LocalTask]:
    if is_beir(path) and kind in (None, "retrieval"):
        return [read_retrieval(path, split)]
    inner = [folder for folder in sorted(path.iterdir()) if is_beir(folder)] if path.is_dir() else []
    if inner and kind in (None, "retrieval"):
        name = path.resolve().name
        return [replace(read_retrieval(folder, split), name=f"{name}/{folder.name}") for folder in inner]
    return read_local(path, split, kind)


def evaluate(encoder: Encoder | Index, task: str | Path, *, split: str | None = None, progress: bool = False) -> Report:
    """Scores an encoder, or an index as it will be served, on one task.

    task: a BEIR folder (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv), a file or folder of another kind (see
    `local_tasks.py`), or the name of a task of mteb, whose data come from the hub. split: of a folder; None is what its
    task.yaml says, or "test"; of a task of mteb: one that mteb scores it on. Metrics of a BEIR folder: ndcg@10, recall@100, mrr@10 and
    map over the 100 best, with 95 % intervals over queries.
    Raises UsageError for a task that is not there, DataError for data that cannot be scored, ModelMismatch where an
    index's model is not the one that made its rows.
    """
    found = find_task(task, split)
    system = System(encoder.encoder(), encoder) if isinstance(encoder, Index) else System(encoder)
    reports = _outcome(found, system, progress).reports
    if len(reports) > 1:
        raise _several(task, list(reports))
    return next(iter(reports.values()))


def evaluate_cuts(
    folder: str | Path, task: str | Path, cuts: Sequence[tuple[int | None, int | None]], *, split: str | None = None
) -> list[Report]:
    """Of a model that is cut to (layers, dim) each, None being all of them: as `evaluate` of it, with one encoding for each number of
    layers. Raises what `evaluate` and `load` raise."""
    found: dict[tuple[int | None, int | None], Report] = {}
    with tempfile.TemporaryDirectory() as rows:
        for layers in dict.fromkeys(layers for layers, _ in cuts):
            encoder = CachedEncoder(load(folder, layers=layers), Path(rows))
            for dim in (dim for other, dim in cuts if other == layers):
                found[layers, dim] = evaluate(Narrowed(encoder, dim, "float32"), task, split=split)
    return [found[cut] for cut in cuts]


def find_task(task: str | Path, split: str | None = None) -> Task:
    """What `evaluate` scores, read as far as it can be without a model; the data of a task of mteb are left where they are.

    Raises what `evaluate` raises for it.
    """
    if Path(task).exists():
        tasks: Sequence[Task] = read_tasks(Path(task), split)
    elif len(Path(task).parts) > 1 or Path(task).suffix.strip(".") in (*ENDINGS, "gz"):
        raise UsageError(f"There is no file or folder {task}; check the path, or give the name of a task of mteb.")
    else:
        tasks = find_tasks([str(task)])
    names = [one.name for one in tasks]
    if isinstance(tasks[0], HubTask):
        names = [f"{task}/{subset}" for subset in tasks[0].task.hf_subsets or [""]]
        _of_split(tasks[0], split)
    if len(names) > 1:
        raise _several(task, names)
    if isinstance(tasks[0], Retrieval):
        check_relevant(tasks[0])
    return tasks[0]


def _of_split(task: HubTask, split: str | None) -> None:
    """Has the task score this split alone. Raises UsageError for one that mteb does not score it on."""
    if split is None:
        return
    if split not in (its := list(task.task.eval_splits)):
        raise UsageError(f"split={split!r} came; mteb scores {task.name} on {', '.join(its)}: choose one of them.")
    task.task.filter_eval_splits([split])


def _several(task: str | Path, names: Sequence[str]) -> UsageError:
    return UsageError(f"{task} has {len(names)} subsets ({', '.join(names)}); run it with: embedkit eval.")


def metric_names(task: Task) -> Sequence[str]:
    """The scores that the report of a task has; of a task of mteb, those that its type may have."""
    if isinstance(task, Retrieval):
        return task.metrics
    if isinstance(task, LocalTask):
        two = task.type == "classification" and len({row["label"] for row in task.rows}) == 2
        return (*SCORES[task.type], *(["ap"] if two else []))
    return known_scores(task.task)
