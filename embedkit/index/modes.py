"""Search by the sparse leg alone, and by both legs.

Hybrid search takes the best candidates of either leg, gives each its exact score by the fine rows and by the postings, and fuses
these. Both legs score documents: a candidate's dense score is that of its best passage, or the mean over its passages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from embedkit.errors import UsageError
from embedkit.index.fusion import Fusion, ranks
from embedkit.index.ranking import Group, Ranked, cut
from embedkit.index.snapshot import Asked, Snapshot
from embedkit.index.sparse import Weights, best
from embedkit.index.where import Where
from embedkit.types import Array, Rows, Vectors

CANDIDATES = 100  # of each leg, at least
Mode = Literal["dense", "sparse", "hybrid"]
MODES: tuple[str, ...] = get_args(Mode)
Explain = Callable[
    [Ranked], list[dict[str, Any]]
]  # what is known of each hit, those of all queries one after the other


class Ready(NamedTuple):
    """The queries of a search, read and checked; those of a leg that is not asked are None."""

    vectors: Vectors | None  # as they are compared
    weights: Sequence[Weights] | None
    own: Sequence[str]  # documents that are left out, each of its own hits

    @property
    def queries(self) -> int:
        """How many."""
        return len(self.weights or ()) if self.vectors is None else len(self.vectors)


class Candidates(NamedTuple):
    """Of one query."""

    keys: Rows  # (m,) documents
    rows: Rows  # (m,) the row of each that the query is closest to
    dense: Array  # float32 (m,)
    sparse: Array  # float32 (m,)


def check_mode(mode: str, group: Group | None, like: str | Sequence[str] | None) -> None:
    """Raises UsageError for a mode that is none, or that cannot do what is asked."""
    if mode not in MODES:
        raise UsageError(f"mode={mode!r} came; expected {', '.join(MODES)}.")
    if mode != "dense" and group is None:
        raise UsageError(f"mode={mode!r} ranks documents; passages (group=None) are what the dense leg has.")
    if mode != "dense" and like is not None:
        raise UsageError(f"like= is answered by the dense leg; leave mode={mode!r} out.")


def found(snapshot: Snapshot, ready: Ready, k: int, asked: Asked, fusion: Fusion) -> tuple[Ranked, Explain]:
    """The k best of each query by the legs that are asked, and what explains them."""
    vectors, weights = ready.vectors, ready.weights
    if vectors is None:
        assert weights is not None
        ranked = search_sparse(snapshot, weights, k, asked.where)
        return ranked, lambda hits: explained(snapshot, hits, weights)
    if weights is not None:
        ranked, candidates = search_hybrid(snapshot, vectors, weights, k, asked, fusion)
        return ranked, lambda hits: explained(snapshot, hits, weights, candidates, snapshot.coarse(vectors, k, asked))
    own = ready.own
    spare = 0 if not own else 1 if asked.group else snapshot.most_rows(own)
    ranked = snapshot.search(vectors, k + spare, asked)
    if own:
        ranked = snapshot.without(ranked, own, k, asked.group)
    return ranked, lambda hits: snapshot.explained(hits, snapshot.coarse(vectors, k, asked))


def search_sparse(snapshot: Snapshot, queries: Sequence[Weights], k: int, where: Where | None) -> Ranked:
    """The k best documents of each query by the sparse leg; ties go to the larger id."""
    leg, mask = snapshot.sparse(), snapshot.passing(where)
    lists = []
    for query in queries:
        scores = _masked(leg.scores(query), mask)
        keys = best(scores, k)
        keys = keys[np.argsort(-scores[keys], kind="stable")]
        # cut at once: thousands may tie
        lists.append(cut(Ranked(scores[keys][None], keys[None], keys[None]), k, snapshot.document_ids))
    found = _padded([one.scores[0] for one in lists], -np.inf, np.float32)
    keys = _padded([one.keys[0] for one in lists], -1, np.int64)
    return Ranked(found, keys, snapshot.first_rows(keys))


def search_hybrid(
    snapshot: Snapshot, vectors: Vectors, queries: Sequence[Weights], k: int, asked: Asked, fusion: Fusion
) -> tuple[Ranked, list[Candidates]]:
    """The k best documents of each query by both legs, and what they were chosen from. vectors, queries: of the same queries."""
    candidates = hybrid_candidates(snapshot, vectors, queries, k, asked)
    scores, keys, rows = [], [], []
    for some in candidates:
        fused = fusion.of(some.dense, some.sparse)
        order = np.argsort(-fused, kind="stable")
        scores.append(fused[order])
        keys.append(some.keys[order])
        rows.append(some.rows[order])
    ranked = Ranked(_padded(scores, -np.inf, np.float32), _padded(keys, -1, np.int64), _padded(rows, -1, np.int64))
    return cut(ranked, k, snapshot.document_ids), candidates


def hybrid_candidates(
    snapshot: Snapshot, vectors: Vectors, queries: Sequence[Weights], k: int, asked: Asked
) -> list[Candidates]:
    """Of each query the best of either leg, scored by both."""
    leg, mask = snapshot.sparse(), snapshot.passing(asked.where)
    depth = max(k, CANDIDATES)
    candidates = []
    for vector, query, dense in zip(vectors, queries, snapshot.search(vectors, depth, asked).keys, strict=True):
        scores = leg.scores(query)
        keys = np.union1d(dense[dense >= 0], best(_masked(scores, mask), depth))
        exact, rows = snapshot.exact(vector, keys, asked.group)
        candidates.append(Candidates(keys, rows, exact, scores[keys]))
    return candidates


def explained(
    snapshot: Snapshot,
    ranked: Ranked,
    queries: Sequence[Weights],
    candidates: Sequence[Candidates] | None = None,
    coarse: Sequence[Mapping[int, tuple[int, float]]] = (),
) -> list[dict[str, Any]]:
    """What each leg says of each hit, the hits of all queries one after the other. candidates, coarse: of a hybrid search."""
    leg, said = snapshot.sparse(), []
    for place, query in enumerate(queries):
        some = None if candidates is None else candidates[place]
        hits = zip(ranked.keys[place].tolist(), ranked.rows[place].tolist(), ranked.scores[place].tolist(), strict=True)
        for rank, (key, row, score) in enumerate((hit for hit in hits if hit[0] >= 0), 1):
            number, base = snapshot.segment_of(key)
            terms = leg.carried(query, number, key - base)
            one = {"sparse": {"rank": rank, "score": score, "terms": terms}}
            if some is not None:
                one = _by_both(some, key, coarse[place].get(row), terms)
            said.append({**one, "segment": snapshot.segments[number].record.number})
    return said


def _by_both(
    some: Candidates, key: int, by_codes: tuple[int, float] | None, terms: Mapping[str, float]
) -> dict[str, Any]:
    """Ranks are among the candidates; a document without a common term has none of the sparse leg."""
    at = int(np.searchsorted(some.keys, key))
    fine, sparse = (
        {"rank": int(ranks(scores)[at]), "score": float(scores[at])} for scores in (some.dense, some.sparse)
    )
    return {
        "fine": fine,
        "coarse": None if by_codes is None else {"rank": by_codes[0], "score": by_codes[1]},
        "sparse": {**sparse, "terms": terms} if terms else None,
    }


def _masked(scores: Array, mask: Array | None) -> Array:
    return scores if mask is None else scores * mask


def _padded(parts: Sequence[Array], fill: float, dtype: type) -> Array:
    """(q, longest)"""
    whole: Array = np.full((len(parts), max(map(len, parts), default=0)), fill, dtype)
    for place, part in enumerate(parts):
        whole[place, : len(part)] = part
    return whole
