"""Vectors in several files of a folder, read as one: parts as autofaiss takes them (any number of .npy), folders of clip-retrieval
(img_emb/ or text_emb/, and metadata/), and what several runs of `embedkit embed` wrote side by side.

Parts stand in the order of their names, as embedding_reader sorts them, so that row numbers are those of an index of autofaiss.
Parquet files of metadata, in metadata/ or beside the parts, hold a row for each vector, file by file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedkit.corpus.arrow import parquet_length
from embedkit.engine.outputs import Names
from embedkit.errors import DataError, UsageError
from embedkit.types import Array, Rows

EMBEDDED = ("img_emb", "text_emb")  # of clip-retrieval
METADATA = "metadata"
AS_JSON = {b"embedkit": b"json"}  # what an export says of a column of texts whose values are mappings
CORPORA = ("corpus.jsonl", "corpus.jsonl.gz", "state.json", "dataset_dict.json")  # what makes a folder a corpus


@dataclass(frozen=True)
class Parts:
    vectors: tuple[Path, ...]
    metadata: tuple[Path, ...]  # as many, or none

    def check_lengths(self, lengths: list[int]) -> None:
        """Raises DataError where a part of the vectors and its metadata have other numbers of rows."""
        for vectors, rows, metadata in zip(
            self.vectors, lengths, self.metadata, strict=False
        ):  # or there is no metadata
            if (found := parquet_length(metadata)) != rows:
                raise DataError(
                    f"{vectors} has {rows:,} rows, {metadata} has {found:,}; expected one row of metadata a vector, file by file."
                )


def parts_of(folder: Path) -> Parts:
    """Raises UsageError for a folder with vectors of images and of texts, DataError for other numbers of files."""
    both = [name for name in EMBEDDED if _named(folder / name, ".npy")]
    if len(both) > 1:
        raise UsageError(
            f"{folder} holds vectors of images and of texts; give the folder of one: {folder / both[0]} or {folder / both[1]}."
        )
    inside = folder / both[0] if both else folder
    vectors = _named(inside, ".npy") or _embedded_parquet(inside)
    if inside.name in EMBEDDED:
        metadata = _named(inside.parent / METADATA, ".parquet")
    else:
        metadata = [path for path in _named(inside, ".parquet") if path not in vectors]
        metadata = metadata or _named(inside / METADATA, ".parquet")
    if metadata and len(metadata) != len(vectors):
        raise DataError(
            f"{folder} holds {len(vectors)} files of vectors and {len(metadata)} of metadata ({metadata[0].parent}); expected as many."
        )
    return Parts(tuple(vectors), tuple(metadata))


def json_columns(path: Path) -> list[str]:
    """The columns of texts in a parquet file that an export marked as JSON."""
    import pyarrow.parquet

    schema = pyarrow.parquet.read_schema(path)
    return [field.name for field in schema if (field.metadata or {}).items() >= AS_JSON.items()]


def is_vector_folder(folder: Path) -> bool:
    """Whether a folder holds vectors, and is no corpus."""
    if not folder.is_dir() or any((folder / name).exists() for name in CORPORA):
        return False
    folders = (folder, *(folder / name for name in EMBEDDED))
    return any(_named(inside, ".npy") for inside in folders) or bool(_embedded_parquet(folder))


def _named(folder: Path, suffix: str) -> list[Path]:
    """The files of a folder that end so, but for the ranges beside int8 vectors."""
    found = folder.glob(f"*{suffix}") if folder.is_dir() else ()
    return sorted(path for path in found if path.is_file() and not path.name.endswith(".ranges.npy"))


def _embedded_parquet(folder: Path) -> list[Path]:
    """Parquet files that `embed_to_file` wrote."""
    return [path for path in _named(folder, ".parquet") if Names(path).manifest.exists()]


class JoinedRows:
    """Several arrays (n, dim), one after the other, that are sliced as one, and become one where somebody makes an array of them."""

    def __init__(self, parts: list[Array]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])
        self.shape = (int(self._ends[-1]), parts[0].shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, place: slice | Rows) -> Any:
        """place: a slice without a step, or ascending numbers."""
        if isinstance(place, slice):
            start, stop, _ = place.indices(len(self))
            parts = [part[max(0, start - first) : max(0, stop - first)] for first, part in self._places()]
            return JoinedRows(parts)
        inside = [
            (part, place[(place >= first) & (place < first + len(part))] - first) for first, part in self._places()
        ]
        return np.concatenate([np.asarray(part[numbers]) for part, numbers in inside])

    def _places(self) -> Iterator[tuple[int, Array]]:
        """(number of its first row, part)"""
        return zip((self._ends - [len(part) for part in self._parts]).tolist(), self._parts, strict=True)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.concatenate([np.asarray(part, dtype) for part in self._parts])
