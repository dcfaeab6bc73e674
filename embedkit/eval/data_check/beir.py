"""A BEIR folder: corpus, queries, and the judgements of every split."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from embedkit.corpus.beir import find, header_order, is_matchable, tabbed
from embedkit.corpus.formats import finite_number
from embedkit.errors import UsageError
from embedkit.eval.data_check.findings import Findings
from embedkit.eval.data_check.reading import Source, key_of
from embedkit.eval.data_check.splits import TRAIN, check_leak
from embedkit.eval.data_check.texts import MIX, Keys, Places, Texts, among, repeated
from embedkit.limits import GRADE


@dataclass
class Judgements:
    """Those of one split: 25 bytes for each."""

    source: Source
    split: str
    _queries: array[int] = field(default_factory=lambda: array("Q"))
    _documents: array[int] = field(default_factory=lambda: array("Q"))
    _relevant: array[int] = field(default_factory=lambda: array("b"))
    _lines: array[int] = field(default_factory=lambda: array("I"))

    @property
    def queries(self) -> Keys:
        return np.frombuffer(self._queries, dtype=np.uint64)

    @property
    def documents(self) -> Keys:
        return np.frombuffer(self._documents, dtype=np.uint64)

    @property
    def relevant(self) -> np.ndarray:
        return np.frombuffer(self._relevant, dtype=np.int8) > 0

    @property
    def pairs(self) -> Keys:
        return pair_keys(self.queries, self.documents)

    def read(self, findings: Findings) -> None:
        order: Sequence[int] = (0, 1, 2)
        for line, text in self.source.lines(findings):
            where = self.source.at(line)
            bare = text.rstrip("\n")
            if bare.endswith("\r"):
                findings.add("carriage-return", where)
                bare = bare[:-1]
            columns = tabbed(bare)
            if line == 1:
                order = header_order(columns)
            query, document, written = (columns[place] for place in order) if len(columns) == 3 else ("", "", "")
            grade = finite_number(written)
            if line == 1:
                if grade is None:
                    continue
                findings.add("missing-header", where, bare)
            if grade is None:
                if bare.strip():
                    findings.add("unreadable-judgement", where, bare)
                continue
            if not written.strip().lstrip("+-").isdigit():
                findings.add("float-grade", where, bare)
            if grade < 0:
                findings.add("negative-grade", where, bare)
            if abs(grade) > GRADE:
                findings.add("large-grade", where, bare)
            if not (is_matchable(query) and is_matchable(document)):
                findings.add("id-characters", where, repr([query, document]))
            self._queries.append(key_of(query))
            self._documents.append(key_of(document))
            self._relevant.append(grade > 0)
            self._lines.append(line)

    def tell(self, name: str, places: Places, findings: Findings) -> None:
        """A finding for the judgements at these places."""
        wanted = {self._lines[place] for place in places[: findings.room(name)]}
        lines = self.source.lines(Findings()) if wanted else ()
        shown = [(self.source.at(line), text.strip().replace("\t", " ")) for line, text in lines if line in wanted]
        findings.add_all(name, len(places), shown)


def pair_keys(queries: Keys, documents: Keys) -> Keys:
    with np.errstate(over="ignore"):
        keys: Keys = (queries * MIX) ^ documents
    return keys


def check_beir(folder: Path, prefix: str, findings: Findings) -> None:
    """prefix: in front of the names of files, where the folder is one of several."""
    queries = Texts(_source(folder, "queries.jsonl", prefix), "query")
    documents = Texts(_source(folder, "corpus.jsonl", prefix), "document")
    files = sorted(path for path in (folder / "qrels").glob("*.tsv*") if path.name.endswith((".tsv", ".tsv.gz")))
    if not files:
        raise UsageError(f"{folder} has no judgements; expected qrels/SPLIT.tsv.")
    splits = [Judgements(Source(path, f"{prefix}qrels/{path.name}"), path.name.split(".tsv")[0]) for path in files]
    for texts in (documents, queries):
        texts.read(findings)
        texts.check_repeated(findings)
    for split in splits:
        split.read(findings)
        _check_split(split, queries, documents, findings)
    judged = np.concatenate([split.queries for split in splits])
    queries.tell("unjudged-query", np.flatnonzero(~np.isin(queries.ids, judged)), findings)
    _check_the_query_itself(splits, queries, documents, findings)
    _check_across_splits(splits, queries, findings)


def _source(folder: Path, name: str, prefix: str) -> Source:
    path = find(folder, name)
    return Source(path, f"{prefix}{path.name}")


def _check_split(split: Judgements, queries: Texts, documents: Texts, findings: Findings) -> None:
    split.tell("duplicate-judgement", repeated(split.pairs), findings)
    first = np.sort(np.unique(split.queries, return_index=True)[1])  # one judgement a query
    unknown = ~np.isin(split.queries, queries.ids)
    split.tell("orphan-query", first[unknown[first]], findings)
    lost = np.unique(split.documents, return_index=True)[1]
    split.tell("orphan-document", np.sort(lost[~np.isin(split.documents[lost], documents.ids)]), findings)
    answered = split.queries[split.relevant]
    split.tell("query-without-relevant", first[~np.isin(split.queries[first], answered)], findings)


def _check_the_query_itself(splits: list[Judgements], queries: Texts, documents: Texts, findings: Findings) -> None:
    """Queries whose own text, or whose id, is in the corpus."""
    judged = np.unique(np.concatenate([split.pairs for split in splits]))
    relevant = np.unique(np.concatenate([split.pairs[split.relevant] for split in splits]))
    known = np.unique(np.concatenate([split.queries for split in splits]))
    if not len(judged):
        return
    twins = np.concatenate([_same_text(queries, keys) for keys in (documents.wholes, documents.bodies)], axis=1)
    unjudged = ~among(pair_keys(queries.ids[twins[0]], documents.ids[twins[1]]), judged)
    alone = np.unique(twins[0, unjudged & among(queries.ids[twins[0]], known)])
    queries.tell("self-retrieval", alone, findings)
    _, ours, theirs = np.intersect1d(queries.ids, documents.ids, return_indices=True)
    wrong = np.isin(pair_keys(queries.ids[ours], documents.ids[theirs]), relevant)
    wrong &= (queries.wholes[ours] != documents.wholes[theirs]) & (queries.wholes[ours] != documents.bodies[theirs])
    queries.tell("id-clash", np.sort(ours[wrong]), findings)


def _same_text(queries: Texts, keys: Keys) -> np.ndarray:
    """(2, n) places of queries and of documents with their text, whose keys these are."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    low, high = (np.searchsorted(ordered, queries.wholes, side) for side in ("left", "right"))
    counts = np.where(queries.wholes == 0, 0, high - low)  # 0: no text
    places = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([places, order[low[places] + within]])


def _check_across_splits(splits: list[Judgements], queries: Texts, findings: Findings) -> None:
    """train beside each of the others."""
    train = next((split for split in splits if split.split == TRAIN), None)
    for split in splits:
        if train is None or split is train or not len(split.queries):
            continue
        if np.isin(split.pairs, train.pairs).all():
            findings.add("split-copied", split.source.name, f"its {len(split.pairs)} judgements stand in {TRAIN}")
            continue
        shared = np.isin(split.queries, train.queries)
        first = np.sort(np.unique(split.queries, return_index=True)[1])
        split.tell("query-in-two-splits", first[shared[first]], findings)
        ours, theirs = (set(keys.tolist()) for keys in (split.queries[~shared], train.queries))
        check_leak(queries.texts_of(ours), queries.texts_of(theirs), findings)
