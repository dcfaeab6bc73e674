"""What stands in an index folder, format version 1.

    manifest.json        this record, with the size and SHA-256 of the other files and a checksum of itself
    fine.npy             (count, dim) float16 or float32: the rows that verify a shortlist, read by memory map
    coarse.faiss         the light codes, held in RAM; absent where the search is exact
    documents.sqlite     ids, texts, titles, metadata; never changed once written

A later version replaces the inside; nothing outside this package reads these files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from embedkit.errors import IntegrityError, UsageError
from embedkit.storage import check_file, check_size, file_record, read_json, write_json

FORMAT, VERSION = "embedkit-index", 1
MANIFEST, FINE, COARSE, DOCUMENTS = "manifest.json", "fine.npy", "coarse.faiss", "documents.sqlite"

Metric = Literal["cosine", "dot"]


@dataclass(frozen=True)
class Source:
    """What made the vectors; all None for bare vectors that name nothing."""

    model: str | None = None
    fingerprint: str | None = None
    settings: Mapping[str, Any] = field(
        default_factory=dict
    )  # arguments with which embedkit.load opens the model again
    compute: Mapping[str, str] = field(default_factory=dict)
    first_input: str | None = None  # the literal first text that the model read, its prompt in front


@dataclass(frozen=True)
class Manifest:
    count: int
    dim: int
    metric: Metric
    unit_rows: bool  # the norm: True where every row has length 1 (or 0)
    fine: str  # dtype of the rows on disk
    coarse: str | None  # faiss factory string; None: exact search
    shortlist: int  # candidates that the fine rows verify, for a k up to it
    texts: bool  # whether documents have texts, or ids alone
    empty_texts: int  # documents without a character of text; 0 where there are ids alone
    source: Source
    created: str  # ISO 8601, UTC
    embedkit: str
    files: Mapping[str, Mapping[str, Any]]  # name -> {"bytes", "sha256"}

    def write(self, folder: Path) -> None:
        write_json(folder / MANIFEST, {"format": FORMAT, "version": VERSION, **asdict(self)})


def read_manifest(folder: Path) -> Manifest:
    """Raises UsageError where there is no index, IntegrityError where its manifest is damaged or newer than this code."""
    if not (folder / MANIFEST).is_file():
        raise UsageError(
            f"{folder} holds no index (no {MANIFEST}); make one with: embedkit index build CORPUS -o {folder}."
        )
    body = read_json(folder / MANIFEST)
    if body.pop("format", None) != FORMAT:
        raise IntegrityError(f"{folder / MANIFEST} describes something else than an index.")
    version = body.pop("version", None)
    if version != VERSION:
        raise IntegrityError(
            f"{folder} has index format {version}, this embedkit reads format {VERSION}; build it again."
        )
    if set(body) != {item.name for item in fields(Manifest)}:
        raise IntegrityError(f"{folder / MANIFEST} has other fields than format {VERSION}; build the index again.")
    return Manifest(**{**body, "source": Source(**body["source"])})


def record_files(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.name: file_record(path) for path in sorted(folder.iterdir())}


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Raises IntegrityError for the first file that is missing or of another length."""
    for name, record in manifest.files.items():
        check_size(folder / name, record)


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raises IntegrityError for the first file that is missing, changed or foreign."""
    for name, record in manifest.files.items():
        check_file(folder / name, record)
    foreign = sorted({path.name for path in folder.iterdir()} - {MANIFEST, *manifest.files})
    if foreign:
        raise IntegrityError(f"{folder} holds {', '.join(foreign)}, which its manifest does not name; remove it.")
