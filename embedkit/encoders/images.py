"""What a model reads beside texts, and how an image becomes pixels.

Every image becomes RGB with 8 bits a channel, as viewers show it: turned by its EXIF orientation, the first frame of an
animation, transparency on white (as the processors of transformers put it), 16 bits a channel cut to the upper 8, CMYK and
palettes by Pillow's own conversion. Resizing and normalising are left to the model's processor, which needs Pillow and no
torchvision. What is of no format in FORMATS, cannot be read whole, or is larger than its limit against decompression bombs, is refused.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedkit import limits
from embedkit.errors import DataError, UsageError
from embedkit.types import Content, Picture

TOKENS = 256  # of an image, where the config does not say: for the token budget of a batch alone
FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
)  # others' readers are never asked: that of EPS starts Ghostscript
DEEP = ("I;16", "I;16L", "I;16B", "I;16N")  # Pillow's modes of 16 bits


@dataclass(frozen=True)
class Reading:
    """What a model that reads images reads."""

    texts: bool
    images: bool
    both: bool  # a text with an image
    tokens: int  # that an image counts in a batch

    @classmethod
    def of(cls, model: Any) -> Reading | None:
        """model: a SentenceTransformer. None where it reads no images."""
        kinds = list(getattr(model[0], "modality_config", ()))
        both = ("image", "text") in kinds or ("message" in kinds and "image" in kinds)
        if "image" not in kinds and not both:
            return None
        return cls("text" in kinds, "image" in kinds, both, _tokens(model[0].auto_model.config))


def check_readable(contents: Iterable[Content], reading: Reading | None, name: str) -> None:
    """Raises UsageError, with its position, at the first input of a kind that the model does not read."""
    for position, content in enumerate(contents):
        if isinstance(content, str):
            kind, reads = "texts alone", reading is None or reading.texts
        elif content.text is None:
            kind, reads = "images", reading is not None and reading.images
        else:
            kind, reads = "texts together with images", reading is not None and reading.both
        if not reads:
            raise UsageError(
                f"{name} does not read {kind}; give it what it reads, or take another model.", position=position
            )


def rgb(picture: Picture) -> Any:
    """The image as a PIL.Image.Image of mode RGB; one that was handed in stays as it is.

    Raises DataError that says why it cannot be: not there, not whole, not an image, too large.
    """
    from PIL import Image

    shown = picture.name or "the image"
    try:
        image = _opened(picture.image)
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:
            raise DataError(f"{image.width} x {image.height} pixels are more than Pillow's limit of {limit:,}")
        image.load()
        return _in_rgb(_upright(image))
    except MemoryError:
        raise
    except OSError as error:
        raise DataError(f"{shown} cannot be read: {error.strerror or _without_memory_address(error)}") from None
    except (
        Exception
    ) as error:  # Pillow's readers raise what they meet in a damaged file: SyntaxError, struct.error, ...
        raise DataError(f"{shown} cannot be read: {error}") from None


def _opened(image: Any) -> Any:
    from PIL import Image

    content = limits.read_at_most(image, limits.IMAGE, DataError) if isinstance(image, Path) else image
    if not isinstance(content, bytes):
        return image
    if not content:
        raise DataError("it is empty (0 bytes)")
    return Image.open(io.BytesIO(content), formats=FORMATS)


def _without_memory_address(error: OSError) -> str:
    """Pillow names the stream that it read from, which is another one at every run."""
    return f"it is none of {', '.join(FORMATS)}" if "cannot identify" in str(error) else str(error)


def _upright(image: Any) -> Any:
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def _in_rgb(image: Any) -> Any:
    import numpy as np
    from PIL import Image

    if image.mode in DEEP:  # Pillow's own conversion would make all above 255 white
        values = np.asarray(image).astype(np.uint16)
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(f"its pixels are numbers of 32 bits (mode {image.mode}); save it with 8 or 16 bits a channel")
    if "A" in image.getbands() or "a" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _tokens(config: Any) -> int:
    """Patches of an image and one token more, where images have one size."""
    vision = getattr(config, "vision_config", config)
    size, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    if not isinstance(size, int) or not isinstance(patch, int) or patch < 1:
        return TOKENS
    return (size // patch) ** 2 + 1
