"""Rows of any source, as Documents: which field is what, and what a row must hold."""

from __future__ import annotations

import itertools
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any
from uuid import UUID

from embedkit.corpus.arrow import PlacedRows, dataset_rows, frame_rows, hub_rows
from embedkit.corpus.distinct import DistinctIds
from embedkit.corpus.folders import folder_rows
from embedkit.corpus.formats import file_rows, jsonl_rows
from embedkit.corpus.images import IMAGE, is_stored_image, path_of, picture_of
from embedkit.corpus.metadata import by_name, missing, storable, utf8
from embedkit.errors import DataError, UsageError
from embedkit.limits import shown
from embedkit.types import Document, is_image

ID_FIELDS = ("_id", "id", "docid")
STDIN, HUB = "-", "hf:"
ROW = "row"  # as id field: number the rows
NAMES = 30  # fields of a row that a message names


@dataclass(frozen=True)
class Fields:
    """Which fields of a row are id, text and title; the names of the field's conventions when left out.

    image: the field of an image, which is embedded alone, or together with a text or a title where these are named as well.
    Left out, it is "image" in rows that have no "text" and hold there what can only be an image. A title that is one of the texts
    is embedded where it stands among them, once. leave_out: fields that are not kept as metadata; of parquet not even read.
    """

    id: str | None = None  # "row" numbers the rows from 0
    text: tuple[str, ...] | None = None  # several are joined with one space; None: "text", and none beside an image
    title: str | None = None
    image: str | None = None
    leave_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("text", "leave_out"):
            if isinstance(one := getattr(self, name), str):
                object.__setattr__(self, name, (one,))

    def of(self, row: Mapping[str, Any]) -> Fields:
        """These fields for one row, with nothing left open: no title and no text beside an image, unless named; no id where the
        row has none."""
        image = self.image
        if image is None and self.text is None and "text" not in row and is_stored_image(row.get(IMAGE)):
            image = IMAGE
        text = self.text if self.text is not None else ("text",) if image is None else ()
        title = self.title or ("title" if image is None else None)
        identifier = self.id or next((name for name in ID_FIELDS if name in row), None)
        return Fields(identifier, text, None if title in text else title, image, self.leave_out)

    @property
    def known(self) -> frozenset[str]:
        """The fields that are no metadata."""
        own = [name for name in (self.title, self.image, self.id if self.id != ROW else None) if name]
        return frozenset((*own, *(self.text or ()), *self.leave_out))


def read_corpus(source: Any, fields: Fields = Fields(), *, limit: int | None = None) -> Iterator[Document]:
    """The documents of a source, streamed, with distinct ids.

    source: a path to a file or folder, "-" (jsonl on standard input), "hf:NAME[:SPLIT]" (the hub), or in Python an
    iterable of dicts, of Documents or of strings (numbered from 0), a pandas DataFrame, a `datasets.Dataset`.
    Raises DataError for a row that cannot be used or a source without any, UsageError for a source that is not there.
    """
    rows, name, base = _open(source, fields)
    if limit is not None and limit < 1:
        raise UsageError(f"limit={limit} was asked for; expected at least 1.")

    def came_before(identifier: str, position: int) -> bool:
        """Reads the source again, up to a row whose id has the hash of an earlier one, where it can be read twice."""
        if source == STDIN or isinstance(source, Iterator):
            return True  # not this one: an error in 3e-8 of all runs over a million rows
        earlier = enumerate(itertools.islice(_open(source, fields)[0], position))
        return any(to_document(row, where, fields, number).id == identifier for number, (where, row) in earlier)

    return _documents(itertools.islice(rows, limit and min(limit, sys.maxsize)), name, fields, base, came_before)


def check_source(source: str) -> None:
    """Raises UsageError for a file or folder that is not there: at once, not after a model was loaded for nothing."""
    if source != STDIN and not source.startswith(HUB):
        _open(source, Fields())


def _documents(
    rows: PlacedRows, name: str, fields: Fields, base: Path | None, came_before: Callable[[str, int], bool]
) -> Iterator[Document]:
    """Remembers 8 bytes a row. came_before: whether an id stands in the rows before a position, asked at equal hashes."""
    seen, position = DistinctIds(), -1
    for position, (where, row) in enumerate(rows):
        document = to_document(row, where, fields, position, base)
        if seen.add(document.id) and came_before(document.id, position):
            raise DataError(
                f"{where}: the id {document.id!r} came before; give each row an id of its own, or use --id row."
            )
        yield document
    if position < 0:
        raise DataError(f"{name} is empty; expected at least one row.")


def _open(source: Any, fields: Fields) -> tuple[PlacedRows, str, Path | None]:
    """Rows, each with its place for messages, the name of the whole, and where relative paths in it begin."""
    if isinstance(source, (str, Path)):
        text = str(source)
        if text == STDIN:
            return jsonl_rows(standard_input(), "standard input"), "standard input", Path()
        if text.startswith(HUB):
            return hub_rows(text.removeprefix(HUB), fields.leave_out), text, None
        path = Path(text)
        if not text or not path.exists():
            raise UsageError(
                f"{text or 'An empty name'} is not there; expected a file, a folder, '-' for standard input, or hf:NAME."
            )
        if path.is_dir():
            return folder_rows(path, fields.leave_out, images=fields.image is not None), text, path
        if not path.is_file():
            raise UsageError(f"{text} is a pipe or a device; expected a file, a folder, or '-' for standard input.")
        return file_rows(path, fields.leave_out), text, path.parent
    if hasattr(source, "cast_column"):  # a datasets.Dataset
        return dataset_rows(source, fields.leave_out, "the rows"), "the rows", Path()
    if hasattr(source, "to_dict") and hasattr(source, "columns"):  # pandas, without importing it
        return frame_rows(source, fields.leave_out, "the table"), "the table", Path()
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise UsageError(
            f"A {type(source).__name__} came as corpus; expected a path, rows (dicts or strings), a DataFrame or a Dataset."
        )
    return ((f"the rows, row {number}", row) for number, row in enumerate(source, 1)), "the rows", Path()


