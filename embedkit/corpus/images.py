"""Images of a corpus: files in a folder, paths in a column, or the bytes and the path that a datasets column stores.

Nothing is decoded here, and the bytes of a file are not read: a row carries where its image is, or the bytes that it came with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedkit import limits
from embedkit.errors import DataError
from embedkit.limits import shown
from embedkit.types import Picture, is_image

IMAGE = "image"  # the field, where none is named
STORED = {"bytes", "path"}  # what a datasets column stores of an image
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def is_stored_image(value: Any) -> bool:
    """Whether a value can be nothing but an image: as datasets stores one, a pathlib.Path, an image of Pillow's."""
    return is_image(value) or (isinstance(value, Mapping) and set(value) == STORED)


def picture_of(value: Any, where: str, field: str, base: Path | None, text: str | None) -> Picture:
    """The image of a row. base: where relative paths begin; None: there are no files beside the rows.

    Raises DataError, opening with `where`, for a value of another kind. A missing one (None, or no bytes) becomes an empty image:
    the row is set aside when it is embedded, as one whose file is missing.
    """
    path = path_of(value)
    content = value.get("bytes") if isinstance(value, Mapping) else value
    if isinstance(content, bytes) or (is_image(content) and not isinstance(content, Path)):
        if isinstance(content, bytes) and len(content) > limits.IMAGE:
            raise DataError(
                f"{where}: the image has {len(content):,} bytes, and at most {limits.IMAGE:,} are read; save it smaller."
            )
        return Picture(content, text, path)
    if path and base is not None:
        return Picture(base / path, text, str(base / path))
    if value is None or isinstance(value, (str, Path)) or is_stored_image(value):
        return Picture(b"", text, path)
    raise DataError(
        f"{where}: the field {field!r} is a {type(value).__name__} ({shown(value)}); expected the path of an image, or "
        f"its bytes."
    )


def path_of(value: Any) -> str:
    """What an image's row keeps of it: its path; empty where it has none."""
    if isinstance(value, Mapping):
        value = value.get("path")
    return str(value) if isinstance(value, (str, Path)) else str(getattr(value, "filename", "") or "")


def with_undecoded_images(table: Any) -> Any:
    """A table of datasets that gives images as they are stored: decoded, a corrupt one would end the reading of all."""
    import datasets

    for name, feature in (getattr(table, "features", None) or {}).items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    return table
