"""Training data: the dialects of the field, as one kind of example.

Told apart by their keys, a row at a time:

* sentence-transformers: anchor, positive, negative or negative_1 ... (or query for anchor, answer for positive); sentence1,
  sentence2 and a score; text and label, from which example-based pairs are made: the positive is another text of the label,
  the negatives are texts of other labels (KaLM-Embedding, NV-Embed)
* FlagEmbedding: query, pos, neg, with pos_scores and neg_scores of a teacher; a text alone is a list of one, as a table has it
* Tevatron: query_text (or query), positive_passages, negative_passages

A BEIR folder gives its judged queries with the documents judged above 0. Everything is held in memory: texts once, an example
some hundred bytes.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from embedkit.corpus import labels
from embedkit.corpus.beir import find, read_qrels, read_queries
from embedkit.corpus.documents import read_corpus
from embedkit.corpus.folders import folder_rows
from embedkit.corpus.formats import file_rows
from embedkit.errors import DataError
from embedkit.limits import shown
from embedkit.train.settings import Data, from_environment
from embedkit.types import is_unicode

Row = Mapping[str, Any]
logger = logging.getLogger(__name__)
CLASS_NEGATIVES = 8  # texts of other labels that an example of labelled data may draw from
# what may be left out
NEGATIVES_KNOWN = "negatives that are positives of the same anchor elsewhere"
NO_POSITIVES = "pairs with a score or label of 0 or less, which are no positives"
NOT_THERE = "judgements of a query or document that the folder does not hold, or without a text"
NO_POSITIVE = "rows without a positive"
LONE_LABEL = "texts whose label no other text has"
OTHER_LABEL = "texts that came again with another label, of which the last counts"
SEEN = "texts that came before"
ODD = "texts without a second one in their row"


@dataclass(frozen=True, slots=True)
class Example:
    """An anchor and what is known about it."""

    anchor: str
    positive: str = ""  # "": a text alone
    negatives: tuple[str, ...] = ()
    score: float | None = None  # how near anchor and positive are
    teacher: tuple[float, ...] = ()  # a teacher's scores of the positive and of each negative
    alike: frozenset[str] = frozenset()  # further positives of the anchor: all texts of its label

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.anchor, *((self.positive,) if self.positive else ()), *self.negatives)


@dataclass(frozen=True)
class Task:
    """The examples of one entry of `data`."""

    name: str
    settings: Data
    examples: Sequence[Example]
    known: Mapping[str, frozenset[str]]  # anchor -> all of its positives, none of which may be taken for a negative
    lost: Mapping[str, int] = field(default_factory=dict)  # what was left out of the data -> how often
    leaked: Mapping[str, int] = field(default_factory=dict)  # verdict of leaks.py -> examples that were left out for it


def read_tasks(data: Sequence[Data], seed: int = 0) -> list[Task]:
    """Each entry of `data`, as `read_task` does; where several have one name, it is numbered: pairs, pairs (2), ..."""
    tasks: dict[str, Task] = {}
    for settings in data:
        task = read_task(settings, seed)
        name, number = task.name, 1
        while name in tasks:
            number += 1
            name = f"{task.name} ({number})"
        tasks[name] = replace(task, name=name)
    return list(tasks.values())


def read_task(settings: Data, seed: int = 0) -> Task:
    """Raises UsageError for a path that is not there, DataError for a row that is of no dialect."""
    lost: Counter[str] = Counter()
    with from_environment(settings.path) as path:
        examples = list(islice(_read(Path(path), settings, seed, lost), settings.limit))
    written = Path(settings.path).name
    if not examples:
        split = f" of the split {shown(settings.split)}" if settings.split else ""
        raise DataError(f"{settings.path} gives no example{split}{_listed_losses(lost)}; expected at least one.")
    known = known_positives(examples)
    cleaned = [without_known(example, known) for example in examples]
    lost[NEGATIVES_KNOWN] = sum(len(a.negatives) - len(b.negatives) for a, b in zip(examples, cleaned, strict=True))
    for reason, count in (+lost).items():
        logger.info("%s: %d %s; left out.", written, count, reason)
    return Task(settings.name or written.partition(".")[0], settings, cleaned, known, dict(+lost))


def _read(path: Path, settings: Data, seed: int, lost: Counter[str]) -> Iterator[Example]:
    if (path / "qrels").is_dir():
        judged = _beir(path, settings.split or "train", lost)
        if not settings.texts:
            return judged
        pairs = ((str(path), {"anchor": one.anchor, "positive": one.positive}) for one in judged)
        return _of_fields(pairs, settings, lost)
    placed = folder_rows(path) if path.is_dir() else file_rows(path)
    chosen = ((where, row) for where, row in placed if settings.split in (None, row.get("split")))
    return (
        _of_fields(chosen, settings, lost) if settings.texts else _examples(chosen, np.random.default_rng(seed), lost)
    )


def _listed_losses(lost: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{count:,} {reason}' for reason, count in lost.items())} were left out)" if lost else ""


def with_positives_alone(task: Task) -> Task:
    """Without the pairs whose score says that they are none, for losses that take every pair for a positive.

    Raises DataError where no pair is left.
    """
    kept = [one for one in task.examples if one.score is None or one.score > 0]
    count = len(task.examples) - len(kept)
    if not kept:
        raise DataError(
            f"All {count:,} pairs of {task.name} have a score or label of 0 or less, and the losses take each for a positive; give "
            f"positives, or a loss of scores, such as cosent."
        )
    if not count:
        return task
    logger.info("%s: %d %s; left out.", task.name, count, NO_POSITIVES)
    return replace(task, examples=kept, lost={**task.lost, NO_POSITIVES: count})


def known_positives(examples: Iterable[Example]) -> dict[str, frozenset[str]]:
    """anchor -> all texts that any example has as its positive, or as alike. The texts of a label share one set."""
    singles: dict[str, set[str]] = defaultdict(set)
    classes: dict[str, list[frozenset[str]]] = defaultdict(list)
    for example in examples:
        if example.alike:
            classes[example.anchor].append(example.alike)
        true = example.positive and (example.score is None or example.score > 0)
        if true and example.positive not in example.alike:
            singles[example.anchor].add(example.positive)
    known = {anchor: frozenset(texts) for anchor, texts in singles.items()}
    for anchor, sets in classes.items():
        alone = len(sets) == 1 and anchor not in known
        known[anchor] = sets[0] if alone else known.get(anchor, frozenset()).union(*sets)
    return known


def data_digest(tasks: Sequence[Task]) -> str:
    """Of all that is trained on, in its order: texts, scores, a teacher's scores, and what is known (hence labels)."""
    hashed = blake2b(digest_size=16)
    digests: dict[frozenset[str], str] = {}  # of a label's texts once, not for each of them
    for task in tasks:
        for one in task.examples:
            hashed.update(json.dumps([one.texts, one.score, one.teacher]).encode())
        for anchor, texts in task.known.items():
            if texts not in digests:
                digests[texts] = blake2b(json.dumps(sorted(texts)).encode(), digest_size=16).hexdigest()
            hashed.update(json.dumps([anchor, digests[texts]]).encode())
        hashed.update(b"\n")
    return hashed.hexdigest()