def standard_input() -> IO[bytes]:
    """Under a buffer of its own: Python cannot end while a thread sits in a read of sys.stdin, as it does on an idle pipe.

    Raises UsageError where there is none, as in a daemon or after `<&-`."""
    if sys.stdin is None:
        raise UsageError("Standard input is closed; give it something to read, or name a file instead of '-'.")
    try:
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except (OSError, ValueError, AttributeError):  # no file: something that stands in for one
        return sys.stdin.buffer


def to_document(row: Any, where: str, fields: Fields, position: int, base: Path | None = None) -> Document:
    """One row as a Document. base: where relative paths of images begin; None: nowhere.

    Raises DataError, opening with `where`, for what is missing or of the wrong type.
    """
    if isinstance(row, Document):
        image = row.image
        row = {"_id": row.id, "title": row.title, "text": row.text, "metadata": row.metadata}
        return replace(to_document(row, where, Fields(), position), image=image)
    if isinstance(row, str):
        return Document(id=str(position), text=storable(row, "text", where))
    if is_image(row):
        fields, row = Fields(id=ROW), {IMAGE: row}
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: a {type(row).__name__} came, a dict or a string was expected.")
    asked, fields = fields, fields.of(row)
    known = fields.known
    text = " ".join(_string(row, name, where, "--text") for name in fields.text or ())
    if len(fields.text or ()) > 1:
        storable(text, "text", where)
    titled = asked.title is not None or not missing(row.get(str(fields.title)))
    title = _string(row, fields.title, where, "--title") if fields.title and titled else ""
    metadata = by_name(((key, value) for key, value in row.items() if key not in known), None, where)
    if isinstance(metadata.get("metadata"), dict):
        metadata = _lifted(metadata, fields, where)
    document = Document(id=_id(row, where, asked, fields, position), text=text, title=title, metadata=metadata)
    return document if fields.image is None else _with_image(document, row, where, fields, base)


def _lifted(metadata: dict[str, Any], fields: Fields, where: str) -> dict[str, Any]:
    """BEIR keeps the other fields one level down, in "metadata". Raises DataError where a field stands in both with two values."""
    nested = metadata.pop("metadata")
    for name in metadata.keys() & nested.keys():
        if metadata[name] != nested[name]:
            raise DataError(
                f"{where}: the field {name!r} has another value in 'metadata'; keep one of them, or use --leave-out {name}."
            )
    return metadata | {name: value for name, value in nested.items() if name not in fields.leave_out}


def _with_image(document: Document, row: Mapping[str, Any], where: str, fields: Fields, base: Path | None) -> Document:
    """The document of an image: its text where that is read too, else its path, which stands among the metadata as well."""
    name = str(fields.image)
    if name not in row:
        raise DataError(f"{where}: {_is_missing(row, name)}; fill it, or name another with --image FIELD.")
    value = None if missing(row[name]) else row[name]
    text = document.full_text if fields.text or fields.title else None
    picture, path = picture_of(value, where, name, base, text), path_of(value)
    kept = {**document.metadata, name: path or None}
    return replace(document, text=path if text is None else document.text, metadata=kept, image=picture)


def _id(row: Mapping[str, Any], where: str, asked: Fields, fields: Fields, position: int) -> str:
    """asked: as they were given; fields: those of the row."""
    if asked.id == ROW:
        return str(position)
    name = fields.id
    if name is None or missing(row.get(name)):
        looked = asked.id or ", ".join(ID_FIELDS)
        raise DataError(
            f"{where}: no id (looked for {looked}); name the field with --id FIELD, or number the rows with --id row."
        )
    value = row[name]
    if isinstance(value, bytes):
        value = utf8(value, name, where)
    try:
        if isinstance(value, bool):
            raise TypeError
        text = str(value) if isinstance(value, (str, UUID)) else str(operator.index(value))
    except (TypeError, ValueError):  # an array has __index__ too, and refuses; a number of thousands of digits
        raise DataError(
            f"{where}: the id is a {type(value).__name__} ({shown(value)}); expected a string, a whole number or a UUID."
        ) from None
    return checked_id(text, where)


def checked_id(identifier: str, where: str) -> str:
    """The id, one line of text. Raises DataError for another."""
    if not storable(identifier, "id", where) or any(character in identifier for character in "\r\n\0"):
        raise DataError(
            f"{where}: the id {shown(identifier)} is empty or holds a line break; give each row a one-line id."
        )
    return identifier


def _string(row: Mapping[str, Any], name: str, where: str, option: str) -> str:
    value = row.get(name)
    if missing(value):
        state = f"the field {name!r} is null" if name in row else _is_missing(row, name)
        raise DataError(f"{where}: {state}; fill it, or name another with {option} FIELD.")
    if isinstance(value, bytes):
        value = utf8(value, name, where)
    if not isinstance(value, str):
        raise DataError(f"{where}: the field {name!r} is a {type(value).__name__} ({shown(value)}); expected a string.")
    return storable(value, name, where)


def _is_missing(row: Mapping[str, Any], name: str) -> str:
    some = ", ".join(map(shown, itertools.islice(row, NAMES))) or "none"
    return f"the field {name!r} is missing (the row has {some}{', ...' if len(row) > NAMES else ''})"
