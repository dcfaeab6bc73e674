"""Retrieval on a BEIR folder, exact or through an index."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedkit.corpus import read_corpus
from embedkit.corpus.beir import Qrels, find, read_qrels, read_queries
from embedkit.encoder import Encoder
from embedkit.engine import embed_documents
from embedkit.errors import DataError, UsageError
from embedkit.eval.exact import exact_shortlist
from embedkit.eval.failures import worst_queries
from embedkit.eval.local_tasks import is_beir
from embedkit.eval.metrics import METRICS, Run, depth_of, retrieval_scores, trec_eval, without_themselves
from embedkit.eval.serving import as_run
from embedkit.eval.task_file import TaskFile
from embedkit.eval.ties import tie_sensitivity
from embedkit.index import Index
from embedkit.statistics import bootstrap_interval
from embedkit.storage import file_record
from embedkit.types import Hits, Kind, Report
from embedkit.vectors import unit_rows
from embedkit.version import __version__

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retrieval:
    """One split of a BEIR folder. queries: only those that are judged in it."""

    name: str
    path: Path  # of the folder
    split: str
    queries: dict[str, str]
    qrels: Qrels
    metrics: tuple[str, ...] = METRICS  # the first one counts
    about: TaskFile = TaskFile()  # noqa: RUF009 (frozen)

    @property
    def ignore_identical_ids(self) -> bool:
        return self.about.ignore_identical_ids


def read_retrieval(folder: Path, split: str) -> Retrieval:
    """Raises UsageError for a folder of another kind or a split that is not there, DataError for judgements of no query."""
    corpus, queries_file = find(folder, "corpus.jsonl"), find(folder, "queries.jsonl")
    queries, qrels = judged_of(read_queries(queries_file), read_qrels(folder, split), folder / "qrels" / f"{split}.tsv")
    return Retrieval(corpus.parent.resolve().name, folder, split, queries, qrels)


def judged_of(texts: Mapping[str, str], qrels: Qrels, path: Path) -> tuple[dict[str, str], Qrels]:
    """The queries that are judged, and the judgements of queries that are there. path: of the judgements.

    Raises DataError where these are none.
    """
    known = {query: grades for query, grades in qrels.items() if query in texts}
    if not known:
        raise DataError(f"No query judged in {path} is in queries.jsonl; expected the same ids in both.")
    if unknown := len(qrels) - len(known):
        logger.warning("%s: %d judged queries are not in queries.jsonl and are left out.", path, unknown)
    return {query: texts[query] for query in known}, known


def evaluate_retrieval(task: Retrieval, searched: Encoder | Index, *, progress: bool = False) -> Report:
    """searched: an encoder, which searches exactly over the folder's corpus; or an index, which searches as it is served.

    Raises DataError where no query has anything relevant, UsageError for a model that compares otherwise than by cosine
    or dot, ModelMismatch where an index opens another model than made its rows.
    """
    trec_eval()
    check_relevant(task)
    start, depth = time.perf_counter(), depth_of(task.metrics)
    encoder = searched.encoder() if isinstance(searched, Index) else searched
    wanted = depth + task.ignore_identical_ids  # one more, for the one that is taken out
    if isinstance(searched, Index):
        run = _run_index(task, searched, wanted)
    else:
        run = _run_exact(task, searched, wanted, progress)
    if task.ignore_identical_ids:
        run = without_themselves(run, depth)
    context = {
        **describe_encoder(encoder),
        "search": searched.info() if isinstance(searched, Index) else "exact",
        "data": {"name": task.name, "split": task.split, "sha256": data_hashes(task)},
        "depth": depth,
        "first_query": _query_prompt(searched, encoder) + next(iter(task.queries.values())),
        "first_document": _prompts(encoder).get("document", "") + next(read_corpus(task.path)).full_text,
    }
    report = score_run(task, run, context)
    report.context["seconds"] = round(time.perf_counter() - start, 2)
    return report


def score_run(task: Retrieval, run: Run, context: Mapping[str, Any]) -> Report:
    """The report of what was found, by whomever. context: goes into the report, with what ties there are that move a score.

    Raises DataError where no query has anything relevant.
    """
    check_relevant(task)
    if empty := sum(max(grades.values()) <= 0 for grades in task.qrels.values()):
        logger.warning(
            "%s: %d of %d judged queries have no relevant document and are left out.", task.name, empty, len(task.qrels)
        )
    per_query = retrieval_scores(task.qrels, run, task.metrics)
    ties = tie_sensitivity(task.qrels, run, task.metrics)
    own = {"ignore_identical_ids": task.ignore_identical_ids} if task.ignore_identical_ids else {}
    return Report(
        scores={name: float(np.mean(list(values.values()))) for name, values in per_query.items()},
        intervals={name: bootstrap_interval(list(values.values())) for name, values in per_query.items()},
        per_query=per_query,
        main=task.metrics[0],
        texts=task.queries,
        failures=worst_queries(
            per_query[task.metrics[0]], task.qrels, run, task.queries, lambda ids: _texts(task, ids)
        ),
        context={**context, **own, **({"ties": ties} if ties else {})},
    )


def _texts(task: Retrieval, ids: Collection[str]) -> dict[str, str]:
    """Of a run of another system there may be judgements without a corpus."""
    if not is_beir(task.path):
        return {}
    return {document.id: document.full_text for document in read_corpus(task.path) if document.id in ids}


def check_relevant(task: Retrieval) -> None:
    """Raises DataError where no query has anything relevant."""
    if not any(grade > 0 for grades in task.qrels.values() for grade in grades.values()):
        raise DataError(f"No query of {task.path} ({task.split}) has a relevant document; nothing can be scored.")


def describe_encoder(encoder: Encoder) -> dict[str, Any]:
    """What a report says of the model."""
    return {
        "model": encoder.settings.get("model"),
        "fingerprint": encoder.fingerprint,
        "settings": dict(encoder.settings),
        "compute": dict(encoder.compute),
        "embedkit": __version__,
    }


def _prompts(encoder: Encoder) -> Mapping[Kind, str]:
    prompts: Mapping[Kind, str] = getattr(encoder, "prompts", {})
    return prompts


def _query_prompt(searched: Encoder | Index, encoder: Encoder) -> str:
    name = searched.query_options.get("prompt_name") if isinstance(searched, Index) else None
    stored: Mapping[str, str] = getattr(encoder, "stored_prompts", {})
    return _prompts(encoder).get("query", "") if name is None else stored[name]


def data_hashes(task: Retrieval) -> Mapping[str, str]:
    files = [
        find(task.path, "corpus.jsonl"),
        find(task.path, "queries.jsonl"),
        find(task.path / "qrels", f"{task.split}.tsv"),
    ]
    return {path.name: file_record(path)["sha256"] for path in files}


def _run_index(task: Retrieval, index: Index, depth: int) -> Run:
    hits = index.search(list(task.queries.values()), k=depth, documents=False)
    judged = {document for grades in task.qrels.values() for document in grades}
    if not judged & {document for found in hits.ids for document in found}:
        logger.warning("No judged document of %s was found through %s: is it of this corpus?", task.name, index.path)
    return as_run(list(task.queries), hits)


def _run_exact(task: Retrieval, encoder: Encoder, depth: int, progress: bool) -> Run:
    if encoder.similarity not in ("cosine", "dot"):
        raise UsageError(f"The model compares by {encoder.similarity}; retrieval is evaluated by cosine or dot.")
    ids: list[str] = []
    blocks = []
    for documents, block in embed_documents(read_corpus(task.path), encoder, progress=progress):
        ids += [document.id for document in documents]
        blocks.append(block)
    if lost := {document for grades in task.qrels.values() for document in grades} - set(ids):
        logger.warning("%s: %d judged documents (%r) are not in the corpus.", task.name, len(lost), min(lost))
    rows, queries = np.concatenate(blocks), encoder.encode(list(task.queries.values()), kind="query")
    if encoder.similarity == "cosine":
        rows, queries = unit_rows(rows), unit_rows(queries)
    candidates, scores = exact_shortlist(queries, rows, depth)
    found = [[ids[row] for row in best if row >= 0] for best in candidates]
    return as_run(list(task.queries), Hits(found, scores, None))
