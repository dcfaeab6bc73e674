"""Vectors from disk, beside what made them, all of it verified: NAME.npy or NAME.parquet, as a job publishes them.

The manifest names size and SHA-256 of the other files. It is renamed first when a job publishes: a crash between the
renames leaves a manifest that does not fit, which `open_vectors` refuses until the job is resumed. Cost: one read of all
files; rows of an .npy are mapped, those of parquet are read into memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedkit.engine.ledger import head_of
from embedkit.engine.outputs import FORMAT, VERSION, Names
from embedkit.engine.vector_folder import is_vector_folder
from embedkit.errors import DataError, IntegrityError, UsageError
from embedkit.storage import check_file, read_json
from embedkit.types import Array
from embedkit.vectors import Ranges

READABLE = (1, VERSION)  # the first had no times apart and no rows set aside


@dataclass(frozen=True)
class VectorFile:
    """Rows that need not fit in memory, and what their manifest says of them."""

    rows: Array  # (n, dim) as they are stored, a read-only memory map; of a parquet file, an array
    ids: list[str]  # of the rows: of documents, or "doc#0" where these were cut into chunks
    manifest: dict[str, Any]  # empty for an array that embedkit did not write
    ranges: Ranges | None = None  # by which rows of the precision int8 are read


def open_vectors(path: Path) -> VectorFile:
    """What `embed_to_file` wrote, its checksums verified; or, of anybody, a two-dimensional `.npy` of numbers, its rows
    numbered, or a parquet file with the columns id and embedding.

    Raises UsageError where there is no such file, DataError for an array of another kind, IntegrityError for a damaged one.
    """
    if not path.is_file():
        raise UsageError(f"{path} is not there; expected a .npy or .parquet file of vectors.")
    names = Names(path)
    manifest = _checked_manifest(names) if names.manifest.exists() else {}
    ranges = Ranges.read(names.ranges) if names.ranges.name in manifest.get("files", ()) else None
    dtype = np.dtype(manifest.get("dtype", "float32"))
    if path.suffix == ".parquet":
        return VectorFile(*_read_parquet(path, dtype), manifest, ranges)
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy meets a damaged header with ValueError, TokenError, EOFError, ...
        raise DataError(f"{path} is not an array of numbers ({error}); expected one of shape (rows, dim).") from None
    if rows.ndim != 2 or rows.dtype.kind != dtype.kind:
        raise DataError(f"{path} holds {rows.dtype} of shape {rows.shape}; expected floats of shape (rows, dim).")
    ids = _read_ids(names.ids) if names.ids.exists() else list(map(str, range(len(rows))))
    if len(ids) != len(rows):
        raise DataError(f"{names.ids} has {len(ids)} lines, {path} has {len(rows)} rows; expected one id a row.")
    return VectorFile(rows, ids, manifest, ranges)


def holds_vectors(path: Path) -> bool:
    """Whether a path names vectors rather than a corpus: any .npy, a .parquet file that `embed_to_file` wrote, a folder of such."""
    if is_vector_folder(path):
        return True
    return path.suffix == ".npy" or (path.suffix == ".parquet" and Names(path).manifest.exists())


def _checked_manifest(names: Names) -> dict[str, Any]:
    manifest = read_json(names.manifest)
    if manifest.get("format") != FORMAT or manifest.get("version") not in READABLE:
        raise IntegrityError(f"{names.manifest} has another format than {FORMAT} {VERSION}; embed again.")
    if names.path.name not in manifest["files"]:
        raise IntegrityError(
            f"{names.manifest} belongs to {', '.join(manifest['files'])}, not to {names.path.name}; open that, or embed again."
        )
    try:
        for name, record in manifest["files"].items():
            check_file(names.path.parent / name, record)
    except IntegrityError as error:
        if head_of(names.ledger) is None:
            raise
        raise IntegrityError(f"{error} A run is half done here: finish it with embedkit embed --resume.") from None
    return manifest


def _read_parquet(path: Path, dtype: np.dtype[Any]) -> tuple[Array, list[str]]:
    """Row group by row group into one array."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            groups = (table.read_row_group(number, ["id", "embedding"]) for number in range(table.num_row_groups))
            rows, ids = np.empty((0, 0), dtype), list[str]()
            for group in groups:
                column = group.column("embedding").combine_chunks()
                block = column.flatten().to_numpy(zero_copy_only=False).reshape(len(group), -1)
                if not len(ids):
                    rows = np.empty((table.metadata.num_rows, block.shape[1]), dtype)
                rows[len(ids) : len(ids) + len(block)] = block
                ids += group.column("id").cast(pyarrow.string()).to_pylist()
            if not len(ids):
                rows = np.empty((0, getattr(table.schema_arrow.field("embedding").type, "list_size", 0)), dtype)
            return rows, ids
    except (pyarrow.ArrowException, ValueError, KeyError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            f"{path} holds no vectors ({reason}); expected the columns id and embedding, lists of one length."
        ) from None


def _read_ids(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8").removesuffix("\n")
        return text.split("\n") if text else []
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}); write one id a line in UTF-8.") from None
