"""Training texts that stand in evaluation sets, left out and counted."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from embedkit.corpus.beir import find, read_qrels, read_queries
from embedkit.corpus.formats import file_rows
from embedkit.errors import DataError, UsageError
from embedkit.train.data import Task
from embedkit.train.settings import from_environment

WORD = re.compile(r"\w+")
logger = logging.getLogger(__name__)


def plain(text: str) -> str:
    """The words of a text, in one case: "It's so, twice." and "it 's so twice" are one."""
    return " ".join(WORD.findall(text.casefold()))


def evaluation_texts(path: Path) -> Iterator[str]:
    """The queries of a BEIR folder that are judged in another split than "train", and none of its documents, which are there to
    be searched and may be trained on; of any other file or folder all texts of all rows, those of lists too."""
    if (path / "qrels").is_dir():
        queries = read_queries(find(path, "queries.jsonl"))
        splits = {one.name.partition(".")[0] for one in (path / "qrels").glob("*.tsv*")} - {"train"}
        judged = {query for split in splits for query in read_qrels(path, split)}
        yield from (text for query, text in queries.items() if query in judged)
        return
    files = [path] if path.is_file() else sorted(one for one in path.glob("data.*"))
    if not files:
        raise UsageError(f"{path} is named in leaks, and no evaluation set is there; expected a file or a BEIR folder.")
    for file in files:
        for _, row in file_rows(file):
            for value in row.values():
                yield from (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str))


def _all_texts(paths: Iterable[str]) -> Iterator[str]:
    for written in paths:
        with from_environment(written) as path:
            yield from evaluation_texts(Path(path))


class Leaks:
    """The texts of evaluation sets, to be asked for those that are the same or nearly so.

    Nearly: the Jaccard similarity of the sets of words is at least `nearness`. None is missed: two sets that are so near share one
    of their |x| - ceil(nearness * |x|) + 1 rarest words (prefix filtering, Bayardo et al. 2007). Texts of fewer than `least`
    words must be the same.
    """

    def __init__(self, texts: Iterable[str], *, nearness: float = 0.8, least: int = 4) -> None:
        self._nearness, self._least = nearness, least
        self._plain = {plain(text) for text in texts} - {""}
        self._sets = [words for one in self._plain if len(words := frozenset(one.split())) >= least]
        self._counts = Counter(word for words in self._sets for word in words)
        self._index: dict[str, list[int]] = defaultdict(list)
        for number, words in enumerate(self._sets):
            for word in self._prefix(words):
                self._index[word].append(number)

    def _prefix(self, words: frozenset[str]) -> list[str]:
        rarest = sorted(words, key=lambda word: (self._counts[word], word))
        return rarest[: len(rarest) - math.ceil(self._nearness * len(rarest) - 1e-9) + 1]

    def holds(self, text: str) -> str | None:
        """ "exact", "near", or None for a text that stands in no evaluation set."""
        one = plain(text)
        if one in self._plain:
            return "exact"
        words = frozenset(one.split())
        if len(words) < self._least:
            return None
        candidates = {number for word in self._prefix(words) for number in self._index.get(word, ())}
        near = (len(words & (other := self._sets[i])) >= self._nearness * len(words | other) for i in candidates)
        return "near" if any(near) else None


def without_leaks(tasks: Sequence[Task], paths: Sequence[str]) -> list[Task]:
    """The tasks without the examples of which any text leaks; a log line and `Task.leaked` count them.

    Raises DataError where a task has none left.
    """
    leaks = Leaks(_all_texts(paths))
    verdicts: dict[str, str | None] = {}
    kept = []
    for task in tasks:
        counts = {"exact": 0, "near": 0}
        examples = []
        for example in task.examples:
            for text in example.texts:
                if text not in verdicts:
                    verdicts[text] = leaks.holds(text)
            found = {verdicts[text] for text in example.texts} - {None}
            if found:
                counts["exact" if "exact" in found else "near"] += 1
            else:
                examples.append(example)
        logger.info(
            "%s: of %d examples %d hold a text of an evaluation set and %d one that is nearly so; left out.",
            task.name,
            len(task.examples),
            counts["exact"],
            counts["near"],
        )
        if not examples:
            raise DataError(
                f"All examples of {task.name} stand in the evaluation sets that leaks names; give other data."
            )
        kept.append(replace(task, examples=examples, leaked=counts))
    return kept
