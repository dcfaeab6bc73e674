"""A local task run by mteb: its protocol and its scores, with intervals over what was scored one by one."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedkit.encoder import Encoder
from embedkit.eval.failures import worst_pairings, worst_queries
from embedkit.eval.local_tasks import LocalTask
from embedkit.eval.metrics import retrieval_scores
from embedkit.eval.mteb_model import MtebModel
from embedkit.eval.retrieval import describe_encoder
from embedkit.statistics import bootstrap_interval, bootstrap_statistic, spearman
from embedkit.types import Report

Scores = Mapping[str, Any]  # of mteb, by its names
RERANKED = ("map", "ndcg@10", "mrr@10", "recall@100")  # every candidate is judged


def evaluate_local(task: LocalTask, encoder: Encoder) -> tuple[Report, dict[str, Any]]:
    """One local task: the report, and mteb's own result to write beside."""
    import datasets
    import mteb

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:  # mteb gives its predictions as a file only
        result = mteb.evaluate(
            MtebModel(encoder),
            task.task,
            cache=None,
            prediction_folder=folder,
            show_progress_bar=False,
            co2_tracker=False,
        )
        predicted = json.loads(next(Path(folder).glob("*.json")).read_text(encoding="utf-8"))
    own = result.task_results[0].to_dict()
    (split,) = own["scores"]
    parts = _READERS[task.type](task, own["scores"][split][0], predicted["default"][split])
    report = Report(
        **parts,
        context={
            **describe_encoder(encoder),
            "data": dict(task.data),
            "type": task.type,
            "mteb": own["mteb_version"],
            "seconds": own.get("evaluation_time"),
        },
    )
    return report, own


# --- what each type gives: the fields of a Report -------------------------------------------------------------------------


def _sts(task: LocalTask, scores: Scores, predicted: Any) -> dict[str, Any]:
    truth, found = [float(row["score"]) for row in task.rows], predicted["cosine_scores"]
    return {
        "scores": {"spearman": float(scores["cosine_spearman"]), "pearson": float(scores["cosine_pearson"])},
        "intervals": {
            "spearman": bootstrap_statistic(spearman, truth, found),
            "pearson": bootstrap_statistic(_pearson, truth, found),
        },
        "per_query": {},
        "main": "spearman",
        "unit": "pair",
        "predictions": _numbered(zip(truth, found, strict=True)),
        "texts": _pair_texts(task.rows),
    }


def _pearson(one: Any, other: Any) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):  # of constants there is none
        return float(np.corrcoef(one, other)[0, 1])


def _pair_classification(task: LocalTask, scores: Scores, predicted: Any) -> dict[str, Any]:
    from sklearn.metrics import average_precision_score

    truth, found = [float(row["label"]) for row in task.rows], predicted["cosine_scores"]

    def precision(labels: Any, similarities: Any) -> float:
        return float(average_precision_score(labels, similarities)) if labels.any() else float("nan")

    return {
        "scores": {ours: float(scores[f"cosine_{ours}"]) for ours in ("ap", "accuracy", "f1")},
        "intervals": {"ap": bootstrap_statistic(precision, truth, found)},
        "per_query": {},
        "main": "ap",
        "unit": "pair",
        "predictions": _numbered(zip(truth, found, strict=True)),
        "texts": _pair_texts(task.rows),
    }


def _classification(_: LocalTask, scores: Scores, __: Any) -> dict[str, Any]:
    rounds = scores["scores_per_experiment"]
    return _repeated({name: [float(one[name]) for one in rounds] for name in ("accuracy", "f1")}, "accuracy")


def _clustering(_: LocalTask, scores: Scores, __: Any) -> dict[str, Any]:
    rounds = [value for level in scores["v_measures"].values() for value in level]
    return _repeated({"v_measure": [float(value) for value in rounds]}, "v_measure")


def _repeated(values: Mapping[str, Sequence[float]], main: str) -> dict[str, Any]:
    """Of a protocol that is repeated: intervals over its repetitions, on the same test items."""
    return {**_means({name: _numbered(some) for name, some in values.items()}), "main": main, "unit": "repetition"}


def _bitext(task: LocalTask, scores: Scores, predicted: Any) -> dict[str, Any]:
    from sklearn.metrics import f1_score

    found = [one["corpus_id"] for one in predicted["sentence1-sentence2"]]
    gold = list(range(len(found)))
    right = [float(a == b) for a, b in zip(gold, found, strict=True)]
    values = {
        "f1": f1_score(gold, found, labels=gold, average=None, zero_division=0).tolist(),  # each sentence is a class
        "accuracy": right,
    }
    return {
        **_means({name: _numbered(some) for name, some in values.items()}),
        "scores": {name: float(scores[name]) for name in values},
        "main": "f1",
        "unit": "pair",
        "texts": _pair_texts(task.rows),
        "failures": worst_pairings(task.rows, predicted["sentence1-sentence2"]),
    }


def _reranking(task: LocalTask, _: Scores, predicted: Any) -> dict[str, Any]:
    (part,) = task.task.dataset["default"].values()
    queries = {f"q{number}": str(row["query"]) for number, row in enumerate(task.rows)}
    values = retrieval_scores(part["relevant_docs"], predicted, RERANKED)
    texts = dict(zip(part["corpus"]["id"], part["corpus"]["text"], strict=True))
    return {
        **_means(values),
        "main": "map",
        "texts": {query: queries[query] for query in values["map"]},
        "failures": worst_queries(values["map"], part["relevant_docs"], predicted, queries, lambda _: texts),
    }


_READERS: dict[str, Callable[[LocalTask, Scores, Any], dict[str, Any]]] = {
    "sts": _sts,
    "pair-classification": _pair_classification,
    "classification": _classification,
    "clustering": _clustering,
    "bitext": _bitext,
    "reranking": _reranking,
}


def _means(values: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    return {
        "scores": {name: float(np.mean(list(some.values()))) for name, some in values.items()},
        "intervals": {name: bootstrap_interval(list(some.values())) for name, some in values.items()},
        "per_query": {name: dict(some) for name, some in values.items()},
    }


def _numbered(values: Any) -> dict[str, Any]:
    return {str(number): value for number, value in enumerate(values)}


def _pair_texts(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return _numbered(f"{row['sentence1']} | {row['sentence2']}" for row in rows)