def without_known(example: Example, known: Mapping[str, frozenset[str]]) -> Example:
    """Without negatives, and their scores, that are the anchor or known positives of it."""
    bad = known.get(example.anchor, frozenset())
    kept = [i for i, text in enumerate(example.negatives) if text not in bad and text != example.anchor]
    if len(kept) == len(example.negatives):
        return example
    teacher = (example.teacher[0], *(example.teacher[1 + i] for i in kept)) if example.teacher else ()
    return replace(example, negatives=tuple(example.negatives[i] for i in kept), teacher=teacher)


def _beir(folder: Path, split: str, lost: Counter[str]) -> Iterator[Example]:
    queries = read_queries(find(folder, "queries.jsonl"))
    qrels = read_qrels(folder, split)
    wanted = {document for grades in qrels.values() for document, grade in grades.items() if grade > 0}
    texts = {one.id: one.full_text for one in read_corpus(folder) if one.id in wanted}
    for query, grades in qrels.items():
        for document, grade in grades.items():
            if grade > 0 and queries.get(query) and texts.get(document):
                yield Example(queries[query], texts[document])
            elif grade > 0:
                lost[NOT_THERE] += 1


def _of_fields(rows: Iterable[tuple[str, Row]], settings: Data, lost: Counter[str]) -> Iterator[Example]:
    """Each distinct text of the fields, which may hold lists; or the texts of a row in pairs, the first with the second and so on,
    all of them known as positives of each other."""
    seen: set[str] = set()
    for where, row in rows:
        found = list(_field_texts(row, settings.texts, where))
        texts = list(dict.fromkeys(found))
        lost[SEEN] += len(found) - len(texts)
        if settings.paired:
            lost[ODD] += len(texts) % 2
            alike = frozenset(texts)
            for one, other in zip(texts[::2], texts[1::2], strict=False):
                yield Example(one, other, alike=alike)
            continue
        for text in texts:
            if text not in seen:
                seen.add(text)
                yield Example(sys.intern(text))
            else:
                lost[SEEN] += 1


