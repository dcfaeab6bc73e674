"""Qdrant: a shard of Qdrant Edge, the engine of the server inside this process. It opens no socket and sends nothing.

Points are numbered by row; id, text and metadata are their payload. The embedded mode of qdrant-client is another: all of it is in
memory, and on disk every point is a pickle, which nothing here writes or reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from embedkit.errors import MissingDependency
from embedkit.export.blocks import Block, Stream
from embedkit.export.parity import Opened
from embedkit.storage import make_folder
from embedkit.types import Rows, Vectors

SHARD = "shard"


def write_edge_shard(folder: Path, stream: Stream) -> None:
    edge = _edge()
    make_folder(folder / SHARD)
    vectors = edge.EdgeVectorParams(size=stream.dim, distance=edge.Distance.Dot)
    shard = edge.EdgeShard.create(str(folder / SHARD), edge.EdgeConfig(vectors=vectors))
    try:
        for block in stream:
            points = [
                edge.Point(block.first + place, vector.tolist(), _payload(block, place, stream))
                for place, vector in enumerate(block.vectors)
            ]
            shard.update(edge.UpdateOperation.upsert_points(points))
        shard.flush()
    finally:
        shard.close()


def _payload(block: Block, place: int, stream: Stream) -> dict[str, Any]:
    document = block.documents[place]
    payload: dict[str, Any] = {"id": block.ids[place]}
    if stream.has_spans:
        start, end = block.spans[place].tolist()
        payload |= {"document": document.id, "start": start, "end": end}
    if stream.has_texts:
        payload |= {"title": document.title, "text": document.text}
    return {**payload, "metadata": dict(document.metadata)}


@contextmanager
def opened_edge_shard(folder: Path) -> Iterator[Opened]:
    edge = _edge()
    shard = edge.EdgeShard.load(str(folder / SHARD))

    def search(queries: Vectors, k: int) -> tuple[Rows, list[list[str]]]:
        rows, ids = np.full((len(queries), k), -1), []
        for place, query in enumerate(queries):
            nearest, exact = edge.Query.Nearest(query.tolist()), edge.SearchParams(exact=True)
            found = shard.query(edge.QueryRequest(limit=k, query=nearest, with_payload=["id"], params=exact))
            rows[place, : len(found)] = [point.id for point in found]
            ids.append([point.payload["id"] for point in found])
        return rows, ids

    try:
        yield Opened(shard.count(edge.CountRequest(exact=True)), search)
    finally:
        shard.close()


def _edge() -> Any:
    try:
        import qdrant_edge
    except ImportError:
        raise MissingDependency(
            'qdrant-edge-py is not installed; from the project\'s folder, run pip install -e ".[stores]".'
        ) from None
    return qdrant_edge
