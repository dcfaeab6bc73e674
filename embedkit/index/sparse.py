"""The sparse leg of one version of an index: scores of all documents by the terms that they share with a query.

BM25 as Lucene computes it (Robertson et al. 1994; Kamphuis et al. 2020, "Lucene (accurate)"):

    sum over the terms t of the query, each as often as it stands there:
        ln(1 + (N - n_t + 0.5) / (n_t + 0.5)) * f / (f + k1 * (1 - b + b * length / mean length))

N, n_t and the mean length are of the documents that are there in this version and hold any term, over all segments: how they were
added, and what was deleted since, does not show. Learned weights are multiplied and summed (the dot product). A document without
a common term is no hit. Texts are scored whole, also where the dense leg has several passages of them.

Cost: a pass over the entries of the query's terms, at some 10 ns each, and over one number a document.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from embedkit.errors import IntegrityError, UsageError
from embedkit.index.lifetimes import remembered
from embedkit.index.manifest import Sparse
from embedkit.index.postings import LOOKED_UP, Postings
from embedkit.index.segment import Segment
from embedkit.index.tokens import Analyzer
from embedkit.types import Array, Rows

RUN = 128  # documents whose best score is looked at together
Weights = Mapping[str, float]  # of the terms of a query


class Term(NamedTuple):
    """What is known of a term in all segments."""

    numbers: tuple[int, ...]  # in each segment, -1 where it has none
    factor: float  # that its weights are multiplied with; 0 where no document that is there holds it


class SparseLeg:
    """Opened for reading, from several threads at once."""

    def __init__(self, segments: Sequence[Segment], sparse: Sparse) -> None:
        self.segments, self.sparse = segments, sparse
        self._postings: list[Postings] = [segment.postings(sparse) for segment in segments]
        self._norms: list[Array] | None = None
        if sparse.bm25 is not None:
            try:
                self._analyzer = Analyzer(sparse.bm25)
            except UsageError as error:
                raise IntegrityError(f"The index was built with settings of another version: {error}") from None
            self._norms = self._length_norms()
        self._terms: dict[str, Term] = {}

    def _length_norms(self) -> list[Array]:
        """Of each segment (documents,) k1 * (1 - b + b * length / mean length)."""
        assert self.sparse.bm25 is not None
        k1, b = self.sparse.bm25.k1, self.sparse.bm25.b
        lengths = [np.asarray(part.lengths, np.float64) for part in self._postings]
        alive = [
            part if segment.alive is None else part[segment.alive]
            for part, segment in zip(lengths, self.segments, strict=True)
        ]
        self._documents = sum(int(np.count_nonzero(part)) for part in alive)
        mean = sum(float(part.sum()) for part in alive) / max(self._documents, 1)
        return [np.float32(k1 * (1 - b)) + (k1 * b / max(mean, 1) * part).astype(np.float32) for part in lengths]

    def asked(self, text: str) -> Weights:
        """The terms of a text, and how often each stands there. Only for BM25."""
        return Counter(self._analyzer.terms(text))

    def scores(self, query: Weights) -> Array:
        """float32 (documents,) of all segments, 0 where no term is common; of deleted documents, too."""
        terms = [(self._term(name), weight) for name, weight in query.items()]
        found = [self._segment_scores(place, terms) for place in range(len(self.segments))]
        return found[0] if len(found) == 1 else np.concatenate([np.zeros(0, np.float32), *found])

    def _segment_scores(self, place: int, terms: Sequence[tuple[Term, float]]) -> Array:
        postings, found = self._postings[place], []
        for term, weight in terms:
            if term.factor and term.numbers[place] >= 0:
                documents, weights = postings.entries(term.numbers[place])
                found.append((documents, weights, term.factor * weight))
        if not found:
            return np.zeros(postings.documents, np.float32)
        documents = np.concatenate([part[0] for part in found])
        worth = self._worth(place, documents, np.concatenate([part[1] for part in found]))
        worth *= np.repeat(np.array([part[2] for part in found], np.float32), [len(part[0]) for part in found])
        summed: Array = np.bincount(documents, worth, minlength=postings.documents)
        return summed.astype(np.float32)

    def _worth(self, place: int, documents: Array, weights: Array) -> Array:
        """What entries add to a score, but for the factor of their term."""
        worth: Array = weights.astype(np.float32)
        if self._norms is not None:
            worth /= worth + self._norms[place][documents]
        return worth

    def carried(self, query: Weights, place: int, document: int) -> dict[str, float]:
        """What each term of the query adds to the score of a document of a segment, the largest first."""
        found = {}
        for name, weight in query.items():
            term = self._term(name)
            if not term.factor or term.numbers[place] < 0:
                continue
            documents, weights = self._postings[place].entries(term.numbers[place])
            at = int(np.searchsorted(documents, document))
            if at < len(documents) and documents[at] == document:
                worth = self._worth(place, documents[at : at + 1], weights[at : at + 1])
                found[name] = float(worth[0]) * term.factor * weight
        return dict(sorted(found.items(), key=lambda pair: -pair[1]))

    def _term(self, name: str) -> Term:
        return remembered(self._terms, LOOKED_UP, name, self._looked_up)

    def _looked_up(self, name: str) -> Term:
        numbers = tuple(postings.number(name) for postings in self._postings)
        if self._norms is None:
            return Term(numbers, 1.0)
        holding = sum(map(self._alive_documents, range(len(numbers)), numbers))
        idf = math.log(1 + (self._documents - holding + 0.5) / (holding + 0.5)) if holding else 0.0
        return Term(numbers, idf)

    def _alive_documents(self, place: int, number: int) -> int:
        """That hold a term."""
        if number < 0:
            return 0
        alive = self.segments[place].alive
        if alive is None:
            return self._postings[place].count(number)
        return int(np.count_nonzero(alive[self._postings[place].entries(number)[0]]))


def best(scores: Array, k: int) -> Rows:
    """The documents of the k best scores over 0, with all that tie with the last of them, in no order. scores: (documents,)."""
    # the k-th best of the best scores of runs is no better than the k-th best of all; a partition of so many zeros takes 9 ms
    tops = np.sort(np.maximum.reduceat(scores, np.arange(0, len(scores), RUN))) if len(scores) else scores
    bound = tops[-k] if 0 < k <= len(tops) else 0.0
    found = np.flatnonzero(scores >= bound) if bound > 0 else np.flatnonzero(scores)
    if len(found) <= k:
        return found
    own = scores[found]
    tied: Rows = found[own >= np.sort(own)[-k]]
    return tied
