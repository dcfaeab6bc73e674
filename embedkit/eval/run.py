"""One call for every kind of task."""

from __future__ import annotations

from pathlib import Path

from embedkit.encoder import Encoder
from embedkit.errors import UsageError
from embedkit.eval.local_scores import evaluate_local
from embedkit.eval.local_tasks import is_beir, read_local
from embedkit.eval.mteb_tasks import evaluate_mteb, find_tasks
from embedkit.eval.retrieval import evaluate_retrieval, read_retrieval
from embedkit.index import Index
from embedkit.types import Report


def evaluate(encoder: Encoder | Index, task: str | Path, *, split: str = "test", progress: bool = False) -> Report:
    """Scores an encoder, or an index as it will be served, on one task.

    task: a BEIR folder (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv), a file or folder of another kind (see
    `local_tasks.py`), or the name of a task of mteb, whose data come from the hub. split: of a folder. Metrics of a BEIR
    folder: ndcg@10, recall@100, mrr@10 and map over the 100 best, with 95 % intervals over queries.
    Raises UsageError for a task that is not there, DataError for data that cannot be scored, ModelMismatch where an
    index's model is not the one that made its rows.
    """
    if is_beir(Path(task)):
        return evaluate_retrieval(read_retrieval(Path(task), split), encoder, progress=progress)
    if isinstance(encoder, Index):
        raise UsageError(f"{task} is no BEIR folder; an index is evaluated on one, other tasks take a model.")
    if Path(task).exists():
        reports = {local.name: evaluate_local(local, encoder)[0] for local in read_local(Path(task), split)}
    else:
        reports, _ = evaluate_mteb(find_tasks([str(task)])[0], encoder, progress=progress)
    if len(reports) > 1:
        raise UsageError(f"{task} has {len(reports)} subsets ({', '.join(reports)}); run it with: embedkit eval.")
    return next(iter(reports.values()))
