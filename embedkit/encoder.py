"""What embedkit asks of a model. Whoever brings a new one writes `encode`; everything else is built on top of it."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np

from embedkit.errors import UsageError
from embedkit.types import Content, Kind, Picture, Rows, Vectors, is_image, is_unicode

Input = TypeVar("Input")
OnLong = Literal["truncate", "chunk", "error"]
IMAGE_BYTES = 64 << 20  # that come with the inputs of a window, before it ends early
CHARACTERS = 8 << 20  # of its texts, likewise: 4,096 an input in the mean. Chunks take up to 40 bytes for each
CONTENT = operator.attrgetter("content")  # of a Document
EXPECTED = "expected texts (strings), images (pathlib.Path or PIL) or dicts of both ('text', 'image')"


class Encoder(Protocol):
    """Turns inputs into rows of one vector space."""

    @property
    def dim(self) -> int:
        """Width of the rows."""
        ...

    @property
    def fingerprint(self) -> str:
        """Names the vector space: equal exactly when the same input gives the same row, up to rounding.

        Weights, tokenizer, max_tokens, pooling and all modules, prompts of both kinds, norm, similarity, dim and layers are
        in it; path, device, batch size, backend and compute dtype are not.
        """
        ...

    @property
    def compute(self) -> Mapping[str, str]:
        """How the rows are computed (backend, dtype, threads, versions); it may move the last bits, not the space."""
        ...

    @property
    def similarity(self) -> str:
        """How two rows are compared: "cosine", "dot", "euclidean" or "manhattan"."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """The arguments with which `embedkit.load` opens this model again; empty for one that `load` cannot open."""
        ...

    def encode(self, inputs: Sequence[Any], *, kind: Kind = "document") -> Vectors:
        """float32 (len(inputs), dim), in input order. inputs: strings; Pictures too, of an encoder that reads images."""
        ...


@dataclass(frozen=True)
class Encoded:
    """The rows of one window of inputs, and what became of each input."""

    rows: Vectors  # (m, dim), of all inputs that were not set aside, in input order
    inputs: Rows  # (m,) the position of the input that each row is of, ascending; long inputs may have several rows
    spans: Rows | None = None  # (m, 2) the characters of the input that each row covers; None: each covers its input
    failed: Mapping[int, str] = field(default_factory=dict)  # position -> why the input was set aside
    truncated: Sequence[int] = ()  # positions of inputs that were cut at the model's limit
    halvings: int = 0  # how often a batch was halved because memory ran out

    @classmethod
    def whole(cls, rows: Vectors) -> Encoded:
        """One row an input, and nothing else to say."""
        return cls(rows, np.arange(len(rows)))


@runtime_checkable
class WindowEncoder(Protocol):
    """What an Encoder may offer beside `encode`: windows one after the other, the next one prepared while one is computed."""

    def encode_windows(
        self,
        windows: Iterable[Sequence[Any]],
        *,
        kind: Kind = "document",
        on_long: OnLong = "truncate",
        on_batch: Callable[[int, Sequence[int]], None] | None = None,
    ) -> Iterator[Encoded]:
        """One Encoded a window, in order. A batch that does not fit in memory is halved, down to one input, which is then
        set aside; order and dtype stay. Raises ModelError with the position inside its window of an input whose row is NaN
        or infinite even in float32; with on_long="error", DataError with that of one that is longer than the model takes.
        on_batch: called before each batch with the number of its window, from 0, and the positions of its inputs."""
        ...

    def first_input(self, content: Content, kind: Kind) -> str:
        """The literal input that the model reads for this text, its prompt in front; of an image its name."""
        ...


class SparseEncoder(Protocol):
    """Turns inputs into weights of terms; two inputs are compared by the sum of the products of their weights."""

    @property
    def vocabulary(self) -> Sequence[str]:
        """What each column is called; no name comes twice."""
        ...

    @property
    def fingerprint(self) -> str:
        """Names the model: equal exactly when the same input gets the same weights, up to rounding."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """{"model": ...}, with which `load_sparse` opens it again; empty where it cannot."""
        ...

    def encode(self, inputs: Sequence[Any], *, kind: Kind = "document") -> Any:
        """scipy csr_matrix (len(inputs), len(vocabulary)), weights >= 0, in input order."""
        ...


def contents(inputs: Any) -> list[Content]:
    """Each input as a model is given it: a string, or the Picture that a pathlib.Path, an image of Pillow's or a dict of
    "image" and "text" becomes. A single one counts as a list of one.

    Raises UsageError for anything else, with its position.
    """
    if isinstance(inputs, (str, Mapping, Picture)) or is_image(inputs):
        return [_content(inputs, 0)]
    if isinstance(inputs, bytes) or not isinstance(inputs, Iterable):
        raise UsageError(f"A {type(inputs).__name__} came; {EXPECTED}.")
    return [_content(item, position) for position, item in enumerate(inputs)]


def window_of(stream: Iterator[Input], most: int, content: Callable[[Input], Content]) -> list[Input]:
    """The next inputs that are held and encoded together: `most`; fewer where the stream ends, the images that came with them
    fill IMAGE_BYTES, or their texts CHARACTERS."""
    window: list[Input] = []
    images = texts = 0
    for item in itertools.islice(stream, most):
        window.append(item)
        given = content(item)
        if isinstance(given, str):
            texts += len(given)
        else:
            texts += len(given.text or "")
            images += len(given.image) if isinstance(given.image, bytes) else 0
        if images >= IMAGE_BYTES or texts >= CHARACTERS:
            break
    return window


def _content(item: Any, position: int) -> Content:
    if isinstance(item, str):
        if not is_unicode(item):
            raise UsageError(f"Input {position} holds half of a character ({ascii(item)[:60]}); mend or remove it.")
        return item
    if isinstance(item, Picture):
        return item
    if is_image(item):
        return Picture(item, name=_name(item))
    if not isinstance(item, Mapping) or not set(item) <= {"text", "image"} or not item:
        raise UsageError(f"Input {position} is a {type(item).__name__} ({str(item)[:40]}); {EXPECTED}.")
    text = None if item.get("text") is None else _content(item["text"], position)
    if not isinstance(text, (str, type(None))):
        raise UsageError(f"Input {position} has a {type(item['text']).__name__} as text; expected a string.")
    if (image := item.get("image")) is None:
        return text or ""
    if not is_image(image):
        raise UsageError(
            f"Input {position} has a {type(image).__name__} as image ({str(image)[:40]}); expected a pathlib.Path or a PIL "
            f"image: a string is always text."
        )
    return Picture(image, text, _name(image), text_first=text is not None and next(iter(item)) == "text")


def _name(image: Any) -> str:
    return str(image) if isinstance(image, Path) else str(getattr(image, "filename", "") or "")
