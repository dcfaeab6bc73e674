"""What a search returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from embedkit.index.ranking import Group, Ranked
from embedkit.index.snapshot import Snapshot
from embedkit.types import Hits, Vectors


def _split(values: list[Any], counts: Sequence[int]) -> list[list[Any]]:
    """The values of each query, of which there are so many."""
    found, start = [], 0
    for count in counts:
        found.append(values[start : start + count])
        start += count
    return found


def as_hits(
    snapshot: Snapshot,
    ranked: Ranked,
    k: int,
    group: Group | None,
    documents: bool,
    explanations: list[dict[str, Any]] | None,
    *,
    passages: bool,
) -> Hits:
    """Ids, documents and what else is known of the keys of a search for k. passages: where there are any, they are named."""
    passages = passages and snapshot.has_passages
    if -1 in ranked.keys:
        real = ranked.keys >= 0
        found, keys, rows = real.sum(axis=1).tolist(), ranked.keys[real], ranked.rows[real]
    else:
        queries, width = ranked.keys.shape
        found, keys, rows = [width] * queries, ranked.keys.reshape(-1), ranked.rows.reshape(-1)
    ids = snapshot.document_ids(keys) if group else snapshot.row_ids(keys)
    return Hits(
        ids=_split(ids, found),
        scores=_padded(ranked.scores, k),
        documents=_split(snapshot.documents(snapshot.documents_of(rows)), found) if documents else None,
        passages=_split(snapshot.row_ids(rows), found) if passages else None,
        spans=_split(snapshot.row_spans(rows), found) if passages else None,
        explanations=None if explanations is None else _split(explanations, found),
    )


def _padded(scores: Vectors, k: int) -> Vectors:
    """(q, k)"""
    if scores.shape[1] == k:
        return scores
    padded = np.full((len(scores), k), -np.inf, dtype=np.float32)
    padded[:, : scores.shape[1]] = scores
    return padded
