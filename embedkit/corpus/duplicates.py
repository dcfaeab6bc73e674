"""Near-duplicates: which texts of one collection stand, the same or lightly edited, in another.

A text is the set of its runs of SHINGLE words (shingles; Broder 1997), case, punctuation and the form of characters left aside; in
scripts written without blanks each character is a word. Two texts are near-duplicates where the Jaccard similarity of their sets
is at least the threshold. Candidates come from MinHash signatures cut into BANDS bands of ROWS (Leskovec, Rajaraman & Ullman 2020,
section 3.4); each is verified by its sets, so nothing is reported that is not so, and a pair of Jaccard j is missed with
probability (1 - j^ROWS)^BANDS: 0.004 at 0.7, 0.00003 at 0.8.

Cost: 168 bytes for each text that is held, none for the texts compared with them but for the candidates; some 20 microseconds a text
of a dozen words, 100 of two hundred.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedkit.errors import UsageError

SHINGLE = 3  # words
THRESHOLD = 0.7
BANDS, ROWS = 20, 4
BLOCK = 4096  # texts at once
CROWD = 32  # candidates that a text takes from one band: where more texts share it, they are alike themselves
# a character of a script without blanks (Thai, Lao, Khmer, Burmese, kana, Han), or a run of letters and digits of others
ALONE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
WORD = re.compile(f"[{ALONE}]|[^\\W{ALONE}]+")
Hashes = NDArray[np.uint64]


class Near(NamedTuple):
    """A text and its nearest one among those held."""

    position: int
    held: int
    jaccard: float  # 1.0: the same words


def near_duplicates(texts: Iterable[str], held: Iterable[str], *, threshold: float = THRESHOLD) -> list[Near]:
    """Each of `texts` that has a near-duplicate in `held`, with the nearest one, the first of several; in the order of `texts`.

    `texts` is read once. `held` is read twice, so it is a list or what else can be read again. A text without words is like no
    other. Raises UsageError for a `held` that can be read only once, or a threshold that is none.
    """
    if isinstance(held, Iterator):
        raise UsageError("An iterator came as `held`, which is read twice; give a list, or an object with __iter__.")
    if not 0 < threshold <= 1:
        raise UsageError(f"threshold={threshold} came; expected a Jaccard similarity, above 0 and up to 1.")
    index = _Index(held)
    wanted: dict[int, list[int]] = {}  # held -> texts
    sets: dict[int, frozenset[int]] = {}
    for block in _blocks(texts):
        pairs = index.candidates(block)
        for place in {place for place, _ in pairs}:
            sets[int(block.positions[place])] = block.shingles(place)
        for place, candidate in pairs:
            wanted.setdefault(candidate, []).append(int(block.positions[place]))
    best: dict[int, Near] = {}
    for position, other in _sets_at(held, wanted.keys()):
        for text in wanted[position]:
            jaccard = len(sets[text] & other) / len(sets[text] | other)
            if jaccard >= threshold and (text not in best or jaccard > best[text].jaccard):
                best[text] = Near(text, position, jaccard)
    return [best[text] for text in sorted(best)]


class _Block:
    """The shingles of some texts, one after the other; texts without words are left out."""

    def __init__(self, first: int, texts: list[str]) -> None:
        words = [[zlib.crc32(word.encode()) for word in words_of(text)] for text in texts]
        counts = np.array([len(some) for some in words])
        kept = np.flatnonzero(counts)
        self.positions = kept + first
        padding = [0] * SHINGLE  # of a text shorter than one shingle
        flat = np.array(
            [
                word
                for some in words
                if some
                for word in (some if len(some) >= SHINGLE else [*some, *padding][:SHINGLE])
            ],
            dtype=np.uint64,
        )
        sizes = np.maximum(counts[kept], SHINGLE)
        ends = np.cumsum(sizes)
        whole = np.ones(len(flat), dtype=bool)  # whether a shingle begins there and ends in the same text
        for last in range(1, SHINGLE):
            whole[ends - last] = False
        rolled = sum(
            (_mixed(np.roll(flat, -place) + np.uint64(place << 32)) for place in range(SHINGLE)), np.zeros_like(flat)
        )
        self.hashes: Hashes = _mixed(rolled[whole])
        self.starts = np.concatenate([[0], np.cumsum(sizes - SHINGLE + 1)])[:-1].astype(np.int64)

    def shingles(self, place: int) -> frozenset[int]:
        end = self.starts[place + 1] if place + 1 < len(self.starts) else None
        return frozenset(self.hashes[self.starts[place] : end].tolist())

    def bands(self) -> NDArray[np.uint32]:
        """(texts, BANDS) hashes of ROWS least hashes each."""
        bands = np.zeros((len(self.positions), BANDS), dtype=np.uint64)
        for row, (factor, shift) in enumerate(_PERMUTATIONS):
            least = np.minimum.reduceat(self.hashes * factor + shift, self.starts)
            bands[:, row // ROWS] = _mixed(bands[:, row // ROWS] + least)
        upper: NDArray[np.uint32] = (bands >> np.uint64(32)).astype(np.uint32)
        return upper

    def wholes(self) -> Hashes:
        """(texts,) a hash of all shingles of each."""
        return np.add.reduceat(self.hashes, self.starts)


class _Index:
    """The bands of the held texts, sorted; of texts with the same shingles the first stands for all."""

    def __init__(self, held: Iterable[str]) -> None:
        blocks = [(block.positions, block.wholes(), block.bands()) for block in _blocks(held) if len(block.positions)]
        if not blocks:
            self._positions, self._bands, self._order = np.empty(0, np.int64), [], []
            return
        positions, wholes, bands = (np.concatenate(part) for part in zip(*blocks, strict=True))
        _, first = np.unique(wholes, return_index=True)
        first.sort()
        self._positions = positions[first]
        columns = [np.ascontiguousarray(bands[first, band]) for band in range(BANDS)]
        self._order = [np.argsort(column, kind="stable").astype(np.int32) for column in columns]
        self._bands = [column[order] for column, order in zip(columns, self._order, strict=True)]

    def candidates(self, block: _Block) -> list[tuple[int, int]]:
        """(place in the block, position of the held text) of the pairs that share a band."""
        if not len(block.positions) or not len(self._positions):
            return []
        found = []
        for keys, bands, order in zip(block.bands().T, self._bands, self._order, strict=True):
            low, high = np.searchsorted(bands, keys, "left"), np.searchsorted(bands, keys, "right")
            counts = np.minimum(high - low, CROWD)
            places = np.repeat(np.arange(len(keys)), counts)
            within = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
            found.append(np.stack([places, self._positions[order[low[places] + within]]]))
        pairs = np.unique(np.concatenate(found, axis=1), axis=1)
        return [(int(place), int(position)) for place, position in pairs.T]


def words_of(text: str) -> list[str]:
    """What is compared: words in one form of their characters (NFKC) and without case."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _blocks(texts: Iterable[str]) -> Iterator[_Block]:
    stream = iter(texts)
    for first in itertools.count(0, BLOCK):
        if not (some := list(itertools.islice(stream, BLOCK))):
            return
        yield _Block(first, some)


def _sets_at(texts: Iterable[str], positions: Iterable[int]) -> Iterator[tuple[int, frozenset[int]]]:
    """The shingles of the texts at these positions."""
    wanted = set(positions)
    last = max(wanted, default=-1)
    for position, text in enumerate(itertools.islice(texts, last + 1)):
        if position in wanted:
            yield position, _Block(position, [text]).shingles(0)


def _mixed(values: Hashes) -> Hashes:
    """Every bit depends on every other one (the finaliser of SplitMix64; Steele, Lea & Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = values ^ (values >> np.uint64(31))
    return mixed


_DRAW = np.random.default_rng(0)
_PERMUTATIONS = [
    (np.uint64(int(factor) | 1), np.uint64(int(shift)))
    for factor, shift in _DRAW.integers(0, 2**64, size=(BANDS * ROWS, 2), dtype=np.uint64, endpoint=False)
]
