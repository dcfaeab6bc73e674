"""What the ledger of a job says of a window, and what follows from such records: sums, and whether a row has changed.

Everything that is published is a function of the records and the vectors alone.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from embedkit.encoder import Encoded
from embedkit.engine.ledger import AFRESH, Record
from embedkit.engine.run import Window
from embedkit.errors import DataError, IntegrityError
from embedkit.limits import IMAGE, read_at_most
from embedkit.storage import FileRecord
from embedkit.typed import checked
from embedkit.types import Document

LISTED = 10_000  # ids of truncated texts that a manifest lists
HASH = 8  # bytes of `row_hash`


class _Sometimes(TypedDict, total=False):
    first_input: str
    ranges: str
    outside: int


class WindowRecord(_Sometimes):
    """Of one window, as `window_record` and the job write it."""

    window: int
    row: int
    documents: int
    vectors: int
    hashes: str
    vectors_hash: str
    ids: list[str]
    inputs: list[int] | None
    spans: list[tuple[int, int]] | None
    failed: dict[str, str]
    truncated: list[int]
    empty: int
    halvings: int
    seconds: float


class Publication(TypedDict):
    """The last record."""

    publish: dict[str, FileRecord]


def check_window(record: Record, path: Path) -> None:
    """Raises IntegrityError for a record of a window that no job wrote, so that what follows from it needs no further look."""
    checked(record, WindowRecord, path, step=AFRESH)
    count, inputs, spans = record["documents"], record["inputs"], record["spans"]
    rows = count if inputs is None else len(inputs)
    try:
        hashes = base64.b64decode(record["hashes"], validate=True)
    except ValueError:
        hashes = b""
    fits = (
        len(record["ids"]) == count
        and record["vectors"] == rows
        and (spans is None or (inputs is not None and len(spans) == rows))
        and len(hashes) == HASH * count
        and all(0 <= place < count for place in (*(inputs or ()), *record["truncated"]))
        and set(map(str, range(count))).issuperset(record["failed"])
    )
    if not fits:
        raise IntegrityError(f"{path} has a record whose numbers do not fit together; {AFRESH}.")


def window_record(window: Window, found: Encoded, content: bytes, *, chunked: bool) -> Record:
    """content: the bytes of its vectors. Positions are those in the window."""
    inputs, spans, documents = found.inputs.tolist(), None, window.documents
    if chunked:
        whole = [(0, len(documents[place].full_text)) for place in inputs]
        spans = whole if found.spans is None else found.spans.tolist()
    return {
        "window": window.number,
        "row": window.row,
        "documents": len(documents),
        "vectors": len(inputs),
        "hashes": base64.b64encode(b"".join(map(row_hash, documents))).decode(),
        "vectors_hash": digest(content),
        "ids": [document.id for document in documents],
        "inputs": None if inputs == list(range(len(documents))) and not chunked else inputs,
        "spans": spans,
        "failed": {str(place): reason for place, reason in sorted(found.failed.items())},
        "truncated": sorted(map(int, found.truncated)),
        "empty": sum(not document.content for document in documents),
        "halvings": found.halvings,
    }


@dataclass
class Totals:
    """Sums over the records of windows, the same whether they were written just now or read from a ledger."""

    vectors: int = 0
    documents: int = 0
    empty: int = 0
    set_aside: int = 0
    truncated: int = 0
    truncated_ids: list[str] = field(default_factory=list)
    first_input: str | None = None
    ranges: str | None = None  # of int8, where they were taken from rows of this job
    calibrated_on: int | None = None  # vectors that they were taken from
    outside: int = 0  # values that lie outside them
    seconds: float = 0.0

    def add(self, record: Record) -> None:
        self.vectors += record["vectors"]
        self.documents += record["documents"]
        self.empty += record["empty"]
        self.set_aside += len(record["failed"])
        self.truncated += len(record["truncated"])
        room = LISTED - len(self.truncated_ids)
        self.truncated_ids += [record["ids"][place] for place in record["truncated"][:room]]
        self.first_input = record.get("first_input", self.first_input)
        if "ranges" in record:
            self.ranges, self.calibrated_on = record["ranges"], record["vectors"]
        self.outside += record.get("outside", 0)
        self.seconds += record["seconds"]


def differences(then: Record, now: Record) -> str:
    """ "threads: 2 then, 4 now"; empty where there are none."""
    old, new = ({**one, **one["compute"], **one["settings"]} for one in (then, now))
    names = [name for name in {**old, **new} if name not in ("compute", "settings")]
    return ", ".join(
        f"{name}: {old.get(name)!s:.99} then, {new.get(name)!s:.99} now"
        for name in names
        if old.get(name) != new.get(name)
    )


def row_hash(document: Document) -> bytes:
    """Of what was embedded: of an image its bytes, wherever they lie now."""
    known = hashlib.blake2b(f"{document.id}\0{document.full_text}".encode(), digest_size=HASH)
    if document.image is not None:
        known.update(f"\0{document.image.text}\0".encode() + _image_bytes(document.image.image))
    return known.digest()


def _image_bytes(image: Any) -> bytes:
    """Of a file, and of one that cannot be read none: its row was set aside."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, Path):
        try:
            return read_at_most(image, IMAGE)
        except (OSError, ValueError):  # no name that a file can have, no regular file, a longer one
            return b""
    return f"{image.mode} {image.size}".encode() + bytes(image.tobytes())


def digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def check_rows(record: Record, window: Sequence[Document]) -> None:
    """Raises DataError at the first row that is not the one that was embedded."""
    hashes = base64.b64decode(record["hashes"])
    for place, then in enumerate(record["ids"]):
        now = window[place] if place < len(window) else None
        if now is not None and row_hash(now) == hashes[HASH * place : HASH * (place + 1)]:
            continue
        if now is None:
            state = "is missing"
        elif now.id == then:
            state = "has another text" if now.image is None else "has another image or text"
        else:
            state = f"has given place to {now.id!r}"
        raise DataError(
            f"Row {record['row'] + place + 1}: the document {then!r} {state} since it was embedded; give the corpus as it was "
            f"(rows may be appended), or start again with --overwrite."
        )
