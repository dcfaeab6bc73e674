"""Rows of any source, as Documents: which field is what, and what a row must hold."""

from __future__ import annotations

import itertools
import math
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

from embedkit.corpus.distinct import DistinctIds
from embedkit.corpus.formats import PlacedRows, file_rows, folder_rows, hub_rows, jsonl_rows, placed
from embedkit.errors import DataError, UsageError
from embedkit.types import Document, is_unicode

ID_FIELDS = ("_id", "id", "docid")
STDIN, HUB = "-", "hf:"
ROW = "row"  # as id field: number the rows


@dataclass(frozen=True)
class Fields:
    """Which fields of a row are id, text and title; the names of the field's conventions when left out."""

    id: str | None = None  # "row" numbers the rows from 0
    text: tuple[str, ...] = ("text",)  # several are joined with one space
    title: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.text, str):
            object.__setattr__(self, "text", (self.text,))

    @property
    def known(self) -> frozenset[str]:
        ids = ID_FIELDS if self.id is None else (self.id,)
        return frozenset((*ids, *self.text, self.title or "title"))


def read_corpus(source: Any, fields: Fields = Fields(), *, limit: int | None = None) -> Iterator[Document]:
    """The documents of a source, streamed, with distinct ids.

    source: a path to a file or folder, "-" (jsonl on standard input), "hf:NAME[:SPLIT]" (the hub), or in Python an
    iterable of dicts, of Documents or of strings (numbered from 0), a pandas DataFrame, a `datasets.Dataset`.
    Raises DataError for a row that cannot be used or a source without any, UsageError for a source that is not there.
    """
    rows, name = _open(source)
    if limit is not None and limit < 1:
        raise UsageError(f"limit={limit} was asked for; expected at least 1.")

    def came_before(identifier: str, position: int) -> bool:
        """Reads the source again, up to a row whose id has the hash of an earlier one, where it can be read twice."""
        if source == STDIN or isinstance(source, Iterator):
            return True  # not this one: an error in 3e-8 of all runs over a million rows
        earlier = enumerate(itertools.islice(_open(source)[0], position))
        return any(to_document(row, where, fields, number).id == identifier for number, (where, row) in earlier)

    return _documents(itertools.islice(rows, limit), name, fields, came_before)


def check_source(source: str) -> None:
    """Raises UsageError for a file or folder that is not there: at once, not after a model was loaded for nothing."""
    if source != STDIN and not source.startswith(HUB):
        _open(source)


def _documents(
    rows: PlacedRows, name: str, fields: Fields, came_before: Callable[[str, int], bool]
) -> Iterator[Document]:
    """Remembers 8 bytes a row. came_before: whether an id stands in the rows before a position, asked at equal hashes."""
    seen, position = DistinctIds(), -1
    for position, (where, row) in enumerate(rows):
        document = to_document(row, where, fields, position)
        if seen.add(document.id) and came_before(document.id, position):
            raise DataError(
                f"{where}: the id {document.id!r} came before; give each row an id of its own, or use --id row."
            )
        yield document
    if position < 0:
        raise DataError(f"{name} is empty; expected at least one row.")


def _open(source: Any) -> tuple[PlacedRows, str]:
    """Rows, each with its place for messages, and the name of the whole."""
    if isinstance(source, (str, Path)):
        text = str(source)
        if text == STDIN:
            return jsonl_rows(_standard_input(), "standard input"), "standard input"
        if text.startswith(HUB):
            return hub_rows(text.removeprefix(HUB)), text
        path = Path(text)
        if not text or not path.exists():
            raise UsageError(
                f"{text or 'An empty name'} is not there; expected a file, a folder, '-' for standard input, or hf:NAME."
            )
        return folder_rows(path) if path.is_dir() else file_rows(path), text
    if hasattr(source, "to_dict") and hasattr(source, "columns"):  # pandas, without importing it
        columns = list(source.columns)
        values = source.itertuples(index=False, name=None)
        return placed((dict(zip(columns, row, strict=True)) for row in values), "the table"), "the table"
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise UsageError(
            f"A {type(source).__name__} came as corpus; expected a path, rows (dicts or strings), a DataFrame or a Dataset."
        )
    return placed(source, "the rows"), "the rows"