def _field_texts(row: Row, fields: Sequence[str], where: str) -> Iterator[str]:
    for name in fields:
        if name not in row:
            raise DataError(f"{where}: there is no field {shown(name)}; it has {', '.join(map(str, row))}.")
        value = row[name]
        yield from (_text(text, name, where) for text in (value if isinstance(value, list) else [value]))


def _examples(rows: Iterable[tuple[str, Row]], generator: np.random.Generator, lost: Counter[str]) -> Iterator[Example]:
    labelled: list[tuple[str, str]] = []
    for where, row in rows:
        if "text" in row and "label" in row:
            label = labels.read(labels.class_label, row["label"], "label", where)
            labelled.append((_text(row["text"], "text", where), label))
            continue
        examples = list(_of_row(row, where))
        lost[NO_POSITIVE] += not examples
        yield from examples
    if labelled:
        yield from example_pairs(labelled, generator, lost)


def _of_row(row: Row, where: str) -> Iterator[Example]:
    keys = set(row)
    if {"query", "pos"} <= keys:
        yield from _flag(row, where)
    elif "positive_passages" in keys:
        yield from _tevatron(row, where)
    elif {"sentence1", "sentence2"} <= keys:
        yield Example(
            _text(row["sentence1"], "sentence1", where),
            _text(row["sentence2"], "sentence2", where),
            score=_score(row, where),
        )
    elif keys & {"anchor", "query"} and keys & {"positive", "answer"}:
        anchor, positive = ("anchor" if "anchor" in keys else "query"), ("positive" if "positive" in keys else "answer")
        names = [key for key in row if (key == "negative" or key.startswith("negative_")) and not _is_blank(row[key])]
        yield Example(
            _text(row[anchor], anchor, where),
            _text(row[positive], positive, where),
            tuple(_text(row[name], name, where) for name in names),
            score=_score(row, where),
        )
    else:
        raise DataError(
            f"{where}: the keys {', '.join(map(str, row))} are of no dialect; expected anchor and positive, sentence1 and sentence2, "
            f"text and label, query and pos (FlagEmbedding), or query and positive_passages (Tevatron)."
        )


