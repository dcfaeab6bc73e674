"""Vectors from disk, beside what made them, all of it verified: NAME.npy or NAME.parquet, as a job publishes them.

The manifest names size and SHA-256 of the other files. It is renamed first when a job publishes: a crash between the
renames leaves a manifest that does not fit, which `open_vectors` refuses until the job is resumed. Cost: one read of all
files; rows of an .npy are mapped, those of parquet are read into memory.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from embedkit.corpus.id_list import read_ids
from embedkit.engine.ledger import head_of
from embedkit.engine.outputs import FORMAT, VERSION, Names
from embedkit.engine.vector_folder import is_vector_folder
from embedkit.errors import DataError, IntegrityError, UsageError
from embedkit.limits import open_regular, shown
from embedkit.storage import check_file, check_is_text, read_json
from embedkit.typed import checked
from embedkit.types import Array
from embedkit.vectors import Ranges

logger = logging.getLogger(__name__)
READABLE = (1, VERSION)  # the first had no times apart and no rows set aside
VECTORS_NAME = re.compile("emb|vec", re.IGNORECASE)
LONG = 8  # numbers of a list that may be a vector, whatever its name; places and boxes have up to 6
LOOKED_AT = 16  # rows of a parquet file: do they hold vectors?


class FileRecord(TypedDict):
    bytes: int
    sha256: str


class Settings(TypedDict, total=False):
    model: str | None


class Known(TypedDict):
    """What every manifest beside vectors says."""

    format: str
    version: int
    files: dict[str, FileRecord]
    count: int
    dim: int
    dtype: Literal["float32", "float16", "uint8"]


class VectorManifest(Known, total=False):
    """What is read of it beside; older versions, and exports, say less."""

    fingerprint: str | None
    settings: Settings
    compute: dict[str, Any]
    similarity: str
    on_long: Literal["truncate", "chunk", "error"]
    first_input: str | None
    precision: Literal["float32", "float16", "int8", "binary"]
    documents: int
    empty_texts: int
    set_aside: int


@dataclass(frozen=True)
class VectorFile:
    """Rows that need not fit in memory, and what their manifest says of them."""

    rows: Array  # (n, dim) as they are stored, a read-only memory map; of a parquet file, an array
    ids: Sequence[str]  # of the rows: of documents, or "doc#0" where these were cut into chunks
    manifest: dict[str, Any]  # empty for an array that embedkit did not write
    ranges: Ranges | None = None  # by which rows of the precision int8 are read


class RowNumbers(Sequence[str]):
    """The ids of rows that nobody named: "0", "1", ..."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: Any) -> Any:
        found = range(self._count)[place]
        return RowNumbers(len(found)) if isinstance(place, slice) else str(found)


def open_vectors(path: Path) -> VectorFile:
    """What `embed_to_file` wrote, its checksums verified; or, of anybody, a two-dimensional `.npy` of numbers, its rows
    numbered, or a parquet file with the columns id and embedding.

    Raises UsageError where there is no such file, DataError for an array of another kind, IntegrityError for a damaged one.
    """
    if not path.is_file():
        raise UsageError(f"{path} is not there; expected a .npy or .parquet file of vectors.")
    check_is_text(path)
    names = Names(path)
    manifest = _checked_manifest(names) if names.manifest.exists() else {}
    ranges = Ranges.read(names.ranges) if names.ranges.name in manifest.get("files", ()) else None
    dtype = np.dtype(manifest.get("dtype", "float32"))
    ids: Sequence[str]
    if path.suffix == ".parquet":
        rows, ids = _read_parquet(path, dtype)
    else:
        rows = _mapped(path)
        if rows.ndim != 2 or rows.dtype.kind != dtype.kind or rows.shape[1] == 0:
            raise DataError(f"{path} holds {rows.dtype} of shape {rows.shape}; expected floats of shape (rows, dim).")
        ids = _read_ids(names.ids) if names.ids.exists() else RowNumbers(len(rows))
        if len(ids) != len(rows):
            raise DataError(f"{names.ids} has {len(ids)} lines, {path} has {len(rows)} rows; expected one id a row.")
    if manifest:
        _check_rows(names, manifest, rows, ranges)
    return VectorFile(rows, ids, manifest, ranges)


def _mapped(path: Path) -> Array:
    try:
        return np.lib.format.open_memmap(path, mode="r")  # not np.load, which opens zip archives under the name, too
    except Exception as error:  # numpy meets a damaged header with ValueError, TokenError, EOFError, ...
        raise DataError(f"{path} is not an array of numbers ({error}); expected one of shape (rows, dim).") from None


