"""numpy and parquet: vectors.npy with its ids and manifest, as `embedkit embed` writes them, and rows.parquet beside it.

So the folder is read by numpy and pandas, and by `embedkit index build` again, with the fingerprint of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from embedkit.engine.outputs import FORMAT, VERSION, Names
from embedkit.export.blocks import Block, Stream, Table
from embedkit.export.parity import Opened
from embedkit.storage import file_record, npy_header, sealed_json, sealed_partial
from embedkit.types import Rows, Vectors

VECTORS, TABLE = "vectors.npy", "rows.parquet"
AT_ONCE = 16_384  # rows scored at once


def write_arrays(folder: Path, stream: Stream) -> None:
    """float16 where the index holds that, else float32."""
    names, manifest = Names(folder / VECTORS), stream.snapshot.manifest
    dtype = np.dtype("<f2" if manifest.fine == "float16" else "<f4")
    with sealed_partial(names.path) as vectors, sealed_partial(names.ids) as ids:
        vectors.write(npy_header((len(stream), stream.dim), dtype))

        def written() -> Iterator[Block]:
            for block in stream:
                vectors.write(block.vectors.astype(dtype).tobytes())
                ids.write("".join(f"{identifier}\n" for identifier in block.ids).encode())
                yield block

        write_table(folder, Table(stream, vectors=False), written())
    source = manifest.source
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "files": {path.name: file_record(path) for path in (names.path, names.ids)},
        "count": len(stream),
        "dim": stream.dim,
        "dtype": dtype.name,
        "fingerprint": source.fingerprint,
        "settings": dict(source.settings),
        "compute": dict(source.compute),
        "similarity": manifest.metric,
        "first_input": source.first_input,
        "on_long": "truncate",
    }
    with sealed_partial(names.manifest) as stream_out:
        stream_out.write(sealed_json(facts))


def write_table(folder: Path, table: Table, blocks: Iterator[Block]) -> None:
    """rows.parquet: line n says what row n stands for."""
    import pyarrow.parquet

    with sealed_partial(folder / TABLE) as stream, pyarrow.parquet.ParquetWriter(stream, table.schema) as writer:
        for block in blocks:
            writer.write_batch(table.batch(block))


def read_ids(folder: Path, rows: Rows) -> list[list[str]]:
    """The ids that rows.parquet gives to row numbers (q, k)."""
    import pyarrow
    import pyarrow.parquet

    wanted, found, first = np.unique(rows[rows >= 0]), dict[int, str](), 0
    with pyarrow.parquet.ParquetFile(folder / TABLE) as table:
        for batch in table.iter_batches(columns=["id"]):
            numbers = wanted[(wanted >= first) & (wanted < first + len(batch))]
            names = batch.column("id").take(pyarrow.array(numbers - first)).to_pylist()
            found.update(zip(numbers.tolist(), names, strict=True))
            first += len(batch)
    return [[found.get(row, "") for row in some] for some in rows.tolist()]


@contextmanager
def opened_arrays(folder: Path) -> Iterator[Opened]:
    vectors = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)

    def search(queries: Vectors, k: int) -> tuple[Rows, list[list[str]]]:
        scores, rows = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1)
        for start in range(0, len(vectors), AT_ONCE):
            some = queries @ np.asarray(vectors[start : start + AT_ONCE], np.float32).T
            numbers = np.broadcast_to(np.arange(start, start + some.shape[1]), some.shape)
            scores, rows = np.concatenate([scores, some], axis=1), np.concatenate([rows, numbers], axis=1)
            best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            scores, rows = np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)
        return rows, read_ids(folder, rows)

    yield Opened(len(vectors), search)