def _flag(row: Row, where: str) -> Iterator[Example]:
    anchor = _text(row["query"], "query", where)
    listed = _optional(row, "neg", where)
    kept = [place for place, text in enumerate(listed) if not _is_blank(text)]
    negatives = tuple(_text(listed[place], "neg", where) for place in kept)
    positives = [_text(text, "pos", where) for text in _listed(row["pos"], "pos", where)]
    true, false = _optional(row, "pos_scores", where), _optional(row, "neg_scores", where)
    if (true or false) and (len(true), len(false)) != (len(positives), len(listed)):
        raise DataError(
            f"{where}: {len(true)} pos_scores and {len(false)} neg_scores came for {len(positives)} pos and "
            f"{len(listed)} neg; expected as many."
        )
    for place, positive in enumerate(positives):
        scores = (true[place], *(false[other] for other in kept)) if true else ()
        teacher = tuple(labels.read(labels.score, one, "pos_scores, neg_scores", where) for one in scores)
        yield Example(anchor, positive, negatives, teacher=teacher)


def _tevatron(row: Row, where: str) -> Iterator[Example]:
    name = "query_text" if "query_text" in row else "query"
    anchor = _text(row.get(name), name, where)

    def passage(one: Any, key: str) -> str:
        if not isinstance(one, Mapping):
            raise DataError(f"{where}: {key} is no list of passages; expected docid, title and text of each.")
        text = _text(one.get("text"), key, where)
        return _text(f"{one.get('title') or ''} {text}".strip(), key, where)

    negatives = tuple(passage(one, "negative_passages") for one in _optional(row, "negative_passages", where))
    for one in _listed(row["positive_passages"], "positive_passages", where):
        yield Example(anchor, passage(one, "positive_passages"), negatives)


def example_pairs(
    labelled: Sequence[tuple[str, str]], generator: np.random.Generator, lost: Counter[str] | None = None
) -> Iterator[Example]:
    """(text, label) -> an example a text: another text of its label, and texts of other labels, drawn once.

    A text whose label no other text has is left out, and counted in `lost`. Raises DataError where there are no two labels.
    """
    lost = Counter() if lost is None else lost
    members: dict[str, list[str]] = defaultdict(list)
    label_of = dict(labelled)
    lost[OTHER_LABEL] = len(other := {pair for pair in labelled if label_of[pair[0]] != pair[1]})
    lost[SEEN] += len(labelled) - len(label_of) - len(other)
    for text, label in label_of.items():
        members[label].append(text)
    if len(members) < 2:
        raise DataError(f"The labelled texts have {len(members)} label; expected at least two to tell apart.")
    lost[LONE_LABEL] = sum(len(texts) == 1 for texts in members.values())
    for label, texts in members.items():
        others, alike = [one for one in members if one != label], frozenset(texts)
        for place, text in enumerate(texts):
            if len(texts) < 2:
                continue
            positive = texts[(place + 1 + int(generator.integers(len(texts) - 1))) % len(texts)]
            drawn = generator.choice(len(others), size=min(CLASS_NEGATIVES, len(others)), replace=False)
            negatives = [members[others[i]][int(generator.integers(len(members[others[i]])))] for i in drawn]
            yield Example(text, positive, tuple(negatives), alike=alike)


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {name} is {shown(value)}; expected a text.")
    if not is_unicode(value):
        raise DataError(f"{where}: {name} holds half of a character; mend or remove it.")
    return value


def _listed(value: Any, name: str, where: str) -> Sequence[Any]:
    """A list as it is; a text, which is all that a cell of a table can be, as a list of one."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, (list, tuple)):
        raise DataError(f"{where}: {name} is {shown(value)}; expected a list.")
    return value


def _optional(row: Row, name: str, where: str) -> Sequence[Any]:
    """What is listed there; nothing where the field is missing or empty."""
    value = row.get(name)
    return [] if value is None or value == "" else _listed(value, name, where)


def _is_blank(value: Any) -> bool:
    """As tables write that there is nothing."""
    return value is None or (isinstance(value, str) and not value.strip())


def _score(row: Row, where: str) -> float | None:
    """How near the two texts of a row are; None where it does not say."""
    name = "score" if "score" in row else "label"
    if name not in row:
        return None
    value = row[name]
    return labels.read(labels.score, int(value) if isinstance(value, bool) else value, name, where)
