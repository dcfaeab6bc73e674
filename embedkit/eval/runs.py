"""What other systems found, as TREC runs, scored as embedkit's own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from embedkit.corpus.beir import find, qrels_of, read_queries
from embedkit.corpus.formats import decoded_lines, finite_number, open_bytes
from embedkit.errors import DataError, UsageError
from embedkit.eval.metrics import METRICS, Run, without_themselves
from embedkit.eval.retrieval import Retrieval, judged_of, score_run
from embedkit.eval.task_file import read_task_file
from embedkit.storage import file_record
from embedkit.types import Report
from embedkit.version import __version__

logger = logging.getLogger(__name__)
COLUMNS = "query, Q0, document, rank, score, tag"


def read_run(path: Path) -> Run:
    """A TREC run, plain or .gz: six columns with white space between. The scores count and not the ranks, as in trec_eval.

    Raises UsageError for a file that is not there; DataError for other columns, a score that is no finite number, a document
    that stands twice under one query, or no line at all.
    """
    run: Run = {}
    if not path.is_file():
        raise UsageError(f"{path} is not there; expected a TREC run: {COLUMNS}.")
    with open_bytes(path) as stream:
        for number, line in decoded_lines(stream, str(path)):
            if not (columns := line.split()):
                continue
            if len(columns) != 6:
                raise DataError(f"{path}, line {number}: {len(columns)} columns came; a TREC run has six: {COLUMNS}.")
            query, _, document, _, score, _ = columns
            if (value := finite_number(score)) is None:
                raise DataError(
                    f"{path}, line {number}: the score is {score!r}; expected a finite number in the fifth column."
                )
            found = run.setdefault(query, {})
            if document in found:
                raise DataError(
                    f"{path}, line {number}: document {document!r} came before for query {query!r}; leave one of them."
                )
            found[document] = value
    if not run:
        raise DataError(f"{path} is empty; expected a TREC run: {COLUMNS}.")
    return run


def read_judged(path: Path, metrics: Sequence[str] = METRICS) -> Retrieval:
    """What runs are scored against: a qrels file, a TSV with header or TREC's four columns. In a BEIR folder (qrels/SPLIT.tsv) the
    task has the folder's name and its texts, and is the one that `eval --data` scores."""
    if not path.is_file():
        raise UsageError(
            f"{path} is not there; expected a file of judgements: a TSV with a header, or TREC's four columns."
        )
    split, folder = path.name.split(".")[0], path.resolve().parent.parent
    try:
        texts = read_queries(find(folder, "queries.jsonl")) if path.resolve().parent.name == "qrels" else None
    except UsageError:  # no queries there
        texts = None
    qrels = qrels_of(path)
    if texts is None:
        return Retrieval(split, path, split, dict.fromkeys(qrels, ""), qrels, tuple(metrics))
    queries, qrels = judged_of(texts, qrels, path)
    about = read_task_file(folder)
    names = dict.fromkeys([*([about.metric] if about.metric else []), *metrics])  # as `eval --data` puts it first
    return Retrieval(about.name or folder.name, folder, split, queries, qrels, tuple(names), about)


def evaluate_run(path: Path, judged: Retrieval, qrels: Path) -> Report:
    """One run. Raises DataError where none of its queries is judged."""
    run = read_run(path)
    if not run.keys() & judged.qrels.keys():
        raise DataError(
            f"No query of {path} is judged in {qrels}: {next(iter(run))!r} there, {next(iter(judged.qrels))!r} here; "
            f"give the judgements of the same queries."
        )
    if missing := len(judged.qrels.keys() - run.keys()):
        logger.warning("%s: %d of %d judged queries are not in it and score 0.", path, missing, len(judged.qrels))
    if unjudged := len(run.keys() - judged.qrels.keys()):
        logger.warning("%s: %d queries are not judged and are left out.", path, unjudged)
    context = {
        "run": {"name": path.name, "sha256": file_record(path)["sha256"]},
        "data": {"name": judged.name, "split": judged.split, "sha256": {qrels.name: file_record(qrels)["sha256"]}},
        "embedkit": __version__,
    }
    return score_run(judged, without_themselves(run) if judged.ignore_identical_ids else run, context)