def _check_rows(names: Names, manifest: dict[str, Any], rows: Array, ranges: Ranges | None) -> None:
    """Raises IntegrityError where the manifest speaks of other rows: its checksum fits, but somebody else made it."""
    width = -(-manifest["dim"] // 8) if manifest.get("precision") == "binary" else manifest["dim"]
    coded = manifest.get("precision") == "int8" and len(rows) > 0
    if rows.shape != (manifest["count"], width) or coded != (ranges is not None):
        raise IntegrityError(
            f"{names.manifest} speaks of {shown(manifest['count'])} rows of {shown(manifest['dim'])} numbers in "
            f"{manifest.get('precision', manifest['dtype'])}, {names.path.name} is of shape {rows.shape}"
            f"{'' if ranges is None else ' with ranges'}; embed again."
        )
    if ranges is not None and (ranges.dim, rows.dtype) != (width, np.uint8):
        raise IntegrityError(f"{names.ranges} is of {ranges.dim} dimensions, {names.path} of {width}; embed again.")


def holds_vectors(path: Path) -> bool:
    """Whether a path names vectors rather than a corpus: any .npy, a .parquet file that `embed_to_file` wrote, a folder of such."""
    if is_vector_folder(path):
        return True
    return path.suffix == ".npy" or (path.suffix == ".parquet" and Names(path).manifest.exists())


def _checked_manifest(names: Names) -> dict[str, Any]:
    manifest = read_json(names.manifest)
    if manifest.get("format") != FORMAT or manifest.get("version") not in READABLE:
        raise IntegrityError(f"{names.manifest} has another format than {FORMAT} {VERSION}; embed again.")
    checked(manifest, VectorManifest, names.manifest, step="embed again")
    if names.path.name not in manifest["files"]:
        raise IntegrityError(
            f"{names.manifest} belongs to {', '.join(sorted(manifest['files'])[:6])}, not to {names.path.name}; open that, or embed again."
        )
    if foreign := manifest["files"].keys() - {name.name for name in names.all}:
        raise IntegrityError(f"{names.manifest} names a file of another output ({shown(min(foreign))}); embed again.")
    try:
        for name, record in manifest["files"].items():
            check_file(names.path.parent / name, record)
    except IntegrityError as error:
        if head_of(names.ledger) is None:
            raise
        raise IntegrityError(f"{error} A run is half done here: finish it with embedkit embed --resume.") from None
    return manifest


def _read_parquet(path: Path, dtype: np.dtype[Any]) -> tuple[Array, list[str]]:
    rows = read_column(path, "embedding")
    if len(rows) and rows.dtype.kind != dtype.kind:
        raise DataError(f"{path} holds {rows.dtype} of shape {rows.shape}; expected floats of shape (rows, dim).")
    import pyarrow
    import pyarrow.parquet

    with _no_vectors(path, "id"):
        ids = pyarrow.parquet.read_table(path, columns=["id"]).column("id").cast(pyarrow.string())
        return rows if len(rows) else rows.astype(dtype), ids.to_pylist()


def read_column(path: Path, column: str) -> Array:
    """(n, dim) the numbers of a column of a parquet file, lists of one length, read row group by row group into one array.

    Raises DataError where the column is not there or holds something else."""
    import pyarrow.parquet

    rows: Array = np.empty((0, 0), np.float32)
    done = 0
    with _no_vectors(path, column), pyarrow.parquet.ParquetFile(path) as table:
        kind = table.schema_arrow.field(column).type
        rows = np.empty((0, getattr(kind, "list_size", 0)), np.float32)
        for number in range(table.num_row_groups):
            block = _block(table.read_row_group(number, [column]).column(column), done)
            if not done:
                rows = np.empty((table.metadata.num_rows, block.shape[1]), block.dtype)
            rows[done : done + len(block)] = block
            done += len(block)
    return rows


def _block(column: Any, first: int) -> Array:
    """(n, dim) of a column of lists. Raises ValueError that names a row, counted from 1, without a list or with one of another length."""
    import pyarrow
    import pyarrow.compute

    lists = column.combine_chunks()
    lengths = pyarrow.compute.list_value_length(lists).fill_null(-1).to_numpy(zero_copy_only=False)
    if (odd := np.flatnonzero((lengths != lengths[:1]) | (lengths <= 0))).size:
        length = int(lengths[odd[0]])
        held = "no list" if length < 0 else f"a list of {length}"
        raise ValueError(f"row {first + int(odd[0]) + 1} has {held}, others have {int(lengths.max())} numbers")
    values = lists.flatten()
    if not (pyarrow.types.is_floating(values.type) or pyarrow.types.is_integer(values.type)):
        raise ValueError(f"it holds lists of {values.type}")
    numbers: Array = values.to_numpy(zero_copy_only=False)
    return numbers.reshape(len(lists), -1)


@contextmanager
def _no_vectors(path: Path, column: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, ValueError, KeyError, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise  # the system's
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            f"{path} holds no vectors in {column!r} ({reason}); expected a column of lists of numbers, all of one length."
        ) from None


def vector_column(path: Path) -> str | None:
    """The column of a parquet file, or of the first one in a folder, that looks like vectors of another program: lists of floats, all
    of one length in the first rows, and long or named so."""
    import pyarrow
    import pyarrow.parquet

    if path.is_dir():
        path = min(path.rglob("*.parquet"), default=path)
    if path.suffix != ".parquet" or not path.is_file():
        return None
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for field in table.schema_arrow:
                inside = getattr(field.type, "value_type", None)
                if inside is None or not pyarrow.types.is_floating(inside):
                    continue
                first = next(table.iter_batches(LOOKED_AT, columns=[field.name]), None)
                lengths = {len(value or ()) for value in first.column(0).to_pylist()} if first is not None else set()
                if len(lengths) == 1 and lengths.pop() >= (2 if VECTORS_NAME.search(field.name) else LONG):
                    return str(field.name)
    except (pyarrow.ArrowException, OSError, ValueError):  # whoever reads the file says what is wrong with it
        return None
    return None


def remark_vectors(source: Any) -> None:
    """Says of a parquet file of texts that it holds vectors already, which are embedded anew."""
    if isinstance(source, (str, Path)) and (column := vector_column(Path(source))) is not None:
        logger.warning(
            "%s holds vectors already, in the column %r; its texts are embedded anew. For an index of the vectors as they are: "
            "embedkit index build %s --vectors %s -o DIR.",
            *(source, column) * 2,
        )


def _read_ids(path: Path) -> list[str]:
    with open_regular(path, DataError) as stream:
        ids = read_ids(stream.read(), str(path))
    if "" in ids:
        raise DataError(f"{path}, line {ids.index('') + 1}: the line is empty; give each row an id of its own.")
    return ids
