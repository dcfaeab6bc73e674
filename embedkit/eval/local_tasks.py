"""A file or folder of one's own as a task of mteb: its columns tell the type, mteb runs the protocol.

| type                | columns                                             | file                             |
|---------------------|-----------------------------------------------------|----------------------------------|
| sts                 | sentence1, sentence2, score                         | data.tsv, .csv, .jsonl, .parquet |
| pair-classification | sentence1, sentence2, label (0 or 1)                | the same                         |
| bitext              | sentence1, sentence2, and lang where it has several | the same                         |
| classification      | text, label, split (train and another)              | the same                         |
| clustering          | text, label                                         | the same                         |
| reranking           | query, positive [...], negative [...], none empty   | SPLIT.jsonl                      |
| image-text          | image, and captions [...], caption or name          | data.parquet, .jsonl             |

Each also as .gz. A column `split` divides the rows; without one all rows are of the split that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedkit.corpus import labels
from embedkit.corpus.formats import file_rows
from embedkit.errors import DataError, UsageError
from embedkit.eval.image_tasks import DIRECTIONS, image_text_data, with_captions
from embedkit.eval.mteb_import import import_mteb
from embedkit.eval.task_file import TaskFile
from embedkit.limits import shown
from embedkit.storage import file_record
from embedkit.types import is_unicode

Row = Mapping[str, Any]
ENDINGS = ("tsv", "csv", "jsonl", "parquet")
SUBJECTS = {  # type -> the columns that it needs
    "reranking": {"query", "positive", "negative"},
    "sts": {"sentence1", "sentence2", "score"},
    "pair-classification": {"sentence1", "sentence2", "label"},
    "bitext": {"sentence1", "sentence2"},
    "classification": {"text", "label"},
    "clustering": {"text", "label"},
    "image-text": {"image", "captions"},
}
TRAIN, ALL = "train", "all"
LANGUAGE = "und-Zyyy"  # what mteb is told of the language: undetermined


@dataclass(frozen=True)
class LocalTask:
    """What mteb runs, and what a report says of it."""

    name: str  # "stsb", "tatoeba/deu"
    path: Path
    type: str  # a key of SUBJECTS; of images one of DIRECTIONS
    task: Any  # mteb's, its data loaded
    rows: Sequence[Row]  # what is evaluated
    data: Mapping[str, Any]  # name, split, sha256
    about: TaskFile = TaskFile()  # noqa: RUF009 (frozen)


def is_beir(path: Path) -> bool:
    """Whether a folder holds a corpus, as BEIR's do."""
    return any((path / name).exists() for name in ("corpus.jsonl", "corpus.jsonl.gz"))


def read_local(path: Path, split: str = "test", type_asked: str | None = None) -> list[LocalTask]:
    """The tasks of a file or folder: one, or one a language of a bitext collection, or one a direction of images and captions.

    split: "all" joins them. type_asked: where the columns fit several types. Raises UsageError for a folder or type that is
    none, or a split that is not there; DataError for rows that the type cannot use.
    """
    if type_asked is not None and type_asked not in SUBJECTS:
        raise UsageError(f"type={type_asked!r} came; expected {', '.join(SUBJECTS)}.")
    file = _file_of(path, split)
    placed = [(where, with_captions(row, file.parent)) for where, row in file_rows(file)]
    if not placed:
        raise DataError(f"{file} holds no rows; expected at least one.")
    if any("split" in row for _, row in placed):
        placed = [(where, {**row, "split": _label(row, "split", where)}) for where, row in placed]
    kind = _type_of([row for _, row in placed], type_asked, file)
    name = path.resolve().name if path.is_dir() else path.name.split(".")[0]
    chosen = [_read(row, kind, where) for where, row in _of_split(placed, split, file)]
    data = {"name": name, "split": split, "sha256": {file.name: file_record(file)["sha256"]}}
    if kind == "bitext" and "lang" in chosen[0]:
        languages: dict[str, list[Row]] = {}
        for row in chosen:
            languages.setdefault(row["lang"], []).append(row)
        return [_local(f"{name}/{lang}", kind, some, [], split, data, file) for lang, some in languages.items()]
    if kind == "image-text":
        return [_local(f"{name}/{way}", DIRECTIONS[way], chosen, [], split, data, file) for way in DIRECTIONS]
    known = [_read(row, kind, where) for where, row in placed if kind == "classification" and row["split"] == TRAIN]
    return [_local(name, kind, chosen, known, split, data, file)]


def _read(row: Row, kind: str, where: str) -> Row:
    """The row with its texts checked and its label or score as it is meant. Raises DataError with the place of one that is none."""
    readers = _READERS | ({"label": _pair_label} if kind == "pair-classification" else {})
    read = {name: readers[name](row, name, where) for name in SUBJECTS[kind] if name in readers}
    if kind == "bitext" and "lang" in row:
        read["lang"] = _label(row, "lang", where)
    return {**row, **read}


