"""What stands in train and in another split."""

from __future__ import annotations

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
    same = [near for near in found if near.jaccard == 1]
    alike = [near for near in found if near.jaccard < 1]
    for name, some in (("duplicate-across-splits", same), ("near-duplicate-across-splits", alike)):
        first = some[: findings.room(name)]
        ours, theirs = _at(texts, {near.position for near in first}), _at(train, {near.held for near in first})
        examples = []
        for near in first:
            (line, text), (other, twin) = ours[near.position], theirs[near.held]
            shown = text if near.jaccard == 1 else f"{text.strip()[:60]} | {twin.strip()[:60]}"
            examples.append((f"{texts.source.at(line)} and {train.source.at(other)}", shown))
        findings.add_all(name, len(some), examples)


def _at(texts: PlacedTexts, positions: set[int]) -> dict[int, tuple[int, str]]:
    if not positions:
        return {}
    return {position: placed for position, placed in enumerate(texts.placed()) if position in positions}
