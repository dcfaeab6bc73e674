"""Vectors on disk, beside what made them: NAME.npy, NAME.ids.txt, NAME.manifest.json.

The manifest names size and SHA-256 of the others and is renamed first: a crash between the renames leaves a manifest that
does not fit, which `open_vectors` refuses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from embedkit.encoder import Encoder
from embedkit.errors import DataError, IntegrityError, UsageError
from embedkit.storage import NpyWriter, atomic_files, check_file, file_record, read_json, sealed_json
from embedkit.types import Document, Kind, Vectors
from embedkit.version import __version__

FORMAT, VERSION = "embedkit-vectors", 1


@dataclass(frozen=True)
class VectorFile:
    """Rows that need not fit in memory, and what their manifest says of them."""

    rows: Vectors  # (n, dim), a read-only memory map
    ids: list[str]
    manifest: dict[str, Any]  # empty for an array that embedkit did not write


def _ids_path(path: Path) -> Path:
    return path.with_suffix(".ids.txt")


def _manifest_path(path: Path) -> Path:
    return path.with_suffix(".manifest.json")


def check_free(path: Path, *, overwrite: bool) -> None:
    """Raises UsageError for a name that does not end in .npy, or that is taken and may not be overwritten."""
    if path.suffix != ".npy":
        raise UsageError(f"{path}: vectors are written as NAME.npy; choose a name that ends so.")
    taken = [name for name in (path, _ids_path(path), _manifest_path(path)) if name.exists()]
    if taken and not overwrite:
        raise UsageError(f"{taken[0]} is there already; choose another name, or add --overwrite.")


def write_vectors(
    path: Path,
    batches: Iterable[tuple[Sequence[Document], Vectors]],
    encoder: Encoder,
    kind: Kind,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Streams the rows to disk as float32; returns the manifest. Raises UsageError as `check_free` does.

    While it runs there are only `.partial` files; after an error nothing of it is left.
    """
    check_free(path, overwrite=overwrite)
    empty = 0
    with atomic_files(_manifest_path(path), path, _ids_path(path)) as (sealed, stream, ids):
        writer = NpyWriter(stream, encoder.dim, "float32")
        for documents, rows in batches:
            writer.append(rows)
            ids.write("".join(f"{document.id}\n" for document in documents).encode())
            empty += sum(not document.full_text for document in documents)
        writer.finish()
        stream.flush()
        ids.flush()
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "count": writer.count,
            "empty_texts": empty,
            "dim": encoder.dim,
            "dtype": "float32",
            "kind": kind,
            "similarity": encoder.similarity,
            "fingerprint": encoder.fingerprint,
            "settings": dict(encoder.settings),
            "compute": dict(encoder.compute),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "embedkit": __version__,
            "files": {path.name: file_record(Path(stream.name)), _ids_path(path).name: file_record(Path(ids.name))},
        }
        sealed.write(sealed_json(manifest))
    return manifest


def open_vectors(path: Path) -> VectorFile:
    """What `write_vectors` wrote, its checksums verified; or any two-dimensional `.npy` of numbers, its rows numbered.

    Raises UsageError where there is no such file, DataError for an array of another kind, IntegrityError for a damaged one.
    """
    if not path.is_file():
        raise UsageError(f"{path} is not there; expected a .npy file of vectors.")
    manifest = read_json(_manifest_path(path)) if _manifest_path(path).exists() else {}
    if manifest and (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
        raise IntegrityError(f"{_manifest_path(path)} has another format than {FORMAT} {VERSION}; embed again.")
    for name, record in manifest.get("files", {}).items():
        check_file(path.parent / name, record)
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy meets a damaged header with ValueError, TokenError, EOFError, ...
        raise DataError(f"{path} is not an array of numbers ({error}); expected one of shape (rows, dim).") from None
    if rows.ndim != 2 or rows.dtype.kind != "f":
        raise DataError(f"{path} holds {rows.dtype} of shape {rows.shape}; expected floats of shape (rows, dim).")
    ids = _read_ids(_ids_path(path)) if _ids_path(path).exists() else list(map(str, range(len(rows))))
    if len(ids) != len(rows):
        raise DataError(f"{_ids_path(path)} has {len(ids)} lines, {path} has {len(rows)} rows; expected one id a row.")
    return VectorFile(rows, ids, manifest)


def _read_ids(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8").removesuffix("\n")
        return text.split("\n") if text else []
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}); write one id a line in UTF-8.") from None
