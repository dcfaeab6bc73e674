"""Near-duplicates, against the Jaccard similarity of every pair."""

from __future__ import annotations

import functools
import re
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from embedkit.corpus import duplicates
from embedkit.corpus.duplicates import CROWD, Near, near_duplicates, words_of
from embedkit.errors import UsageError

WORDS = [f"w{number}" for number in range(300)]


def edited(draw: np.random.Generator, text: list[str]) -> list[str]:
    """Some words replaced, dropped or added."""
    new = list(text)
    for _ in range(draw.integers(0, 5)):
        if not new:
            break
        place = int(draw.integers(len(new)))
        new[place : place + 1] = [[], [str(draw.choice(WORDS))], [new[place], str(draw.choice(WORDS))]][
            draw.integers(3)
        ]
    return new or ["w0"]


def collections(count: int) -> tuple[list[str], list[str]]:
    draw = np.random.default_rng(0)
    held = [[str(word) for word in draw.choice(WORDS, draw.integers(1, 60))] for _ in range(count)]
    texts = [" ".join(edited(draw, held[int(draw.integers(count))])) for _ in range(count)]
    return texts, [" ".join(text) for text in held]


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[start : start + 3]) for start in range(max(1, len(words) - 2))}


@functools.cache
def jaccards() -> np.ndarray:
    """(texts, held) of every pair."""
    left, right = ([shingles(text) for text in side] for side in collections(200))
    return np.array([[len(a & b) / len(a | b) for b in right] for a in left])


@pytest.mark.parametrize("threshold", [0.7, 0.9, 1.0])
def test_the_nearest_is_that_of_all_pairs(threshold: float) -> None:
    texts, held = collections(200)
    expected = [
        Near(number, int(row.argmax()), float(row.max()))
        for number, row in enumerate(jaccards())
        if row.max() >= threshold
    ]
    found = near_duplicates(texts, held, threshold=threshold)
    assert set(found) <= set(expected), "none is reported that is not so"
    missed = [near for near in expected if near not in found]
    assert len(missed) <= 0.01 * len(expected) and len(expected) > 30
    assert all(near.jaccard < 0.8 for near in missed)


def test_case_punctuation_and_forms_of_characters_are_left_aside() -> None:
    held = ["The quick (brown) fox", "Ｃａｆé", "ab"]
    texts = ["the QUICK brown fox!", "cafe\u0301", "a b", "quick brown fox", ""]
    assert near_duplicates(texts, held) == [Near(0, 0, 1.0), Near(1, 1, 1.0)]
    assert near_duplicates(["", "!?"], ["", "..."]) == [], "texts without words"
    assert near_duplicates([], held) == [] == near_duplicates(texts, [])


def test_scripts_without_blanks_are_read_by_characters() -> None:
    assert words_of("東京 is 大きい2") == ["東", "京", "is", "大", "き", "い", "2"]
    long = "今日は天気がとてもいいので公園へ散歩に行きました"
    (found,) = near_duplicates([long + "ね"], ["別の文です", long])
    assert (found.held, round(found.jaccard, 2)) == (1, 0.96)


def test_the_first_of_equal_texts_stands_for_all() -> None:
    """However many there are: a crowd of equal texts hides no other one."""
    crowd = ["one two three four five six seven"] * (3 * CROWD)
    held = [*crowd, "one two three four five six seven eight"]
    found = near_duplicates(["one two three four five six seven eight", "One two three four five six seven"], held)
    assert found == [Near(0, 3 * CROWD, 1.0), Near(1, 0, 1.0)]


class Streamed:
    """Long texts, made as they are read: 4,000 bytes each."""

    def __init__(self, prefix: str) -> None:
        self.prefix, self.read = prefix, 0

    def __iter__(self) -> Iterator[str]:
        self.read += 1
        return (" ".join(f"{self.prefix * 400}{number}x{place}" for place in range(10)) for number in range(1000))


def test_texts_are_read_as_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "BLOCK", 32)
    held, texts = Streamed("a"), Streamed("b")
    assert near_duplicates(held, held)[-1] == Near(999, 999, 1.0)
    held.read = 0
    tracemalloc.start()
    assert near_duplicates(texts, held) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert texts.read == 1 and held.read <= 2
    assert peak < 1_200_000  # of texts of 4,000,000 on either side


def test_what_can_be_read_only_once_is_refused() -> None:
    with pytest.raises(UsageError, match="which is read twice"):
        near_duplicates(["a"], iter(["a"]))
    for threshold in (0, 1.5):
        with pytest.raises(UsageError, match=re.escape(f"threshold={threshold} came")):
            near_duplicates(["a"], ["a"], threshold=threshold)
