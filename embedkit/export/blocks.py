"""What every format is made of: the rows of one version of an index, its segments joined, without what is deleted.

Rows are numbered from 0 in the order in which they come; a block of them is in memory at a time, and 8 bytes a row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np

from embedkit.engine.vector_folder import AS_JSON
from embedkit.index.segment import Segment
from embedkit.index.snapshot import Snapshot
from embedkit.types import Array, Document, Rows, Vectors

BLOCK = 4096  # rows
COLUMNS = 256  # of metadata, at most; a corpus with more has keys where others have values
EXACT_FLOAT = 1 << 53  # whole numbers up to here are floats, too
OWN = frozenset({"row", "id", "document", "start", "end", "title", "text", "vector", "metadata"})


@dataclass(frozen=True)
class Block:
    """Some rows, and what each stands for."""

    first: int  # number of the first row
    vectors: Vectors  # (n, dim)
    ids: list[str]  # of a row as hits name it: the document's, or "doc#3" where that has several
    documents: list[Document]  # of each row, its text cut to what the row covers
    spans: Array  # (n, 2) characters of the document's full text, (0, 0) for all of them


class Stream:
    """The rows of an index, to be read any number of times."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot, self.dim = snapshot, snapshot.manifest.dim
        self.has_texts = snapshot.manifest.texts
        self.has_spans = any(segment.spans is not None for segment in snapshot.segments)
        bases = snapshot.row_bases[:-1].tolist()
        rows = [_alive_rows(segment) + base for segment, base in zip(snapshot.segments, bases, strict=True)]
        self.keys: Rows = np.concatenate([np.empty(0, np.int64), *rows])  # (n,) the row key of each exported row

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Block]:
        first = 0
        for segment, base in zip(self.snapshot.segments, self.snapshot.row_bases[:-1].tolist(), strict=True):
            rows = _alive_rows(segment)
            for start in range(0, len(rows), BLOCK):
                yield self._block(first + start, segment, base, rows[start : start + BLOCK])
            first += len(rows)

    def _block(self, first: int, segment: Segment, base: int, rows: Rows) -> Block:
        numbers = segment.documents_of(rows).tolist()
        found = segment.documents.documents(numbers)
        spans = np.zeros((len(rows), 2), "<u4") if segment.spans is None else np.asarray(segment.spans[rows])
        documents = [_passage(found[number], *span) for number, span in zip(numbers, spans.tolist(), strict=True)]
        return Block(first, segment.fine.rows(rows), self.snapshot.row_ids(rows + base), documents, spans)

    def documents(self) -> Iterator[Document]:
        """Whole, each once."""
        for segment in self.snapshot.segments:
            alive = np.ones(segment.record.documents, bool) if segment.alive is None else segment.alive
            yield from compress(segment.documents.stream(), alive)


def _alive_rows(segment: Segment) -> Rows:
    if segment.alive is None:
        return np.arange(segment.record.rows)
    return np.flatnonzero(segment.rows_of(segment.alive))


def _passage(document: Document, start: int, end: int) -> Document:
    if start == end:
        return document
    return Document(document.id, document.full_text[start:end], document.title, document.metadata)


# --- as tables --------------------------------------------------------------------------------------------------------


class Table:
    """The same rows as Arrow tables. A metadata field whose values are all of one plain type is a column, under its name; what
    is left stands in the column `metadata` as JSON, one object a row. Cost: one pass over the documents to learn the columns."""

    def __init__(self, stream: Stream, *, vectors: bool) -> None:
        import pyarrow as pa

        self.stream, self._vectors = stream, vectors
        kinds = _kinds(stream.documents())
        types = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "str": pa.string()}
        plain = {name: kind for name, kind in kinds.items() if kind in types and name.isidentifier()}
        plain = {name: kind for name, kind in plain.items() if name not in OWN and not name.startswith("_")}
        self._plain = plain if len(plain) <= COLUMNS else {}
        columns: dict[str, Any] = {"row": pa.int64()} if vectors else {}
        columns["id"] = pa.string()
        if stream.has_spans:
            columns |= {"document": pa.string(), "start": pa.int64(), "end": pa.int64()}
        if stream.has_texts:
            columns |= {"title": pa.string(), "text": pa.string()}
        columns |= {name: types[kind] for name, kind in self._plain.items()}
        if kinds.keys() - self._plain.keys():
            columns["metadata"] = pa.string()
        if vectors:
            columns["vector"] = pa.list_(pa.float32(), stream.dim)
        fields = (
            pa.field(name, kind, metadata=AS_JSON if name == "metadata" else None) for name, kind in columns.items()
        )
        self.schema = pa.schema(fields)

    def __iter__(self) -> Iterator[Any]:
        """Record batches, a block each."""
        for block in self.stream:
            yield self.batch(block)

    def batch(self, block: Block) -> Any:
        import pyarrow as pa

        documents = block.documents
        values: dict[str, Any] = {
            "row": np.arange(block.first, block.first + len(block.ids)),
            "id": block.ids,
            "document": [document.id for document in documents],
            "start": block.spans[:, 0].astype(np.int64),
            "end": block.spans[:, 1].astype(np.int64),
            "title": [document.title for document in documents],
            "text": [document.text for document in documents],
            "metadata": [self._rest(document.metadata) for document in documents],
        }
        for name in self._plain:
            values[name] = [document.metadata.get(name) for document in documents]
        arrays = [pa.array(values[field.name], field.type) for field in self.schema if field.name != "vector"]
        if self._vectors:
            flat = pa.array(block.vectors.reshape(-1))
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, self.stream.dim))
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _rest(self, metadata: Mapping[str, Any]) -> str:
        return json.dumps(
            {name: value for name, value in metadata.items() if name not in self._plain}, ensure_ascii=False
        )


def _kinds(documents: Iterator[Document]) -> dict[str, str]:
    """field -> "bool", "int", "float" or "str" where all its values are of that type, "" where they are not."""
    kinds: dict[str, str] = {}
    for document in documents:
        for name, value in document.metadata.items():
            if value is None:
                continue
            before, kind = kinds.get(name), _kind(value)
            if before is not None and before != kind:
                kind = "float" if {before, kind} == {"int", "float"} else ""
            kinds[name] = kind
    return kinds


def _kind(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > EXACT_FLOAT:
        return ""
    return type(value).__name__ if isinstance(value, (bool, int, float, str)) else ""