def _text(row: Row, name: str, where: str) -> str:
    if not isinstance(text := row.get(name), str) or not is_unicode(text):
        raise DataError(f"{where}: {name} is {shown(text)}; expected a text, and no half of a character.")
    return text


def _list(row: Row, name: str, where: str) -> list[str]:
    if not isinstance(texts := row.get(name), list):
        raise DataError(f"{where}: {name} is {shown(texts)}; expected a list of texts.")
    return [_text({name: text}, name, where) for text in texts]


def _label(row: Row, name: str, where: str) -> str:
    return labels.read(labels.class_label, row.get(name), name, where)


def _pair_label(row: Row, name: str, where: str) -> int:
    return labels.read(labels.pair_label, row.get(name), name, where)


def _score(row: Row, name: str, where: str) -> float:
    return labels.read(labels.score, row.get(name), name, where)


_READERS: dict[str, Callable[[Row, str, str], Any]] = {
    **dict.fromkeys(("sentence1", "sentence2", "text", "query"), _text),
    **dict.fromkeys(("positive", "negative"), _list),
    "label": _label,
    "score": _score,
}


def _file_of(path: Path, split: str) -> Path:
    if path.is_file():
        return path
    names = [f"{stem}.{ending}{gz}" for stem in ("data", split) for ending in ENDINGS for gz in ("", ".gz")]
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None:
        raise UsageError(
            f"{path} holds no task; expected corpus.jsonl (a BEIR folder), data.tsv, .csv, .jsonl or .parquet, or {split}.jsonl."
        )
    return found


def _type_of(rows: Sequence[Row], asked: str | None, file: Path) -> str:
    columns = set(rows[0])
    fitting = [kind for kind, needed in SUBJECTS.items() if needed <= columns]
    if asked is not None:
        if asked not in fitting:
            raise UsageError(f"{file} has the columns {_listed(columns)}; {asked} needs {_listed(SUBJECTS[asked])}.")
        return asked
    if not fitting:
        raise UsageError(
            f"{file} has the columns {_listed(columns)}, which no task has; expected for example {_listed(SUBJECTS['sts'])}."
        )
    splits = {row.get("split") for row in rows}
    if fitting[0] == "classification" and (TRAIN not in splits or len(splits) == 1):
        return "clustering"  # nothing to learn from
    return fitting[0]


def _listed(columns: set[str]) -> str:
    return ", ".join(sorted(columns))


def _of_split(placed: Sequence[tuple[str, Row]], split: str, file: Path) -> Sequence[tuple[str, Row]]:
    splits = sorted({row["split"] for _, row in placed if "split" in row})
    if split == ALL or len(splits) < 2:  # of a single one it does not matter what it is called
        return placed
    if split not in splits:
        raise UsageError(f"{file} has no split {split!r}; it has {', '.join(splits)}: choose with --split, or all.")
    return [(where, row) for where, row in placed if row["split"] == split]


def _local(
    name: str, kind: str, rows: Sequence[Row], known: Sequence[Row], split: str, data: Mapping[str, Any], file: Path
) -> LocalTask:
    if kind == "classification" and split in (TRAIN, ALL):
        raise UsageError(f"{file} is learned from its split {TRAIN!r}; choose another one to be scored, with --split.")
    import_mteb()
    try:
        base, dataset, attributes = _MAKERS[kind](rows, known, split)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{file} cannot be scored as {kind}: {error}; mend the rows, or choose another --type."
        ) from None
    return LocalTask(name, file, kind, _mteb_task(base, name, kind, split, dataset, attributes), rows, data)


def _mteb_task(base: Any, name: str, kind: str, split: str, dataset: Any, attributes: Mapping[str, Any]) -> Any:
    from mteb.abstasks.task_metadata import TaskMetadata

    kinds: dict[str, tuple[Any, str]] = {
        "reranking": ("Reranking", "map_at_1000"),
        "sts": ("STS", "cosine_spearman"),
        "pair-classification": ("PairClassification", "cosine_ap"),
        "bitext": ("BitextMining", "f1"),
        "classification": ("Classification", "accuracy"),
        "clustering": ("Clustering", "v_measure"),
        "text-to-image": ("Any2AnyRetrieval", "ndcg_at_10"),
        "image-to-text": ("Any2AnyRetrieval", "ndcg_at_10"),
    }
    mteb_type, main = kinds[kind]
    way = next((way for way, its in DIRECTIONS.items() if its == kind), None)
    metadata = TaskMetadata(
        name=name.replace("/", "-"),
        description=f"{name}, a collection of the user's own",
        type=mteb_type,
        category=way or "t2t",
        modalities=["image", "text"] if way else ["text"],
        eval_splits=[split],
        eval_langs=[LANGUAGE],
        main_score=main,
        dataset={"path": name, "revision": "local"},
    )
    task = type("LocalTask", (base,), {"metadata": metadata, **attributes})()
    task.dataset, task.data_loaded = dataset, True
    return task


# --- rows as mteb wants them: (its class, data, attributes) ---------------------------------------------------------------

