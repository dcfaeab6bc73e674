"""What mteb has measured, as reports: its scores under our names, with intervals over whatever was scored one by one.

mteb's averages are taken as they are. Where the values behind them can be had (from its predictions and the task's data, or
because the protocol is repeated), the report holds these too, and the interval is over them; `unit` says what they are.
A type without a reader of its own keeps the scores alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedkit.corpus.beir import Qrels
from embedkit.eval.failures import worst_pairings, worst_queries
from embedkit.eval.metrics import DEPTH, METRICS, retrieval_scores, without_themselves
from embedkit.statistics import bootstrap_interval, bootstrap_statistic, spearman

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
    "cosine_ap": "ap",
    "v_measure": "v_measure",
}  # mteb's -> ours; any other main score keeps mteb's name
SAME = {"max_ap": "ap", "similarity_ap": "ap", "map_at_1000": "map"}  # where the values are equal
RERANKED = ("map", "ndcg@10", "mrr@10", "recall@100")  # every candidate is judged
SCORES = {  # type of a task of one's own -> what `read_scores` gives of it; a classification by two labels has "ap" as well
    "reranking": RERANKED,
    "sts": ("spearman", "pearson"),
    "pair-classification": ("ap", "accuracy", "f1"),
    "bitext": ("f1", "accuracy"),
    "classification": ("accuracy", "f1"),
    "clustering": ("v_measure",),
    "text-to-image": METRICS,
    "image-to-text": METRICS,
}
ROUNDED = 1e-4  # mteb rounds its scores of rankings to five digits
Fields = dict[str, Any]  # of a Report


@dataclass(frozen=True)
class Part:
    """One subset of one split of a task that mteb has run."""

    task: Any  # mteb's
    data: Any  # its rows, as the task holds them
    scores: Mapping[str, Any]  # by mteb's names
    predicted: Any  # what mteb saves beside; None where it saves nothing


def known_scores(task: Any) -> tuple[str, ...]:
    """The names that `read_scores` may give for a task of mteb; which of them it has is known when it was run."""
    return tuple(dict.fromkeys([task.metadata.main_score, *METRICS, *NAMES.values()]))


def read_scores(part: Part) -> Fields:
    """The fields of a Report that the scores of this part give."""
    from mteb import abstasks
    from mteb.abstasks.text.bitext_mining import AbsTaskBitextMining

    readers: list[tuple[type, Callable[[Part], Fields | None]]] = [
        (abstasks.AbsTaskRetrieval, _ranking),
        (abstasks.AbsTaskSTS, _sts),
        (abstasks.AbsTaskPairClassification, _pair_classification),
        (AbsTaskBitextMining, _bitext),
    ]
    fitting = [reader for base, reader in readers if isinstance(part.task, base)]
    found = next((fields for reader in [*fitting, _repeated] if (fields := reader(part)) is not None), None)
    return _with_main(found or {"scores": _plain(part.scores), "intervals": {}, "per_query": {}}, part)


def _with_main(fields: Fields, part: Part) -> Fields:
    """Names the task's main score: ours where it is that value, mteb's own where it is another."""
    theirs, value = part.task.metadata.main_score, float(part.scores["main_score"])
    ours = NAMES.get(theirs, SAME.get(theirs, theirs))
    if ours not in fields["scores"] or abs(fields["scores"][ours] - value) > ROUNDED:
        ours = ours if theirs in NAMES else theirs
        fields["scores"] = {**fields["scores"], ours: value}
    return {**fields, "main": ours}


def _plain(scores: Mapping[str, Any]) -> dict[str, float]:
    return {ours: float(scores[theirs]) for theirs, ours in NAMES.items() if isinstance(scores.get(theirs), float)}


# --- a reader a type; None where what it needs is not there ---------------------------------------------------------------


def _ranking(part: Part) -> Fields | None:
    if not isinstance(part.predicted, Mapping) or part.task.skip_first_result:
        return None
    candidates = part.data.get("top_ranked")
    run = {query: _best(found, None if candidates else DEPTH) for query, found in part.predicted.items()}
    if part.task.ignore_identical_ids:
        run = without_themselves(run)
    qrels = _qrels(part.data["relevant_docs"])
    values = retrieval_scores(qrels, run, RERANKED if candidates else METRICS)
    mean = float(np.mean(list(values["ndcg@10"].values()))) if values["ndcg@10"] else float("nan")
    if not abs(mean - float(part.scores["ndcg_at_10"])) < ROUNDED:
        return None  # the task scores in a way of its own
    rows = part.data["queries"]
    texts = dict(zip(rows["id"], rows["text"], strict=True)) if "text" in rows.column_names else {}
    shown = {query: str(texts[query]) for query in values["ndcg@10"] if query in texts}
    main = "map" if candidates else "ndcg@10"
    failures = worst_queries(values[main], qrels, run, shown, lambda ids: _corpus_texts(part.data["corpus"], ids))
    return {**_means(values), "texts": shown, "failures": failures}


def _corpus_texts(corpus: Any, ids: Collection[str]) -> dict[str, str]:
    if "text" not in corpus.column_names:
        return {}
    places = [place for place, one in enumerate(corpus["id"]) if one in ids]
    rows = corpus.select(places)
    titles = rows["title"] if "title" in rows.column_names else [""] * len(places)
    return {
        one: f"{title or ''} {text}".strip() for one, title, text in zip(rows["id"], titles, rows["text"], strict=True)
    }


def _best(found: Mapping[str, float], depth: int | None) -> dict[str, float]:
    return dict(sorted(found.items(), key=lambda item: (item[1], item[0]), reverse=True)[:depth])


def _qrels(judged: Mapping[str, Mapping[str, Any]]) -> Qrels:
    return {query: {one: int(grade) for one, grade in grades.items()} for query, grades in judged.items()}


def _sts(part: Part) -> Fields | None:
    truth, found = [float(score) for score in part.data["score"]], _column(part.predicted, "cosine_scores")
    if found is None or len(found) != len(truth):
        return None
    return {
        "scores": {"spearman": float(part.scores["cosine_spearman"]), "pearson": float(part.scores["cosine_pearson"])},
        "intervals": _resampled({"spearman": spearman, "pearson": _pearson}, truth, found),
        "per_query": {},
        "unit": "pair",
        "predictions": _numbered(zip(truth, found, strict=True)),
        "texts": _pair_texts(part.data, *part.task.column_names),
    }


def _resampled(
    statistics: Mapping[str, Callable[..., float]], truth: Sequence[float], found: Sequence[float]
) -> Fields:
    """Intervals of those that are a number: a correlation with constants is none."""
    columns = [np.asarray(column, dtype=np.float64) for column in (truth, found)]
    return {
        name: bootstrap_statistic(statistic, truth, found)
        for name, statistic in statistics.items()
        if np.isfinite(statistic(*columns))
    }


def _pearson(one: Any, other: Any) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):  # of constants there is none
        return float(np.corrcoef(one, other)[0, 1])


def _pair_classification(part: Part) -> Fields | None:
    from sklearn.metrics import average_precision_score

    truth, found = list(part.data[part.task.label_column_name]), _column(part.predicted, "cosine_scores")
    if found is None or len(found) != len(truth):
        return None  # an old layout: all pairs in one row

    def precision(labels: Any, similarities: Any) -> float:
        return float(average_precision_score(labels, similarities)) if labels.any() else float("nan")

    truth = [float(label) for label in truth]
    return {
        "scores": {ours: float(part.scores[f"cosine_{ours}"]) for ours in ("ap", "accuracy", "f1")},
        "intervals": _resampled({"ap": precision}, truth, found),
        "per_query": {},
        "unit": "pair",
        "predictions": _numbered(zip(truth, found, strict=True)),
        "texts": _pair_texts(part.data, part.task.input1_column_name, part.task.input2_column_name),
    }


def _bitext(part: Part) -> Fields | None:
    from sklearn.metrics import f1_score

    neighbours = _column(part.predicted, "sentence1-sentence2")
    if neighbours is None or "gold" in part.data.column_names:
        return None
    found = [one["corpus_id"] for one in neighbours]
    gold = list(range(len(found)))
    values = {
        "f1": f1_score(gold, found, labels=gold, average=None, zero_division=0).tolist(),  # each sentence is a class
        "accuracy": [float(a == b) for a, b in zip(gold, found, strict=True)],
    }
    return {
        **_means({name: _numbered(some) for name, some in values.items()}),
        "scores": {name: float(part.scores[name]) for name in values},
        "unit": "pair",
        "texts": _pair_texts(part.data, "sentence1", "sentence2"),
        "failures": worst_pairings(list(part.data["sentence1"]), list(part.data["sentence2"]), neighbours),
    }


def _repeated(part: Part) -> Fields | None:
    """Of a protocol that is repeated: intervals over its repetitions, on the same test items."""
    rounds: Any = part.scores.get("scores_per_experiment")
    if rounds:
        wanted = {**NAMES, part.task.metadata.main_score: NAMES.get(part.task.metadata.main_score)}
        values = {
            ours or theirs: _numbered(float(one[theirs]) for one in rounds)
            for theirs, ours in wanted.items()
            if isinstance(rounds[0].get(theirs), float)
        }
    else:
        levels: Any = part.scores.get("v_measures") or {}
        every = [value for level in (levels.values() if isinstance(levels, Mapping) else [levels]) for value in level]
        values = {"v_measure": _numbered(map(float, every))} if every else {}
    return {**_means(values), "unit": "repetition"} if values else None


def _column(predicted: Any, name: str) -> list[Any] | None:
    return predicted.get(name) if isinstance(predicted, Mapping) else None


def _means(values: Mapping[str, Mapping[str, float]]) -> Fields:
    return {
        "scores": {name: float(np.mean(list(some.values()))) for name, some in values.items()},
        "intervals": {name: bootstrap_interval(list(some.values())) for name, some in values.items()},
        "per_query": {name: dict(some) for name, some in values.items()},
    }


def _numbered(values: Any) -> dict[str, Any]:
    return {str(number): value for number, value in enumerate(values)}


def _pair_texts(data: Any, left: Any, right: Any) -> dict[str, str]:
    """Of pairs of texts; images have none."""
    pairs: Sequence[tuple[Any, Any]] = []
    if isinstance(left, str) and isinstance(right, str):
        pairs = list(zip(data[left], data[right], strict=True))
    return _numbered(f"{one} | {other}" for one, other in pairs) if pairs and isinstance(pairs[0][0], str) else {}
