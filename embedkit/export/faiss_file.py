"""Plain faiss: a flat index that `faiss.read_index` opens, its ids the row numbers of rows.parquet beside it.

faiss writes from a memory map of the rows, so that they need not fit in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from embedkit.export.arrays import read_ids, write_table
from embedkit.export.blocks import Block, Stream, Table
from embedkit.export.parity import Opened
from embedkit.index.faiss_import import import_faiss
from embedkit.index.fine import kernel_over, search_kernel
from embedkit.storage import remove, sealed_partial
from embedkit.types import Rows, Vectors

INDEX, GROWING = "index.faiss", "rows.f32"


def write_faiss_file(folder: Path, stream: Stream) -> None:
    """IndexFlatIP."""
    faiss = import_faiss()
    with sealed_partial(folder / GROWING) as vectors:

        def written() -> Iterator[Block]:
            for block in stream:
                vectors.write(block.vectors.tobytes())
                yield block

        write_table(folder, Table(stream, vectors=False), written())
    rows = np.memmap(folder / GROWING, "<f4", mode="r", shape=(len(stream), stream.dim))
    faiss.write_index(kernel_over(rows, "float32", None), str(folder / INDEX))
    remove(folder / GROWING)


@contextmanager
def opened_faiss_file(folder: Path) -> Iterator[Opened]:
    faiss = import_faiss()
    index = faiss.read_index(str(folder / INDEX), faiss.IO_FLAG_MMAP_IFC)

    def search(queries: Vectors, k: int) -> tuple[Rows, list[list[str]]]:
        _, rows = search_kernel(index, queries, k)
        return rows, read_ids(folder, rows)

    yield Opened(index.ntotal, search)
