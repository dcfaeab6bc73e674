"""Documents, queries or rows: what is remembered of each, and what a single one can have wrong."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.corpus.documents import ID_FIELDS
from embedkit.eval.data_check.findings import Findings
from embedkit.eval.data_check.reading import CONTROL, Source, check_characters, key_of, text_key

Keys = NDArray[np.uint64]
Places = NDArray[np.intp]
MIX = np.uint64(0x9E3779B97F4A7C15)  # odd: keys joined by it are new ones, and not those of the two turned round
BLANK = re.compile(r"\s")


def _integers(kind: str) -> Callable[[], array[int]]:
    return lambda: array(kind)


@dataclass
class Texts:
    """What has an id and a text: 28 bytes for each."""

    source: Source
    name: str  # "document" or "query"
    _ids: array[int] = field(default_factory=_integers("Q"))
    _bodies: array[int] = field(default_factory=_integers("Q"))  # the text alone, 0 where it is empty
    _wholes: array[int] = field(default_factory=_integers("Q"))  # title and text
    _lines: array[int] = field(default_factory=_integers("I"))

    @property
    def ids(self) -> Keys:
        return np.frombuffer(self._ids, dtype=np.uint64)

    @property
    def bodies(self) -> Keys:
        return np.frombuffer(self._bodies, dtype=np.uint64)

    @property
    def wholes(self) -> Keys:
        return np.frombuffer(self._wholes, dtype=np.uint64)

    def read(self, findings: Findings) -> None:
        """Every row of the file, once."""
        for line, row in self.source.rows(findings):
            where = self.source.at(line)
            identifier, text, title = id_of(row), row.get("text"), row.get("title") or ""
            if identifier is None or not isinstance(text, str) or not isinstance(title, str):
                findings.add("missing-field", where, str(row))
                continue
            check_id(identifier, where, findings)
            whole = f"{title} {text}" if title else text
            check_characters(whole, where, findings)
            empty = not whole.strip()
            if empty:
                findings.add(f"empty-{self.name}", where, identifier)
            self._ids.append(key_of(identifier))
            self._bodies.append(text_key(text) if text.strip() else 0)
            self._wholes.append(0 if empty else text_key(whole) if title else self._bodies[-1])
            self._lines.append(line)

    def check_repeated(self, findings: Findings) -> None:
        """Ids and texts that came before."""
        again = repeated(self.ids)
        self.tell(f"duplicate-{self.name}-id", again, findings)
        same = repeated(self.wholes)
        known = np.isin(same, again) | (self.wholes[same] == 0)
        self.tell(f"duplicate-{self.name}", same[~known], findings)

    def tell(self, name: str, places: Places, findings: Findings) -> None:
        """A finding for the rows at these places, with id and text of the first ones."""
        lines = [self._lines[place] for place in places[: findings.room(name)]]
        rows = self.source.rows_at(lines)
        examples = [
            (self.source.at(line), f"{id_of(row)} {row.get('title') or ''} {row.get('text')}")
            for line, row in sorted(rows.items())
        ]
        findings.add_all(name, len(places), examples)

    def texts_of(self, ids: Collection[int]) -> TextsOf:
        """The texts of those whose ids have these keys, in the order of the file; can be read again and again."""
        return TextsOf(self.source, ids)


@dataclass(frozen=True)
class TextsOf:
    """See `Texts.texts_of`."""

    source: Source
    keys: Collection[int]

    def __iter__(self) -> Iterator[str]:
        return (text for _, text in self.placed())

    def placed(self) -> Iterator[tuple[int, str]]:
        """(line, text)"""
        for line, row in self.source.rows(Findings()):
            identifier = id_of(row)
            if identifier is not None and key_of(identifier) in self.keys:
                yield line, f"{row.get('title') or ''} {row.get('text')}"


def id_of(row: Mapping[str, Any]) -> str | None:
    """As `read_corpus` takes it; None where there is none."""
    value = next((row[name] for name in ID_FIELDS if name in row), None)
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def check_id(identifier: str, where: str, findings: Findings) -> None:
    if not identifier or BLANK.search(identifier) or CONTROL.search(identifier):
        findings.add("id-characters", where, repr(identifier))


def first_places(keys: Keys) -> Places:
    """(n,) for each key the place where it came first."""
    _, first, number = np.unique(keys, return_index=True, return_inverse=True)
    places: Places = first[number]
    return places


def repeated(keys: Keys) -> Places:
    """Places of the keys that came before, in order."""
    return np.flatnonzero(first_places(keys) != np.arange(len(keys)))


def among(keys: Keys, ordered: Keys) -> NDArray[np.bool_]:
    """(n,) whether each key is one of the others, which are sorted and not none."""
    places = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
    found: NDArray[np.bool_] = ordered[places] == keys
    return found