Made = tuple[Any, Any, dict[str, Any]]


def _sts(rows: Sequence[Row], _: Sequence[Row], split: str) -> Made:
    from mteb.abstasks import AbsTaskSTS

    scores = [row["score"] for row in rows]
    if len(set(scores)) < 2:
        raise ValueError("all scores are the same, there is nothing to correlate with")
    columns = {**_pairs(rows), "score": scores}
    return AbsTaskSTS, {split: _dataset(columns)}, {"min_score": min(scores), "max_score": max(scores)}


def _pair_classification(rows: Sequence[Row], _: Sequence[Row], split: str) -> Made:
    from mteb.abstasks import AbsTaskPairClassification

    truth = [row["label"] for row in rows]
    if len(set(truth)) < 2:
        raise ValueError(f"all labels are {truth[0]}, expected 0 and 1")
    return AbsTaskPairClassification, {split: _dataset({**_pairs(rows), "labels": truth})}, {}


def _bitext(rows: Sequence[Row], _: Sequence[Row], split: str) -> Made:
    from mteb.abstasks import AbsTaskBitextMining

    return AbsTaskBitextMining, {split: _dataset(_pairs(rows))}, {}


def _classification(rows: Sequence[Row], known: Sequence[Row], split: str) -> Made:
    from mteb.abstasks import AbsTaskClassification

    asked, taught = {row["label"] for row in rows}, {row["label"] for row in known}
    # those of the split first: where there are two, mteb takes 1 for the positive one
    numbers = {label: number for number, label in enumerate([*sorted(asked & taught), *sorted(taught - asked)])}
    unknown = asked - taught
    if len(numbers) < 2:
        raise ValueError(f"all labels of the split {TRAIN!r} are the same, there is nothing to tell apart")
    if unknown:
        raise ValueError(f"the labels {_listed(unknown)} are not in the split {TRAIN!r}")

    def labelled(some: Sequence[Row]) -> Any:
        return _dataset({"text": [row["text"] for row in some], "label": [numbers[row["label"]] for row in some]})

    return AbsTaskClassification, {TRAIN: labelled(known), split: labelled(rows)}, {}


def _clustering(rows: Sequence[Row], _: Sequence[Row], split: str) -> Made:
    from mteb.abstasks import AbsTaskClustering

    truth = [row["label"] for row in rows]
    if len(set(truth)) < 2:
        raise ValueError("all labels are the same, there is nothing to cluster")
    columns = {"sentences": [row["text"] for row in rows], "labels": truth}
    own = {"max_fraction_of_documents_to_embed": None, "max_document_to_embed": None}  # all: it is not that large
    return AbsTaskClustering, {split: _dataset(columns)}, own


def _reranking(rows: Sequence[Row], _: Sequence[Row], split: str) -> Made:
    from mteb.abstasks import AbsTaskRetrieval

    corpus, queries, relevant, candidates = [], [], {}, {}  # type: list[Row], list[Row], dict[str, Any], dict[str, Any]
    for number, row in enumerate(rows):
        positive, negative = row["positive"], row["negative"]
        if not positive or not negative:
            continue  # every order of these is right; mteb leaves them out as well
        query = f"q{number}"
        queries.append({"id": query, "text": row["query"]})
        candidates[query] = [f"{query}-{place}" for place in range(len(positive) + len(negative))]
        texts = zip(candidates[query], [*positive, *negative], strict=True)
        corpus += [{"id": one, "title": "", "text": text} for one, text in texts]
        relevant[query] = dict.fromkeys(candidates[query][: len(positive)], 1)
    if not queries:
        raise ValueError("no query has something positive and something negative")
    parts = {"corpus": _dataset(_columns(corpus)), "queries": _dataset(_columns(queries))}
    whole = {**parts, "relevant_docs": relevant, "top_ranked": candidates}
    return AbsTaskRetrieval, {"default": {split: whole}}, {}


def _text_to_image(rows: Sequence[Row], _: Sequence[Row], split: str) -> Made:
    from mteb.abstasks import AbsTaskRetrieval

    return AbsTaskRetrieval, {"default": {split: image_text_data(rows, "t2i")}}, {}


def _image_to_text(rows: Sequence[Row], _: Sequence[Row], split: str) -> Made:
    from mteb.abstasks import AbsTaskRetrieval

    return AbsTaskRetrieval, {"default": {split: image_text_data(rows, "i2t")}}, {}


_MAKERS: dict[str, Callable[[Sequence[Row], Sequence[Row], str], Made]] = {
    "reranking": _reranking,
    "sts": _sts,
    "pair-classification": _pair_classification,
    "bitext": _bitext,
    "classification": _classification,
    "clustering": _clustering,
    "text-to-image": _text_to_image,
    "image-to-text": _image_to_text,
}


def _pairs(rows: Sequence[Row]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in ("sentence1", "sentence2")}


def _columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _dataset(columns: Mapping[str, list[Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict(dict(columns))
