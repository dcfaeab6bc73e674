"""Pairs, labelled texts, bitext and reranking lists: what `eval --data` takes beside BEIR folders."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from embedkit.corpus.labels import class_label, pair_label, score
from embedkit.errors import UsageError
from embedkit.eval.data_check.findings import Findings
from embedkit.eval.data_check.reading import Source, check_characters, key_of, text_key
from embedkit.eval.data_check.splits import TRAIN, check_leak
from embedkit.eval.data_check.texts import MIX, Keys, Places, first_places
from embedkit.eval.local_tasks import ENDINGS, SUBJECTS

Row = Mapping[str, Any]
SPLITS = (TRAIN, "dev", "validation", "test")  # names of files, where each split has its own
SCALES = ((0, 1), (-1, 1), (0, 5), (0, 10), (0, 100))  # of similarity scores
NEARLY_ALL = 0.99  # of the scores are on their scale
SEPARATOR = "\n"


@dataclass
class Rows:
    """What is remembered of all rows: 33 bytes for each."""

    sources: list[Source] = field(default_factory=list)
    splits: dict[str, Source] = field(default_factory=dict)  # split -> where it begins
    labels: dict[str, dict[int, int]] = field(default_factory=dict)  # label -> split -> rows
    _texts: array[int] = field(default_factory=lambda: array("Q"))
    _labels: array[int] = field(default_factory=lambda: array("Q"))  # or scores
    _scores: array[float] = field(default_factory=lambda: array("d"))  # NaN where there is none
    _lines: array[int] = field(default_factory=lambda: array("I"))
    _splits: array[int] = field(default_factory=lambda: array("I"))
    _sources: array[int] = field(default_factory=lambda: array("B"))

    @property
    def texts(self) -> Keys:
        return np.frombuffer(self._texts, dtype=np.uint64)

    @property
    def answers(self) -> Keys:
        """Labels or scores."""
        return np.frombuffer(self._labels, dtype=np.uint64)

    @property
    def scores(self) -> np.ndarray:
        return np.frombuffer(self._scores)

    @property
    def split_of(self) -> np.ndarray:
        return np.frombuffer(self._splits, dtype=np.uint32)

    def add(self, line: int, split: str, text: str, answer: str | None, score: float | None) -> None:
        self.splits.setdefault(split, self.sources[-1])
        number = list(self.splits).index(split)
        self._texts.append(text_key(text))
        self._labels.append(0 if answer is None else key_of(answer))
        self._scores.append(math.nan if score is None else score)
        self._lines.append(line)
        self._splits.append(number)
        self._sources.append(len(self.sources) - 1)
        if answer is not None and score is None:
            of_split = self.labels.setdefault(answer, {})
            of_split[number] = of_split.get(number, 0) + 1

    def tell(self, name: str, places: Places, kind: str, findings: Findings) -> None:
        """A finding for the rows at these places."""
        examples = []
        for place in places[: findings.room(name)]:
            source, line = self.sources[self._sources[place]], self._lines[place]
            row = source.rows_at([line])[line]
            answer = row.get("score", row.get("label", ""))
            examples.append((source.at(line), f"{answer} {' | '.join(_texts_of(row, kind))}".strip()))
        findings.add_all(name, len(places), examples)


@dataclass(frozen=True)
class SplitTexts:
    """The texts of one split; can be read again and again."""

    source: Source
    split: str
    kind: str

    def __iter__(self) -> Iterator[str]:
        return (text for _, text in self.placed())

    def placed(self) -> Iterator[tuple[int, str]]:
        for line, row in self.source.rows(Findings()):
            if _split_of(row, self.source) == self.split and not _missing(row, self.kind):
                yield line, SEPARATOR.join(_texts_of(row, self.kind))


def check_tables(path: Path, findings: Findings) -> None:
    """A file, or a folder with data.tsv and so on, or with a file a split. Raises UsageError for what holds no task."""
    sources = _sources(path)
    kind = ""
    seen = Rows()
    for source in sources:
        seen.sources.append(source)
        for line, row in source.rows(findings):
            kind = kind or _kind_of(row, source)
            where = source.at(line)
            if _missing(row, kind):
                findings.add("missing-field", where, str(dict(row)))
                continue
            _check_row(row, kind, where, findings)
            answer, score = _answer(row, kind)
            seen.add(line, _split_of(row, source), SEPARATOR.join(_texts_of(row, kind)), answer, score)
    if not kind:
        raise UsageError(f"{path} holds no rows that can be read; expected at least one.")
    _check_scores(seen, kind, findings)
    _check_labels(seen, findings)
    _check_repeated(seen, kind, findings)
    _check_splits(seen, kind, findings)


def _sources(path: Path) -> list[Source]:
    if path.is_file():
        return [Source(path, path.name)]
    for stems in (("data",), SPLITS):
        names = [f"{stem}.{ending}{gz}" for stem in stems for ending in ENDINGS for gz in ("", ".gz")]
        if found := [Source(path / name, name) for name in names if (path / name).is_file()]:
            return found[:1] if stems == ("data",) else found
    raise UsageError(
        f"{path} holds nothing to check; expected corpus.jsonl (a BEIR folder), data.tsv, .csv, .jsonl or .parquet, or "
        f"{', '.join(SPLITS)}.jsonl."
    )


def _kind_of(row: Row, source: Source) -> str:
    kind = next((kind for kind, needed in SUBJECTS.items() if needed <= set(row)), None)
    if kind is None:
        raise UsageError(f"{source.path} has the columns {', '.join(sorted(row))}, which no task has.")
    return kind


def _split_of(row: Row, source: Source) -> str:
    stem = source.path.name.split(".")[0]
    return class_label(row.get("split", stem if stem in SPLITS else "")) or ""


# --- one row --------------------------------------------------------------------------------------------------------------


def _missing(row: Row, kind: str) -> bool:
    if any(
        name in row and class_label(row[name]) is None for name in ("split", *(["lang"] if kind == "bitext" else []))
    ):
        return True
    lists, texts = {"positive", "negative"}, {"sentence1", "sentence2", "text", "query"}
    for name in SUBJECTS[kind]:
        value = row.get(name)
        if name in lists:
            if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
                return True
        elif (name in texts and not isinstance(value, str)) or value is None:
            return True
    return False


def _texts_of(row: Row, kind: str) -> list[str]:
    """What makes a row the same as another one."""
    names = [name for name in ("query", "text", "sentence1", "sentence2") if name in SUBJECTS[kind]]
    language = [str(row["lang"])] if kind == "bitext" and "lang" in row else []
    return [*language, *(row[name] for name in names)]


def _answer(row: Row, kind: str) -> tuple[str | None, float | None]:
    """(label or score as it is written, the score as a number)"""
    if kind == "sts":
        number = score(row["score"])
        return str(row["score"]), math.nan if number is None else number
    if kind == "pair-classification":
        return str(row["label"]), None
    return (class_label(row["label"]) if "label" in SUBJECTS[kind] else None), None


def _check_row(row: Row, kind: str, where: str, findings: Findings) -> None:
    texts = [row[name] for name in ("query", "text", "sentence1", "sentence2") if name in SUBJECTS[kind]]
    texts += [text for name in ("positive", "negative") if name in SUBJECTS[kind] for text in row[name]]
    if any(not text.strip() for text in texts):
        findings.add("empty-text", where, " | ".join(texts))
    check_characters(SEPARATOR.join(texts), where, findings)
    if check := _CHECKS.get(kind):
        check(row, where, findings)


def _check_sts(row: Row, where: str, findings: Findings) -> None:
    if score(row["score"]) is None:
        findings.add("bad-score", where, str(row["score"]))


def _check_pair_label(row: Row, where: str, findings: Findings) -> None:
    if pair_label(row["label"]) is None:
        findings.add("bad-label", where, str(row["label"]))


def _check_class(row: Row, where: str, findings: Findings) -> None:
    if class_label(row["label"]) is None:
        findings.add("bad-label", where, repr(row["label"]))


def _check_translation(row: Row, where: str, findings: Findings) -> None:
    if row["sentence1"].strip() and row["sentence1"].split() == row["sentence2"].split():
        findings.add("same-both-sides", where, row["sentence1"])


def _check_candidates(row: Row, where: str, findings: Findings) -> None:
    if both := set(row["positive"]) & set(row["negative"]):
        findings.add("positive-is-negative", where, f"{row['query']} | {min(both)}")
    if not row["positive"] or not row["negative"]:
        findings.add("nothing-to-rank", where, row["query"])


_CHECKS: dict[str, Callable[[Row, str, Findings], None]] = {
    "sts": _check_sts,
    "pair-classification": _check_pair_label,
    "bitext": _check_translation,
    "classification": _check_class,
    "clustering": _check_class,
    "reranking": _check_candidates,
}


# --- all rows together ----------------------------------------------------------------------------------------------------


def _check_scores(seen: Rows, kind: str, findings: Findings) -> None:
    scores = seen.scores
    known = np.isfinite(scores)
    for low, high in SCALES:
        on_scale = (scores >= low) & (scores <= high)
        if known.any() and on_scale.sum() >= NEARLY_ALL * known.sum():
            seen.tell("score-out-of-range", np.flatnonzero(known & ~on_scale), kind, findings)
            return


def _check_labels(seen: Rows, findings: Findings) -> None:
    where = seen.sources[0].name
    if len(seen.labels) == 1 < len(seen.texts):
        findings.add("one-label", where, *seen.labels)
    if TRAIN in seen.splits and len(seen.splits) > 1:
        train = list(seen.splits).index(TRAIN)
        lonely = [label for label, counts in seen.labels.items() if train not in counts or len(counts) == 1]
        examples = [(where, f"{label} ({_counts(seen, label)})") for label in sorted(lonely)]
        findings.add_all("label-in-one-split", len(lonely), examples)
    if seen.labels and all(label.isdecimal() and len(label) < 19 for label in seen.labels):
        numbers = {int(label) for label in seen.labels}
        gaps = sorted(set(range(min(*numbers, 1), max(numbers))) - numbers) if max(numbers) < 2 * len(numbers) else []
        findings.add_all("label-gap", len(gaps), [(where, str(gap)) for gap in gaps])


def _counts(seen: Rows, label: str) -> str:
    names = list(seen.splits)
    return ", ".join(f"{names[split]}: {count}" for split, count in sorted(seen.labels[label].items()))


def _check_repeated(seen: Rows, kind: str, findings: Findings) -> None:
    with np.errstate(over="ignore"):
        first = first_places(seen.texts + seen.split_of * MIX)
    again = (first != np.arange(len(first))) & (seen.texts != text_key(""))
    other = again & (seen.answers != seen.answers[first])
    seen.tell("duplicate-row", np.flatnonzero(again & ~other), kind, findings)
    seen.tell("conflicting-labels", np.flatnonzero(other), kind, findings)


def _check_splits(seen: Rows, kind: str, findings: Findings) -> None:
    if TRAIN not in seen.splits:
        return
    texts = {split: seen.texts[seen.split_of == number] for number, split in enumerate(seen.splits)}
    for split, source in seen.splits.items():
        if split == TRAIN:
            continue
        if np.isin(texts[split], texts[TRAIN]).all():
            findings.add("split-copied", source.name, f"the {len(texts[split])} rows of {split} stand in {TRAIN}")
            continue
        train = SplitTexts(seen.splits[TRAIN], TRAIN, kind)
        check_leak(SplitTexts(source, split, kind), train, findings)
