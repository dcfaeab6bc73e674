"""Writes an index in another format: a folder that is whole, and has been searched, or is not there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from embedkit.errors import UsageError
from embedkit.export.arrays import opened_arrays, write_arrays
from embedkit.export.blocks import Stream
from embedkit.export.edge_shard import opened_edge_shard, write_edge_shard
from embedkit.export.faiss_file import opened_faiss_file, write_faiss_file
from embedkit.export.lance_table import opened_lance_table, write_lance_table
from embedkit.export.parity import Opened, check_parity
from embedkit.index.snapshot import Snapshot
from embedkit.storage import atomic_folder, check_absent, check_is_text, lock, make_folder, remove, write_json
from embedkit.version import __version__


class Format(NamedTuple):
    write: Callable[[Path, Stream], None]  # into an empty folder
    opened: Callable[[Path], AbstractContextManager[Opened]]


FORMATS = {
    "numpy": Format(write_arrays, opened_arrays),
    "faiss": Format(write_faiss_file, opened_faiss_file),
    "lancedb": Format(write_lance_table, opened_lance_table),
    "qdrant": Format(write_edge_shard, opened_edge_shard),
}
RECORD = "export.json"


def export_index(path: str | Path, output: str | Path, format: str) -> dict[str, Any]:
    """Writes the index at `path` into a new folder and returns what was written, as it stands in its export.json.

    format: "numpy" (what `embedkit embed` writes, and parquet), "faiss" (a flat index, and parquet), "lancedb" (a database
    with the table `documents`) or "qdrant" (a shard of Qdrant Edge). The rows are those that verify hits, decoded to float32;
    of a cosine index they have length 1 and are compared by their inner products. Deleted documents stay behind. Before the folder
    appears, it is opened by its own library, and 100 stored rows must find there the 10 nearest that an exact search of the index
    finds. Raises UsageError for a path that is taken, MissingDependency, and IntegrityError where a byte of the index has changed
    or the answers differ.
    """
    if format not in FORMATS:
        raise UsageError(f"format={format!r} came; expected {', '.join(FORMATS)}.")
    target = Path(output).absolute()
    check_is_text(target)
    check_absent(target)
    snapshot = Snapshot(Path(path), check=True)  # a changed byte would be handed on as the truth
    try:
        stream = Stream(snapshot)
        if not len(stream):
            raise UsageError(f"{path} holds no documents; there is nothing to export.")
        make_folder(target.parent)
        held = target.with_name(f"{target.name}.lock")
        with lock(held, target):
            try:
                check_absent(target)  # another may have published it before we held the lock
                return _written(stream, target, format)
            finally:
                remove(held)
    finally:
        snapshot.close()


def _written(stream: Stream, target: Path, format: str) -> dict[str, Any]:
    manifest = stream.snapshot.manifest
    with atomic_folder(target) as folder:
        FORMATS[format].write(folder, stream)
        with FORMATS[format].opened(folder) as opened:
            parity = check_parity(stream, opened, f"The export to {format}")
        facts = {
            "format": format,
            "rows": len(stream),
            "documents": manifest.documents,
            "dim": manifest.dim,
            "metric": manifest.metric,
            "model": manifest.source.model,
            "fingerprint": manifest.source.fingerprint,
            "version": manifest.number,
            "parity": parity._asdict(),
            "embedkit": __version__,
        }
        write_json(folder / RECORD, facts)
    return facts
