"""From texts to terms: Unicode words, without stop words, stemmed.

A word is a run of letters, marks, digits and underscores, with apostrophes inside; case is folded, after NFKC, and what is
invisible inside a word, such as a soft hyphen, is left out. Runs of scripts that are written without spaces, and of Hangul, become
overlapping pairs of characters, as Lucene's CJKAnalyzer makes them. Stems are Snowball's (https://snowballstem.org), by PyStemmer;
the stop words are Lucene's 33. Cost: 1 microsecond a word, for which its term is remembered.

Segments that were written before the invisible was left out keep the pieces of such words as their terms until they are built anew;
all other words are what they were.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise

import numpy as np
import regex

from embedkit.errors import UsageError
from embedkit.index.manifest import Bm25
from embedkit.types import Array

LONGEST = 255  # characters of a word, as in Lucene; what is behind them is no language
KEPT = 1 << 18  # words whose terms are remembered
LUCENES = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this to was "
    "will with"
)
STOP_WORDS: dict[str, frozenset[str]] = {"none": frozenset(), "english": frozenset(LUCENES.split())}
SPACELESS = r"[[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\u30FC]&&\w]"
# Latin, Greek and Cyrillic letters, punctuation and signs: here Python's own patterns, three times as fast, find the same words
PLAIN = re.compile(r"[\0-\u02ff\u0370-\u0482\u048a-\u052f\u2010-\u203e\u2190-\u23ff]*")
IN_PLAIN = re.compile(r"\w+(?:'\w+)*")
ANYWHERE = regex.compile(rf"(?V1){SPACELESS}+|[\w--{SPACELESS}]+(?:'[\w--{SPACELESS}]+)*")
WITHOUT_SPACES = regex.compile(rf"(?V1){SPACELESS}")
# Unicode's Default_Ignorable_Code_Point: soft hyphens, joiners, variation selectors, ... stand inside words and nobody sees them.
# Without U+200B, which says where words of scripts without spaces end, and the joiners U+200C and U+200D, by which Arabic and
# Indic scripts shape letters: behind a letter of these they are a part of the word.
INVISIBLE = (
    (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x200E, 0x200F),
    (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8),
    (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip
JOINERS = regex.compile(r"(?<=[\p{Latin}\p{Greek}\p{Cyrillic}\p{Nd}])[\u200c\u200d]+")
FOLDED = {
    **{code: None for first, last in INVISIBLE for code in range(first, last + 1)},
    **str.maketrans("\u2019\u02bc", "''"),
}


def words(text: str) -> list[str]:
    """The words of a text in order, case folded; of scripts without spaces the pairs of characters."""
    if text.isascii():
        return IN_PLAIN.findall(text.lower())
    composed = unicodedata.normalize("NFKC", text).replace("\u0130", "i")  # casefold would leave a dot above the i
    folded = unicodedata.normalize("NFKC", composed.casefold()).translate(FOLDED)
    if "\u200c" in folded or "\u200d" in folded:
        folded = JOINERS.sub("", folded)
    if PLAIN.fullmatch(folded):
        return IN_PLAIN.findall(folded)
    found: list[str] = ANYWHERE.findall(folded)
    return list(chain.from_iterable(map(_pairs, found)))


def _pairs(word: str) -> Iterable[str]:
    if len(word) < 3 or not WITHOUT_SPACES.match(word):
        return (word,)
    return (one + other for one, other in pairwise(word))


class Analyzer:
    """Words to terms. May be used from several threads."""

    def __init__(self, settings: Bm25) -> None:
        """Raises UsageError for a language that Snowball does not know, or stop words that are not here."""
        check(settings)
        import Stemmer

        self._stop = STOP_WORDS[settings.stop]
        self._stem = None if settings.stem == "none" else Stemmer.Stemmer(settings.stem).stemWord
        self._possessive = (
            "'s" if settings.stem == "english" else ""
        )  # goes before stop words are looked for, as in Lucene
        self._lock = threading.Lock()  # a stemmer is for one thread at a time
        self._known: dict[str, str] = {}

    def term(self, word: str) -> str:
        """The term of a word, "" for a stop word."""
        known = self._known.get(word)
        if known is None:
            with self._lock:
                cut = word[:LONGEST].removesuffix(self._possessive)
                known = "" if cut in self._stop else cut if self._stem is None else self._stem(cut)
                if len(self._known) >= KEPT:
                    self._known.clear()
                self._known[word] = known
        return known

    def terms(self, text: str) -> list[str]:
        """In order, as often as they stand there."""
        return [term for term in map(self.term, words(text)) if term]

    def numbered(self, texts: Sequence[str]) -> tuple[list[str], Array, Array]:
        """The terms of several texts: their names; and (m,) which of them, (m,) in which text, in order."""
        numbers = _Numbers(self)
        found = [list(map(numbers.__getitem__, words(text))) for text in texts]
        flat = np.fromiter(chain.from_iterable(found), np.int64)
        places = np.repeat(np.arange(len(texts)), list(map(len, found)))
        kept = flat >= 0
        return list(numbers.names), flat[kept], places[kept]


class _Numbers(dict[str, int]):
    """word -> number of its term, -1 for a stop word; grows as it is asked."""

    def __init__(self, analyzer: Analyzer) -> None:
        self._analyzer, self.names = analyzer, dict[str, int]()

    def __missing__(self, word: str) -> int:
        term = self._analyzer.term(word)
        self[word] = self.names.setdefault(term, len(self.names)) if term else -1
        return self[word]


def check(settings: Bm25) -> None:
    """Raises UsageError for settings that cannot be."""
    import Stemmer

    languages = Stemmer.algorithms()
    if settings.stem != "none" and settings.stem not in languages:
        raise UsageError(f"stem={settings.stem!r} came; expected none, {', '.join(sorted(languages))}.")
    if settings.stop not in STOP_WORDS:
        raise UsageError(f"stop={settings.stop!r} came; expected {' or '.join(STOP_WORDS)}.")
    if not settings.fits:
        raise UsageError(
            f"k1={settings.k1:g} and b={settings.b:g} came; expected k1 from 0 to 1000, and b from 0 to 1."
        )
