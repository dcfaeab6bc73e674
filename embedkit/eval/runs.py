"""What other systems found, as TREC runs, scored as embedkit's own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from embedkit.corpus.beir import find, qrels_of, read_queries
from embedkit.corpus.formats import decoded_lines, finite_number, open_bytes
from embedkit.errors import DataError, UsageError
from embedkit.eval.metrics import METRICS, Run, without_themselves
from embedkit.eval.retrieval import Retrieval, judged_of, score_run
from embedkit.eval.task_file import read_task_file
from embedkit.limits import shown
from embedkit.storage import file_record
from embedkit.types import Report
from embedkit.version import __version__

logger = logging.getLogger(__name__)
COLUMNS = "query, Q0, document, rank, score, tag"
LARGEST = float(np.finfo(np.float32).max)  # of the scores that trec_eval keeps


def read_run(path: Path) -> Run:
    """A TREC run, plain or .gz: six columns with white space between. The scores count and not the ranks, as in trec_eval;
    warnings say where the two disagree, as they do where distances stand in place of scores, and where a second tag comes.

    Raises UsageError for a file that is not there; DataError for other columns, a score that is no finite number in float32, a
    rank that is no whole number, a document that stands twice under one query, or no line at all.
    """
    run: Run = {}
    if not path.is_file():
        raise UsageError(f"{path} is not there; expected a TREC run: {COLUMNS}.")
    last, disagree, tags = ("", 0.0, 0.0), {}, {}  # type: tuple[str, float, float], dict[str, int], dict[str, int]
    with open_bytes(path) as stream:
        for number, line in decoded_lines(stream, str(path)):
            if not (columns := line.split()):
                continue
            query, document, rank, score, tag = _run_line(columns, path, number)
            found = run.setdefault(query, {})
            if document in found:
                raise DataError(
                    f"{path}, line {number}: document {document!r} came before for query {query!r}; leave one of them."
                )
            tags.setdefault(tag, number)
            if last[0] == query and (rank - last[1]) * (score - last[2]) > 0:
                disagree.setdefault(query, number)
            found[document], last = score, (query, rank, score)
    if not run:
        raise DataError(f"{path} is empty; expected a TREC run: {COLUMNS}.")
    if len(tags) > 1:
        tag, number = list(tags.items())[1]
        logger.warning(
            "%s, line %d: a second tag, %s: are these several systems in one file?", path, number, shown(tag)
        )
    if disagree:
        logger.warning(
            "%s, line %d: of %d of %d queries the ranks are not in the order of the scores, which count; are these distances?",
            path, next(iter(disagree.values())), len(disagree), len(run),
        )  # fmt: skip
    return run


def _run_line(columns: Sequence[str], path: Path, number: int) -> tuple[str, str, float, float, str]:
    """Query, document, rank, score and tag."""
    if len(columns) != 6:
        raise DataError(f"{path}, line {number}: {len(columns)} columns came; a TREC run has six: {COLUMNS}.")
    query, _, document, rank, score, tag = columns
    value, place = finite_number(score), finite_number(rank)
    if value is None or abs(value) > LARGEST:
        raise DataError(
            f"{path}, line {number}: the score is {shown(score)}; expected a finite number of float32 in the fifth column."
        )
    if place is None or not place.is_integer():
        raise DataError(
            f"{path}, line {number}: the rank is {shown(rank)}; expected a whole number in the fourth column."
        )
    return query, document, place, value, tag


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
    answered = {query for query, grades in judged.qrels.items() if max(grades.values()) > 0}
    if missing := len(answered - run.keys()):
        logger.warning("%s: %d of %d judged queries are not in it and score 0.", path, missing, len(answered))
    if unjudged := len(run.keys() - judged.qrels.keys()):
        logger.warning("%s: %d queries are not judged and are left out.", path, unjudged)
    split = [one for grades in judged.qrels.values() for one in grades if len(one.split()) > 1]
    if split:
        logger.warning("%s: %d judged ids (%r) hold white space, which no run can hold.", qrels, len(split), split[0])
    context = {
        "run": {"name": path.name, "sha256": file_record(path)["sha256"]},
        "data": {"name": judged.name, "split": judged.split, "sha256": {qrels.name: file_record(qrels)["sha256"]}},
        "embedkit": __version__,
    }
    return score_run(judged, without_themselves(run) if judged.ignore_identical_ids else run, context)
