"""BM25 and fusion, slowly and from dicts: what the sparse leg is compared with; and a sparse model whose weights follow from the text."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import Stemmer
from scipy.sparse import csr_matrix

LUCENES = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this to was "
    "will with"
)
STOP = set(LUCENES.split())
STEMMER = Stemmer.Stemmer("english")


def terms_of(text: str) -> list[str]:
    """Of an English text in ASCII, without apostrophes."""
    return [STEMMER.stemWord(word) for word in re.findall(r"[a-z0-9_]+", text.lower()) if word not in STOP]


def bm25(texts: Mapping[str, str], query: str, k1: float = 0.9, b: float = 0.4) -> dict[str, float]:
    """id -> score of the texts that have a term of the query."""
    counts = {name: Counter(terms_of(text)) for name, text in texts.items()}
    lengths = {name: sum(found.values()) for name, found in counts.items() if found}
    mean = sum(lengths.values()) / max(len(lengths), 1)
    scores: dict[str, float] = {}
    for term in terms_of(query):
        holding = [name for name in lengths if term in counts[name]]
        idf = math.log(1 + (len(lengths) - len(holding) + 0.5) / (len(holding) + 0.5))
        for name in holding:
            frequency = counts[name][term]
            norm = k1 * (1 - b + b * lengths[name] / mean)
            scores[name] = scores.get(name, 0.0) + idf * frequency / (frequency + norm)
    return scores


def products(texts: Mapping[str, str], query: str) -> dict[str, float]:
    """As `bm25`, for the weights of `Weigher`."""
    asked = weights_of(query)
    found = {name: sum(w * asked.get(t, 0.0) for t, w in weights_of(text).items()) for name, text in texts.items()}
    return {name: score for name, score in found.items() if score > 0}


def weights_of(text: str) -> dict[str, float]:
    return {word: count * (1 + len(word)) / 4 for word, count in Counter(text.lower().split()).items()}


def minmax(scores: Sequence[float]) -> list[float]:
    low, high = min(scores), max(scores)
    return [(score - low) / (high - low) if high > low else 0.0 for score in scores]


class Weigher:
    """A SparseEncoder: a weight for each word of WORDS."""

    fingerprint = "e" * 64

    def __init__(self, words: Sequence[str]) -> None:
        self.vocabulary, self.settings = list(words), dict[str, Any]()

    def encode(self, inputs: Sequence[str], *, kind: str = "document") -> csr_matrix:
        rows = np.zeros((len(inputs), len(self.vocabulary)), np.float32)
        for place, text in enumerate(inputs):
            for word, weight in weights_of(text).items():
                if word in self.vocabulary:
                    rows[place, self.vocabulary.index(word)] = weight
        return csr_matrix(rows)
