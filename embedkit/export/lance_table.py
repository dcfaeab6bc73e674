"""LanceDB: a database with one table, written and searched by its embedded engine. It has no telemetry to turn off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from embedkit.errors import MissingDependency
from embedkit.export.blocks import Stream, Table
from embedkit.export.parity import Opened
from embedkit.types import Rows, Vectors

TABLE, VECTOR = "documents", "vector"


def write_lance_table(folder: Path, stream: Stream) -> None:
    import pyarrow as pa

    database = _database(folder)
    table = Table(stream, vectors=True)
    database.create_table(TABLE, pa.RecordBatchReader.from_batches(table.schema, table))


@contextmanager
def opened_lance_table(folder: Path) -> Iterator[Opened]:
    table = _database(folder).open_table(TABLE)

    def search(queries: Vectors, k: int) -> tuple[Rows, list[list[str]]]:
        rows, ids = np.full((len(queries), k), -1), []
        for place, query in enumerate(queries):
            asked = table.search(query, vector_column_name=VECTOR).distance_type("dot").bypass_vector_index()
            found = asked.select(["row", "id", "_distance"]).limit(k).to_arrow()
            rows[place, : len(found)] = found.column("row").to_numpy()
            ids.append(found.column("id").to_pylist())
        return rows, ids

    yield Opened(table.count_rows(), search)


def _database(folder: Path) -> Any:
    try:
        import lancedb
    except ImportError:
        raise MissingDependency(
            'lancedb is not installed; from the project\'s folder, run pip install -e ".[stores]".'
        ) from None
    return lancedb.connect(str(folder))
