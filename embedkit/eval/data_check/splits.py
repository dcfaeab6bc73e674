"""What stands in train and in another split."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Protocol

from embedkit.corpus.duplicates import near_duplicates
from embedkit.eval.data_check.findings import Findings
from embedkit.eval.data_check.reading import Source

TRAIN = "train"


class PlacedTexts(Protocol):
    """Texts that can be read again, with their lines or without."""

    @property
    def source(self) -> Source: ...

    def __iter__(self) -> Iterator[str]: ...

    def placed(self) -> Iterator[tuple[int, str]]: ...


def check_leak(texts: PlacedTexts, train: PlacedTexts, findings: Findings) -> None:
    """Texts that stand in train, word by word or nearly."""
    found = near_duplicates(texts, train)
    kinds = {
        "duplicate-across-splits": [near for near in found if near.jaccard == 1],
        "near-duplicate-across-splits": [near for near in found if near.jaccard < 1],
    }
    shown = {name: some[: findings.room(name)] for name, some in kinds.items()}
    ours = _at(texts, {near.position for some in shown.values() for near in some})
    theirs = _at(train, {near.held for some in shown.values() for near in some})
    for name, some in kinds.items():
        examples = []
        for near in shown[name]:
            (line, text), (other, twin) = ours[near.position], theirs[near.held]
            where = f"{texts.source.at(line)} and {train.source.at(other)}"
            if near.jaccard == 1:
                examples.append((where, text))
            else:
                examples.append((f"{where} (Jaccard {near.jaccard:.2f})", f"{_start(text)} | {_start(twin)}"))
        findings.add_all(name, len(some), examples)


def _at(texts: PlacedTexts, positions: set[int]) -> dict[int, tuple[int, str]]:
    """position -> line and text"""
    rows = enumerate(itertools.islice(texts.placed(), max(positions, default=-1) + 1))
    return {position: placed for position, placed in rows if position in positions}


def _start(text: str) -> str:
    return " ".join(text.split())[:30]
