"""From scored rows to ranked hits: passages become documents, equal scores are ordered as trec_eval does, by the larger id."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from embedkit.types import Array, Rows, Vectors

Group = Literal["best", "mean"]
Names = Callable[[Rows], list[str]]  # keys (n,) -> ids


class Ranked(NamedTuple):
    """Best first; keys -1 and scores -inf where a query found less."""

    scores: Vectors  # (q, k)
    keys: Rows  # (q, k) rows or documents
    rows: Rows  # (q, k) the row that each was found by

    def where(self, kept: Array) -> Ranked:
        """Without the places that are False in `kept` (q, k)."""
        return Ranked(
            np.where(kept, self.scores, np.float32(-np.inf)),
            np.where(kept, self.keys, -1),
            np.where(kept, self.rows, -1),
        )

    def at(self, order: Rows) -> Ranked:
        """The places (q, m) of each query, in that order."""
        scores, keys, rows = (np.take_along_axis(part, order, axis=1) for part in (self.scores, self.keys, self.rows))
        return Ranked(scores.astype(np.float32, copy=False), keys.astype(np.int64), rows.astype(np.int64))


def best_of(scores: Sequence[Vectors], rows: Sequence[Rows], size: int) -> tuple[Vectors, Rows]:
    """Several lists of scored rows, each (q, m) and best first, as one of at most `size`; scores -inf where rows are -1."""
    if len(scores) == 1:
        only = rows[0][:, :size]
        if -1 not in only[:, -1:]:  # what is missing stands last
            return scores[0][:, :size], only
        return np.where(only < 0, np.float32(-np.inf), scores[0][:, :size]), only
    all_scores, all_rows = np.concatenate(scores, axis=1), np.concatenate(rows, axis=1)
    all_scores = np.where(all_rows < 0, np.float32(-np.inf), all_scores)
    order = np.argsort(-all_scores, axis=1, kind="stable")[:, :size]
    return np.take_along_axis(all_scores, order, axis=1), np.take_along_axis(all_rows, order, axis=1)


def grouped(scores: Vectors, rows: Rows, documents: Callable[[Rows], Rows]) -> Ranked:
    """Each document once, by its best row, which stands first. scores, rows: (q, m), best first."""
    keys = np.full(rows.shape, -1, dtype=np.int64)
    keys[rows >= 0] = documents(rows[rows >= 0])
    found = [_first_of_each(row) for row in keys]
    width = max(map(len, found), default=0)
    places = np.full((len(rows), width), -1, dtype=np.int64)
    for number, place in enumerate(found):
        places[number, : len(place)] = place
    return Ranked(scores, keys, rows).at(np.maximum(places, 0)).where(places >= 0)


def _first_of_each(keys: Rows) -> Rows:
    real = keys[keys >= 0]
    first: Rows = np.sort(np.unique(real, return_index=True)[1])
    return first


def cut(ranked: Ranked, k: int, names: Names) -> Ranked:
    """The k best, with ties in order. ranked: best first."""
    tied = _tied(ranked.scores, k)
    if len(tied):
        order = np.tile(np.arange(ranked.keys.shape[1]), (len(ranked.keys), 1))
        order[tied] = _by_id(ranked.scores[tied], ranked.keys[tied], names)
        ranked = ranked.at(order)
    return Ranked(ranked.scores[:, :k], ranked.keys[:, :k], ranked.rows[:, :k])


def _tied(scores: Vectors, k: int) -> Sequence[int] | Rows:
    """The queries of whose first k + 1 scores two are equal."""
    first = scores[:, : k + 1]
    if len(first) == 1 and len(set(first[0].tolist())) == first.shape[1]:
        return ()  # one query has a hundred microseconds in all
    return np.flatnonzero(((first[:, :-1] == first[:, 1:]) & (first[:, 1:] > -np.inf)).any(axis=1))


def _by_id(scores: Vectors, keys: Rows, names: Names) -> Rows:
    """(q, m) the order of each query's places."""
    ids = np.full(keys.shape, "", dtype=object)
    ids[keys >= 0] = names(keys[keys >= 0])
    width = range(keys.shape[1])
    pairs = (list(zip(*row, strict=True)) for row in zip(scores.tolist(), ids.tolist(), strict=True))
    return np.array([sorted(width, key=row.__getitem__, reverse=True) for row in pairs])
