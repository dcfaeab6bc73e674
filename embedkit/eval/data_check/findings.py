"""What a check can find, in the order in which it is told, and where it was found."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from embedkit.limits import GRADE

EXAMPLES = 3  # shown of each kind


class Kind(NamedTuple):
    what: str  # behind their number
    fix: str


KINDS = {
    # files
    "not-utf8": Kind("lines that are not UTF-8", "convert the file, for example with: iconv -f LATIN1 -t UTF-8"),
    "byte-order-mark": Kind(
        "files that begin with a byte order mark, which others read as part of the first name",
        "save as UTF-8 without it",
    ),
    "unreadable-row": Kind(
        "rows that cannot be read: no JSON object, or other columns than the header", "mend or remove them"
    ),
    "missing-field": Kind(
        "rows without an id, text, score or label, or with one of the wrong type", "fill them or remove the rows"
    ),
    "id-characters": Kind(
        "ids that are empty or hold white space or control characters, which no TREC run can hold",
        "rename them, in the judgements too",
    ),
    # texts
    "empty-document": Kind("documents without text", "remove them, or fill them"),
    "empty-query": Kind("queries without text", "remove them with their judgements"),
    "empty-text": Kind("rows with an empty text", "remove or fill them"),
    "mojibake": Kind(
        "texts whose UTF-8 was once read as Latin-1 (é became Ã©)",
        "make them again from the source, or repair them with ftfy",
    ),
    "control-characters": Kind("texts with control characters, or half of a character", "remove these"),
    "replacement-character": Kind(
        "texts with U+FFFD, which stands where characters were lost", "make them again from the source"
    ),
    # ids and duplicates
    "duplicate-document-id": Kind(
        "documents whose id came before", "give each an id of its own; most programs keep the last one in silence"
    ),
    "duplicate-query-id": Kind("queries whose id came before", "give each an id of its own"),
    "duplicate-document": Kind(
        "documents whose text came before: at most one of them is judged, as a rule", "keep one, or judge all alike"
    ),
    "duplicate-query": Kind(
        "queries whose text came before: they count twice, or differently",
        "merge them with their judgements, as mteb does",
    ),
    "duplicate-row": Kind("rows that came before in their split: they count twice", "keep one of each"),
    "conflicting-labels": Kind("rows whose text came before with another label or score", "decide which holds"),
    # judgements
    "missing-header": Kind(
        "files of judgements without a header, whose first judgement others take for it",
        "put query-id<TAB>corpus-id<TAB>score above",
    ),
    "carriage-return": Kind(
        "lines of judgements that end in a carriage return, which others take as part of the grade",
        "convert the file with: dos2unix",
    ),
    "unreadable-judgement": Kind(
        "judgements that are not three columns with a grade", "write query id, document id and grade, with tabs between"
    ),
    "float-grade": Kind(
        "grades that are not written as whole numbers, which others cut or refuse", "write whole numbers"
    ),
    "negative-grade": Kind("grades below 0, which count as 0", "write 0, or remove them"),
    "large-grade": Kind(
        f"grades beyond {GRADE:,}, which `embedkit eval` refuses and trec_eval takes hours for",
        "see whether it is the right column",
    ),
    "duplicate-judgement": Kind(
        "judgements of a pair that was judged before; `embedkit eval` refuses them where the grades differ",
        "keep one of each",
    ),
    "orphan-query": Kind("judged queries that are not in queries.jsonl", "add them, or remove their judgements"),
    "orphan-document": Kind(
        "judged documents that are not in corpus.jsonl: nothing can find them", "add them, or remove their judgements"
    ),
    "unjudged-query": Kind("queries that no split judges: they are never used", "remove them, or judge them"),
    "query-without-relevant": Kind(
        "judged queries without a relevant document: they are left out of every score",
        "judge a document relevant, or remove them",
    ),
    # the query itself
    "self-retrieval": Kind(
        "queries whose text is that of a document which is not judged for them: it will be found first",
        "judge it, remove it, or say ignore_identical_ids: true in task.yaml where the ids are equal",
    ),
    "id-clash": Kind(
        "queries whose id is that of a relevant document with another text: programs that ignore identical ids (BEIR's do) lose it",
        "rename one side, for example to d1, d2 and so on",
    ),
    # splits
    "split-copied": Kind("splits that stand wholly in train", "make a split of its own"),
    "query-in-two-splits": Kind("queries that train judges too", "keep each in one split"),
    "duplicate-across-splits": Kind("texts of a split that stand in train, word by word", "remove them from train"),
    "near-duplicate-across-splits": Kind(
        "texts of a split that stand in train, lightly edited", "look at them, and remove them from train"
    ),
    "label-in-one-split": Kind(
        "labels that stand in train only, or not in train: nothing can be learned or measured of them",
        "split again, or drop the label",
    ),
    # labels and scores
    "one-label": Kind(
        "files whose labels are all the same: there is nothing to tell apart", "add rows of another label"
    ),
    "label-gap": Kind(
        "labels that are missing in a row of whole numbers", "see whether a class was lost, or number them from 0 on"
    ),
    "bad-label": Kind(
        "labels that are no text and no whole number, or, of pairs, neither 0 nor 1",
        "write them, or choose another type",
    ),
    "bad-score": Kind("scores that are no finite numbers", "fill them or remove the rows"),
    "score-out-of-range": Kind("scores outside the scale of nearly all others", "mend them"),
    "same-both-sides": Kind(
        "pairs whose translation is the text itself", "remove them: they are found by their letters"
    ),
    "positive-is-negative": Kind("queries with a text among both their positives and negatives", "decide which holds"),
    "nothing-to-rank": Kind(
        "queries without a positive or without a negative: mteb leaves them out", "remove or complete them"
    ),
}


@dataclass(frozen=True)
class Finding:
    """Something wrong, how often and where, and what to do."""

    name: str  # a key of KINDS
    count: int
    evidence: str
    fix: str


class Findings:
    """What was found so far: a count and the first examples of each kind."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    def add(self, name: str, where: str, shown: str = "") -> None:
        """where: file and line. shown: what stands there."""
        self.add_all(name, 1, [(where, shown)])

    def add_all(self, name: str, count: int, examples: Sequence[tuple[str, str]]) -> None:
        """So many at once, of which the first are shown; `room` says how many are wanted."""
        if count:
            self._counts[name] = self._counts.get(name, 0) + count
            kept = self._examples.setdefault(name, [])
            kept += [f"{where}: {_short(shown)}" if shown else where for where, shown in examples[: self.room(name)]]

    def room(self, name: str) -> int:
        """How many examples are still wanted."""
        return EXAMPLES - len(self._examples.get(name, []))

    def found(self) -> list[Finding]:
        """In the order of KINDS."""
        return [
            Finding(name, self._counts[name], self._evidence(name), f"{fix[0].upper()}{fix[1:]}.")
            for name, (_, fix) in KINDS.items()
            if name in self._counts
        ]

    def _evidence(self, name: str) -> str:
        count, examples = self._counts[name], self._examples[name]
        more = "; ..." if count > len(examples) else ""
        return f"{count:,} {KINDS[name].what}: {'; '.join(examples)}{more}"


def _short(text: str) -> str:
    line = text[:400].translate(dict.fromkeys(map(ord, "\t\n\r"), " "))
    shown = "".join(one if one.isprintable() else f"\\u{ord(one):04x}" for one in line)
    return textwrap.shorten(shown, 70, placeholder=" ...")
