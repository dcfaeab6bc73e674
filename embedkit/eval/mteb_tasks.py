"""mteb's tasks, run by mteb, reported in embedkit's metric names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from embedkit.encoder import Encoder
from embedkit.errors import DataError, MissingDependency, UsageError, is_full_disk
from embedkit.eval.mteb_model import MtebModel
from embedkit.eval.retrieval import describe_encoder
from embedkit.types import Report

NAMES = {
    "ndcg_at_10": "ndcg@10",
    "recall_at_100": "recall@100",
    "mrr_at_10": "mrr@10",
    "map_at_100": "map",
    "cosine_spearman": "spearman",
    "cosine_pearson": "pearson",
    "accuracy": "accuracy",
    "f1": "f1",
    "ap": "ap",
    "max_ap": "ap",
    "v_measure": "v_measure",
}  # mteb's -> ours


@dataclass(frozen=True)
class HubTask:
    """A task of mteb, whose data come from the hub."""

    name: str
    task: Any  # mteb's


def find_tasks(names: Sequence[str]) -> list[HubTask]:
    """Tasks by mteb's names. Raises UsageError for a name that mteb does not know."""
    if not names:
        return []
    try:
        import mteb
    except ImportError:
        raise MissingDependency(
            'mteb is not installed; from the project\'s folder, run pip install -e ".[eval]".'
        ) from None
    try:
        return [HubTask(name, mteb.get_task(name)) for name in names]
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"{error.args[0] if error.args else error}; mteb lists its tasks with: mteb available-tasks."
        ) from None


def evaluate_mteb(task: Any, encoder: Encoder, *, progress: bool = False) -> tuple[dict[str, Report], dict[str, Any]]:
    """One mteb task: reports by name ("STS22/en" where it has several subsets), and mteb's own result to write beside.

    Scores are those of the task's evaluation splits, averaged where it has several. mteb keeps no values by query, so
    there are no intervals. Raises DataError when mteb cannot get its data.
    """
    import mteb

    try:
        task.load_data()
    except Exception as error:  # datasets and the hub fail in their own ways
        if is_full_disk(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"The data of {task.metadata.name} cannot be had: {reason.rstrip('.')}; they come from the hub, check the network."
        ) from error
    result = mteb.evaluate(MtebModel(encoder), task, cache=None, show_progress_bar=progress)
    outcome = result.task_results[0]
    own = outcome.to_dict()
    return _reports(own, encoder), own


def _reports(outcome: Mapping[str, Any], encoder: Encoder) -> dict[str, Report]:
    by_subset: dict[str, list[Mapping[str, Any]]] = {}
    for rows in outcome["scores"].values():
        for row in rows:
            by_subset.setdefault(row["hf_subset"], []).append(row)
    context = {
        **describe_encoder(encoder),
        "data": {
            "name": outcome["task_name"],
            "revision": outcome["dataset_revision"],
            "splits": list(outcome["scores"]),
        },
        "mteb": outcome["mteb_version"],
        "seconds": outcome.get("evaluation_time"),
    }
    name = outcome["task_name"]
    return {
        name if len(by_subset) == 1 else f"{name}/{subset}": Report(_mean_scores(rows), {}, {}, context)
        for subset, rows in by_subset.items()
    }


def _mean_scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {
        ours: sum(float(row[theirs]) for row in rows) / len(rows)
        for theirs, ours in NAMES.items()
        if all(theirs in row for row in rows)
    }
