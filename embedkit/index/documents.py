"""Ids, texts and metadata of the rows, in a SQLite file that is written once and then only read."""

from __future__ import annotations

import errno
import json
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from embedkit.errors import DataError, IntegrityError
from embedkit.types import Document

SCHEMA = """CREATE TABLE documents
    (row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, title TEXT NOT NULL, text TEXT, metadata TEXT NOT NULL)"""
AT_ONCE = 500  # values in one statement; SQLite allows 999 in its oldest builds


class DocumentWriter:
    """Fills a new file. Durability is the caller's: the file stands in a folder that `storage` publishes whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._execute("PRAGMA journal_mode=OFF")
        self._execute("PRAGMA synchronous=OFF")
        self._execute(SCHEMA)
        self._execute("BEGIN")
        self._count = 0

    def append(self, documents: Iterable[Document], *, texts: bool) -> None:
        """The next rows. texts=False stores ids alone. Raises DataError for an id that came before."""
        for document in documents:
            text = document.text if texts else None
            metadata = json.dumps(dict(document.metadata), ensure_ascii=False)
            try:
                self._execute(
                    "INSERT INTO documents VALUES (?, ?, ?, ?, ?)",
                    (self._count, document.id, document.title, text, metadata),
                )
            except sqlite3.IntegrityError:
                raise DataError(
                    f"Row {self._count}: the id {document.id!r} came before; give each row an id of its own."
                ) from None
            self._count += 1

    def close(self) -> None:
        self._execute("COMMIT")
        self._connection.close()

    def _execute(self, statement: str, values: Sequence[object] = ()) -> None:
        """Raises OSError where the disk is full, which SQLite says in its own way."""
        try:
            self._connection.execute(statement, values)
        except sqlite3.OperationalError as error:
            if "full" not in str(error):
                raise
            raise OSError(errno.ENOSPC, str(error), str(self._path)) from None


class DocumentReader:
    """Looks documents up by row or by id. May be used from several threads."""

    def __init__(self, path: Path) -> None:
        quoted = path.absolute().as_uri()
        self._connection = sqlite3.connect(f"{quoted}?mode=ro&immutable=1", uri=True, check_same_thread=False)
        self._path = path

    def ids(self, rows: Iterable[int]) -> dict[int, str]:
        """row -> id. Raises IntegrityError where a row has none."""
        wanted = sorted(set(rows))
        found = dict(self._select("row, id", "row", wanted))
        if len(found) < len(wanted):
            raise self._damaged(f"{len(wanted) - len(found)} rows have no id")
        return found

    def documents(self, rows: Iterable[int]) -> dict[int, Document]:
        """row -> Document."""
        found = self._select("row, id, title, text, metadata", "row", sorted(set(rows)))
        return {row: self._document(*rest) for row, *rest in found}

    def by_id(self, ids: Sequence[str]) -> dict[str, Document]:
        """id -> Document, for those that are there."""
        found = self._select("id, title, text, metadata", "id", list(dict.fromkeys(ids)))
        return {identifier: self._document(identifier, *rest) for identifier, *rest in found}

    def _select(self, columns: str, key: str, values: Sequence[int] | Sequence[str]) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = []
        try:
            for start in range(0, len(values), AT_ONCE):
                part = values[start : start + AT_ONCE]
                marks = ",".join("?" * len(part))
                found += self._connection.execute(f"SELECT {columns} FROM documents WHERE {key} IN ({marks})", part)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise self._damaged(error) from None
        return found

    def close(self) -> None:
        self._connection.close()

    def _document(self, identifier: str, title: str, text: str | None, metadata: str) -> Document:
        try:
            return Document(id=identifier, text=text or "", title=title, metadata=json.loads(metadata))
        except (ValueError, TypeError) as error:
            raise self._damaged(error) from None

    def _damaged(self, reason: object) -> IntegrityError:
        return IntegrityError(
            f"{self._path} is damaged ({reason}); run embedkit index verify, then build the index again."
        )
