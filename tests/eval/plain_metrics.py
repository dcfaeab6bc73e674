"""Metrics written down from their definitions, slowly and without a library: what ours and trec_eval's are compared with."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np

Grades, Scores = Mapping[str, int], Mapping[str, float]


def order(scores: Scores) -> list[str]:
    """By score, as a 32-bit float, from the highest; equal ones by id from the last in the alphabet."""
    ids = sorted(scores)[::-1]
    return sorted(ids, key=lambda one: -float(np.float32(scores[one])))  # sorted() is stable


def value(name: str, grades: Grades, found: list[str]) -> float:
    family, _, cut = name.partition("@")
    k = int(cut) if cut else len(found)
    gains = [max(grades.get(one, 0), 0) for one in found]
    relevant = sum(grade > 0 for grade in grades.values())
    hits = [gain > 0 for gain in gains[:k]]
    if family == "ndcg":
        ideal = sorted((grade for grade in grades.values() if grade > 0), reverse=True)
        ideal = ideal[:k] if cut else ideal
        return _dcg(gains[:k]) / _dcg(ideal)
    if family == "map":
        return sum(sum(hits[: place + 1]) / (place + 1) for place, hit in enumerate(hits) if hit) / relevant
    if family == "mrr":
        return 1 / (hits.index(True) + 1) if any(hits) else 0.0
    if family == "recall":
        return sum(hits) / relevant
    if family == "precision":
        return sum(hits) / k
    if family == "hit_rate":
        return float(any(hits))
    assert family == "judged"
    return sum(one in grades for one in found[:k]) / len(found[:k]) if found else 0.0


def _dcg(gains: list[int]) -> float:
    return sum(gain / math.log2(place + 2) for place, gain in enumerate(gains))


def orders(scores: Scores) -> Iterator[list[str]]:
    """Every order of the tied documents; for small examples."""
    groups: dict[float, list[str]] = {}
    for one in order(scores):
        groups.setdefault(float(np.float32(scores[one])), []).append(one)
    for picked in itertools.product(*(itertools.permutations(group) for group in groups.values())):
        yield [one for group in picked for one in group]


def example(draw: np.random.Generator, documents: int, scores: int) -> tuple[dict[str, int], dict[str, float]]:
    """Grades and a run of one query: some found are not judged, some judged not found, and `scores` different scores make ties."""
    ids = [f"d{number}" for number in range(documents)]
    judged = draw.permutation(ids)[: int(draw.integers(1, documents))]
    found = draw.permutation(ids)[: int(draw.integers(1, documents + 1))]
    grades = {str(one): int(grade) for one, grade in zip(judged, draw.integers(-1, 4, len(judged)), strict=True)}
    values = draw.integers(0, scores, len(found)) / 7
    jitter = draw.choice([0.0, 1e-10], len(found))  # below what a 32-bit float can tell: a tie for trec_eval
    return grades, {str(one): float(score) for one, score in zip(found, values + jitter, strict=True)}
