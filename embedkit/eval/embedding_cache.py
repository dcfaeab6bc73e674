"""Rows that were computed once, kept on disk for the next evaluation.

One file a space: fingerprint, compute, role, literal prompt and precision name it, so whatever changes the rows changes the
file. It is a sequence of records, each the hash of a text, its row, and a checksum of both; the file only grows at its end,
and a record counts if its checksum fits, so that what a crash tore or a disk flipped is computed again. Cost: 4 bytes a
number and 24 a row on disk, one dictionary entry a row in memory while the space is open.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from embedkit.encoder import Encoded, Encoder, OnLong
from embedkit.engine.run import encode_windows
from embedkit.errors import Stopped
from embedkit.storage import locked_file, make_folder, write_json
from embedkit.types import Content, Kind, Picture, Rows, Vectors

LIMIT = 2 * 10**9  # bytes of all spaces in one folder; rows beyond are computed and not kept
logger = logging.getLogger(__name__)


class RowStore:
    """The rows of one space, by text."""

    def __init__(self, folder: Path, space: Mapping[str, Any], dim: int) -> None:
        name = hashlib.sha256(json.dumps(space, sort_keys=True, default=str).encode()).hexdigest()[:32]
        self.path = folder / f"{name}.rows"
        self._record = np.dtype([("text", "V16"), ("row", "<f4", (dim,)), ("check", "V8")])
        self._space = space
        self._records: Any = np.empty(0, self._record)
        self._places: dict[bytes, int] = {}  # hash of a text -> its last record
        self._look()

    def _look(self) -> None:
        """Notes the records that are in the file by now."""
        count = self.path.stat().st_size // self._record.itemsize if self.path.is_file() else 0
        if count == len(self._records):
            return
        known = len(self._records)
        self._records = np.memmap(self.path, self._record, mode="r", shape=(count,))
        for place, text in enumerate(self._records["text"][known:].tolist(), start=known):
            self._places[text] = place

    def get(self, texts: Sequence[Content]) -> tuple[Vectors, Rows, list[int]]:
        """(rows (n, dim), the positions of the texts whose rows are not there, and of those that the model had cut)."""
        names = [_name(text) for text in texts]
        places = np.array([self._places.get(name, -1) for name in names], dtype=np.int64)
        rows = np.zeros((len(texts), *self._record["row"].shape), dtype=np.float32)
        cut = []
        for position in map(int, np.flatnonzero(places >= 0)):
            record, name = self._records[places[position]], names[position]
            found = record["check"].tobytes()
            was_cut = found != _check(name, record["row"])
            if was_cut and found != _check(name, record["row"], cut=True):
                del self._places[name]
                places[position] = -1
                continue
            rows[position] = record["row"]
            cut += [position] if was_cut else []
        return rows, np.flatnonzero(places < 0), cut

    def put(self, texts: Sequence[Content], rows: Vectors, cut: Collection[int] = ()) -> None:
        """Appends them, durably. cut: positions of those that are longer than the model takes. Nothing is kept while another process
        appends, or beyond LIMIT."""
        records = np.zeros(len(texts), self._record)
        for position, (record, text, row) in enumerate(zip(records, texts, np.asarray(rows, np.float32), strict=True)):
            name = _name(text)
            record["text"], record["row"], record["check"] = name, row, _check(name, row, cut=position in cut)
        if not len(records) or self._full(records.nbytes):
            return
        make_folder(self.path.parent)
        if not self.path.exists():
            write_json(self.path.with_suffix(".json"), {"space": json.loads(json.dumps(self._space, default=str))})
        with suppress(Stopped), locked_file(self.path, self.path) as file:
            end = file.size // self._record.itemsize * self._record.itemsize  # less what a crash tore
            file.truncate(end)
            file.write(end, records.tobytes())
            file.sync()
        self._look()

    def _full(self, more: int) -> bool:
        kept = sum(path.stat().st_size for path in self.path.parent.glob("*.rows"))
        if kept + more > LIMIT:
            logger.warning("%s holds %.1f GB of rows; further ones are not kept.", self.path.parent, kept / 1e9)
        return kept + more > LIMIT


def _name(content: Content) -> bytes:
    """The hash of a text, or of an image file with the text that is read with it."""
    if isinstance(content, str):
        return hashlib.blake2b(content.encode(), digest_size=16).digest()
    image: bytes = content.image.read_bytes() if isinstance(content.image, Path) else content.image
    words = json.dumps([content.text, content.text_first]).encode()
    return hashlib.blake2b(len(words).to_bytes(8, "big") + words + image, digest_size=16, person=b"image").digest()


def _has_name(content: Any) -> bool:
    """Whether it is a text, or an image whose file is at hand."""
    if not isinstance(content, Picture):
        return isinstance(content, str)
    return (
        bool(content.image)
        if isinstance(content.image, bytes)
        else isinstance(content.image, Path) and content.image.is_file()
    )


def _check(name: bytes, row: Any, *, cut: bool = False) -> bytes:
    """Another one for a text that was cut, so that a record says whether it was."""
    return hashlib.blake2b(name + row.tobytes(), digest_size=8, person=b"cut" if cut else b"").digest()


class CachedEncoder:
    """An Encoder whose rows are taken from a folder where they are there, and kept there where they are not.

    taken: how many rows were not computed. Images that are decoded already are always computed.
    """

    def __init__(self, encoder: Encoder, folder: Path) -> None:
        self._encoder, self._folder = encoder, folder
        self._stores: dict[tuple[Kind, str], RowStore] = {}
        self.taken = 0

    def __getattr__(self, name: str) -> Any:  # whatever else the encoder offers
        return getattr(self._encoder, name)

    @property
    def dim(self) -> int:
        return self._encoder.dim

    @property
    def fingerprint(self) -> str:
        return self._encoder.fingerprint

    @property
    def compute(self) -> Mapping[str, str]:
        return self._encoder.compute

    @property
    def similarity(self) -> str:
        return self._encoder.similarity

    @property
    def settings(self) -> Mapping[str, Any]:
        return self._encoder.settings

    def _store(self, kind: Kind, prompt: str | None) -> RowStore:
        literal = getattr(self._encoder, "prompts", {}).get(kind, "") if prompt is None else prompt
        if (kind, literal) not in self._stores:
            space = {
                "fingerprint": self.fingerprint,
                "compute": dict(self.compute),
                "role": kind,
                "prompt": literal,
                "precision": "float32",
            }
            self._stores[kind, literal] = RowStore(self._folder, space, self.dim)
        return self._stores[kind, literal]

    def encode(self, inputs: Sequence[Any], *, kind: Kind = "document", prompt: str | None = None) -> Vectors:
        """See `Encoder`. prompt: the literal one, of an encoder that takes it."""
        options: dict[str, Any] = {"kind": kind, **({} if prompt is None else {"prompt": prompt})}
        if not all(map(_has_name, inputs)):
            return self._encoder.encode(inputs, **options)
        store = self._store(kind, prompt)
        rows, missing, _ = store.get(inputs)
        self.taken += len(inputs) - len(missing)
        new = list(dict.fromkeys(inputs[position] for position in missing))
        if new:
            computed = self._encoder.encode(new, **options)
            store.put(new, computed)
            place = {text: number for number, text in enumerate(new)}
            rows[missing] = computed[[place[inputs[position]] for position in missing]]
        return rows

    def encode_windows(
        self,
        windows: Iterable[Sequence[Any]],
        *,
        kind: Kind = "document",
        on_long: OnLong = "truncate",
        on_batch: Callable[[int, Sequence[int]], None] | None = None,
    ) -> Iterator[Encoded]:
        """See `embedkit.encoder.WindowEncoder`."""
        if on_long != "truncate" or on_batch is not None:  # of a job that is resumed by itself
            yield from encode_windows(self._encoder, windows, kind, on_long, on_batch)
            return
        store = self._store(kind, None)
        held: deque[tuple[Sequence[Content], bool, Vectors, Rows, list[int]]] = deque()

        def missing() -> Iterator[list[Content]]:
            for texts in windows:
                kept = all(map(_has_name, texts))
                nothing: tuple[Vectors, Rows, list[int]]
                nothing = np.zeros((len(texts), self.dim), dtype=np.float32), np.arange(len(texts)), []
                rows, positions, cut = store.get(texts) if kept else nothing
                held.append((texts, kept, rows, positions, cut))
                yield [texts[position] for position in positions]

        with closing(encode_windows(self._encoder, missing(), kind)) as encoded:
            for found in encoded:
                texts, kept, rows, positions, cut = held.popleft()
                self.taken += len(texts) - len(positions)
                computed = positions[found.inputs]
                rows[computed] = found.rows
                truncated = [int(positions[one]) for one in found.truncated]
                if kept:
                    places = np.flatnonzero(np.isin(computed, truncated))
                    store.put([texts[position] for position in computed], found.rows, set(places.tolist()))
                failed = {int(positions[one]): reason for one, reason in found.failed.items()}
                left = np.setdiff1d(np.arange(len(texts)), list(failed)) if failed else np.arange(len(texts))
                yield Encoded(
                    rows[left], left, failed=failed, truncated=sorted(cut + truncated), halvings=found.halvings
                )

    def first_input(self, text: str, kind: Kind) -> str:
        """The literal input that the model reads for this text, its prompt in front."""
        return str(self._encoder.first_input(text, kind)) if hasattr(self._encoder, "first_input") else text
