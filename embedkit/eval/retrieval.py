"""Retrieval on a BEIR folder, exact or through an index."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedkit.corpus import read_corpus
from embedkit.corpus.beir import Qrels, find, read_qrels, read_queries
from embedkit.encoder import Encoder
from embedkit.engine import embed_documents
from embedkit.errors import DataError, UsageError
from embedkit.eval.metrics import DEPTH, Run, retrieval_scores
from embedkit.index import Index
from embedkit.index.fine import exact_shortlist
from embedkit.statistics import bootstrap_interval
from embedkit.storage import file_record
from embedkit.types import Document, Report, Vectors
from embedkit.vectors import unit_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retrieval:
    """One split of a BEIR folder. queries: only those that are judged in it."""

    name: str
    folder: Path
    split: str
    queries: dict[str, str]
    qrels: Qrels


def read_retrieval(folder: Path, split: str) -> Retrieval:
    """Raises UsageError for a folder of another kind or a split that is not there, DataError for judgements of no query."""
    corpus, queries_file = find(folder, "corpus.jsonl"), find(folder, "queries.jsonl")
    qrels = read_qrels(folder, split)
    texts = read_queries(queries_file)
    unknown = [query for query in qrels if query not in texts]
    if len(unknown) == len(qrels):
        raise DataError(
            f"No query judged in {folder}/qrels/{split}.tsv is in {queries_file}; expected the same ids in both."
        )
    if unknown:
        logger.warning("%s: %d judged queries are not in %s and are left out.", folder, len(unknown), queries_file.name)
    known = {query: grades for query, grades in qrels.items() if query in texts}
    return Retrieval(corpus.parent.resolve().name, folder, split, {query: texts[query] for query in known}, known)


def evaluate_retrieval(
    task: Retrieval, encoder: Encoder | None, index: Index | None, *, progress: bool = False
) -> Report:
    """encoder searches exactly, over the folder's corpus; index searches as it will be served, by the model it names."""
    start = time.perf_counter()
    if index is not None:
        run, first = _run_index(task, index)
        made: dict[str, Any] = {"index": index.info()}
        fingerprint = index.manifest.source.fingerprint
    elif encoder is not None:
        run, first = _run_exact(task, encoder, progress)
        made = {
            "model": encoder.settings.get("model"),
            "settings": dict(encoder.settings),
            "compute": dict(encoder.compute),
        }
        fingerprint = encoder.fingerprint
    else:
        raise UsageError("Neither a model nor an index came; give one of them.")
    per_query = retrieval_scores(task.qrels, run)
    if not per_query["ndcg@10"]:
        raise DataError(f"No query of {task.folder} ({task.split}) has a relevant document; nothing can be scored.")
    return Report(
        scores={name: float(np.mean(list(values.values()))) for name, values in per_query.items()},
        intervals={name: bootstrap_interval(list(values.values())) for name, values in per_query.items()},
        per_query=per_query,
        context={
            **made,
            "fingerprint": fingerprint,
            "data": {"name": task.name, "split": task.split, "sha256": _data_hashes(task)},
            "depth": DEPTH,
            "first query": first[0],
            "first document": first[1],
            "seconds": round(time.perf_counter() - start, 2),
        },
    )


def _data_hashes(task: Retrieval) -> Mapping[str, str]:
    files = [
        find(task.folder, "corpus.jsonl"),
        find(task.folder, "queries.jsonl"),
        find(task.folder / "qrels", f"{task.split}.tsv"),
    ]
    return {path.name: file_record(path)["sha256"] for path in files}


def _run_index(task: Retrieval, index: Index) -> tuple[Run, tuple[str, str | None]]:
    ids, texts = list(task.queries), list(task.queries.values())
    hits = index.search(texts, k=DEPTH, documents=False)
    run = {query: _scored(found, scores) for query, found, scores in zip(ids, hits.ids, hits.scores, strict=True)}
    corpus_ids = {document for grades in task.qrels.values() for document in grades}
    if not corpus_ids & {document for found in hits.ids for document in found}:
        logger.warning(
            "No judged document of %s was found through %s: was it built from this corpus?", task.name, index.path
        )
    return run, (texts[0], None)


def _run_exact(task: Retrieval, encoder: Encoder, progress: bool) -> tuple[Run, tuple[str, str | None]]:
    ids: list[str] = []
    blocks = []
    first: Document | None = None
    for documents, rows in embed_documents(read_corpus(task.folder), encoder, progress=progress):
        first = first or documents[0]
        ids += [document.id for document in documents]
        blocks.append(rows)
    rows, texts = np.concatenate(blocks), list(task.queries.values())
    queries = encoder.encode(texts, kind="query")
    if encoder.similarity == "cosine":
        rows, queries = unit_rows(rows), unit_rows(queries)
    elif encoder.similarity != "dot":
        raise UsageError(f"The model compares by {encoder.similarity}; retrieval is evaluated by cosine or dot.")
    candidates, scores = exact_shortlist(queries, rows, DEPTH)
    run = {}
    for query, found, score in zip(task.queries, candidates, scores, strict=True):
        real = found >= 0
        run[query] = _scored([ids[row] for row in found[real]], score[real])
    prompts = getattr(encoder, "prompts", {"query": "", "document": ""})
    return run, (prompts["query"] + texts[0], prompts["document"] + first.full_text if first else None)


def _scored(ids: Sequence[str], scores: Vectors) -> dict[str, float]:
    return {document: float(score) for document, score in zip(ids, scores, strict=False)}