def _standard_input() -> IO[bytes]:
    """Under a buffer of its own: Python cannot end while a thread sits in a read of sys.stdin, as it does on an idle pipe."""
    try:
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except (OSError, ValueError, AttributeError):  # no file: something that stands in for one
        return sys.stdin.buffer


def to_document(row: Any, where: str, fields: Fields, position: int) -> Document:
    """One row as a Document. Raises DataError, opening with `where`, for what is missing or of the wrong type."""
    if isinstance(row, Document):
        row = {"_id": row.id, "title": row.title, "text": row.text, "metadata": row.metadata}
        fields = Fields()
    if isinstance(row, str):
        return Document(id=str(position), text=_encodable(row, "text", where))
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: a {type(row).__name__} came, a dict or a string was expected.")
    texts = [_string(row, name, where, "--text") for name in fields.text]
    title_field = fields.title or "title"
    title = "" if fields.title is None and _missing(row.get("title")) else _string(row, title_field, where, "--title")
    others = {key: value for key, value in row.items() if key not in fields.known}
    metadata = {_encodable(str(key), "name", where): _plain(value, key, where) for key, value in others.items()}
    nested = metadata.get("metadata")
    if isinstance(nested, dict):  # BEIR keeps the other fields one level down
        metadata = {**{k: v for k, v in metadata.items() if k != "metadata"}, **nested}
    return Document(id=_id(row, where, fields, position), text=" ".join(texts), title=title, metadata=metadata)


def _id(row: Mapping[str, Any], where: str, fields: Fields, position: int) -> str:
    if fields.id == ROW:
        return str(position)
    name = fields.id or next((name for name in ID_FIELDS if name in row), None)
    if name is None or _missing(row.get(name)):
        looked = fields.id or ", ".join(ID_FIELDS)
        raise DataError(
            f"{where}: no id (looked for {looked}); name the field with --id FIELD, or number the rows with --id row."
        )
    value = row[name]
    try:
        if isinstance(value, bool):
            raise TypeError
        text = value if isinstance(value, str) else str(operator.index(value))
    except TypeError:  # an array has __index__ too, and refuses
        raise DataError(
            f"{where}: the id is a {type(value).__name__} ({value!r}); expected a string or a whole number."
        ) from None
    return checked_id(text, where)


def checked_id(identifier: str, where: str) -> str:
    """The id, one line of text. Raises DataError for another."""
    if not _encodable(identifier, "id", where) or any(character in identifier for character in "\r\n\0"):
        raise DataError(f"{where}: the id {identifier!r} is empty or holds a line break; give each row a one-line id.")
    return identifier


def _string(row: Mapping[str, Any], name: str, where: str, option: str) -> str:
    value = row.get(name)
    if _missing(value):
        state = "is null" if name in row else f"is missing (the row has {', '.join(map(repr, row)) or 'none'})"
        raise DataError(f"{where}: the field {name!r} {state}; fill it, or name another with {option} FIELD.")
    if not isinstance(value, str):
        raise DataError(
            f"{where}: the field {name!r} is a {type(value).__name__} ({str(value)[:40]}); expected a string."
        )
    return _encodable(value, name, where)


def _encodable(text: str, name: str, where: str) -> str:
    if not is_unicode(text):
        raise DataError(
            f"{where}: the field {name!r} holds half of a character ({ascii(text)[:60]}); mend or remove it."
        )
    return text


def _missing(value: Any) -> bool:
    """None, NaN, and pandas' own NA and NaT."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or type(value).__name__ in ("NAType", "NaTType")
    )


def _plain(value: Any, name: str, where: str) -> Any:
    """A metadata value as JSON can hold it; dates and decimals as text, numpy values as Python's own, missing as None."""
    if _missing(value):
        return None
    if isinstance(value, float) and math.isinf(value):
        raise DataError(f"{where}: the field {name!r} is infinite, which JSON cannot hold; leave it out or use null.")
    if isinstance(value, (str, bool, int, float)) and type(value).__module__ == "builtins":
        return _encodable(value, name, where) if isinstance(value, str) else value
    if isinstance(value, Mapping):
        return {_encodable(str(key), name, where): _plain(item, name, where) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, name, where) for item in value]
    if isinstance(value, (date, time)):  # datetime and pandas' Timestamp are dates
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), name, where)
    raise DataError(
        f"{where}: the field {name!r} is a {type(value).__name__}, which cannot be stored beside the text; leave it out of the corpus."
    )
