"""The records that pass between the parts, in the field's own words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Kind = Literal["query", "document"]
Array = np.ndarray[Any, Any]  # of any shape and dtype
Vectors = NDArray[np.float32]  # (n, dim)
Rows = NDArray[np.int64]  # positions in an index


def is_unicode(text: str) -> bool:
    """False where the text holds half of a surrogate pair, which no file and no tokenizer can take."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def is_image(value: Any) -> bool:
    """Whether it is an image to be embedded: the path of a file, or an image of Pillow's, told without importing it."""
    return isinstance(value, Path) or any(kind.__module__.partition(".")[0] == "PIL" for kind in type(value).__mro__)


@dataclass(frozen=True, eq=False)
class Picture:
    """An image to be embedded, alone or with a text. It is read and decoded when its batch is due, and not before."""

    image: Any = field(repr=False)  # pathlib.Path of a file, the bytes of one, or a PIL.Image.Image
    text: str | None = None  # read together with it
    name: str = ""  # of its file, for messages
    text_first: bool = False  # the order in which a model that reads both is given them

    def __str__(self) -> str:
        """What stands for it where a text would stand."""
        shown = f"<image {self.name}>" if self.name else "<image>"
        return f"{shown} {self.text}" if self.text else shown


Content = str | Picture  # what a model is given


@dataclass(frozen=True)
class Document:
    """One row of a corpus."""

    id: str
    text: str  # of an image without a text of its own: its path
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    image: Picture | None = field(default=None, repr=False)  # what is embedded instead of the text; never stored

    @property
    def full_text(self) -> str:
        """What is embedded of a text: title, one space, text, as BEIR and mteb join them; the text alone where there is no title."""
        return f"{self.title} {self.text}".strip() if self.title else self.text

    @property
    def content(self) -> Content:
        """What the model is given."""
        return self.full_text if self.image is None else self.image


class Hits(NamedTuple):
    """What a search found for each query, best first."""

    ids: list[list[str]]  # document ids; shorter than k where fewer were found
    scores: NDArray[np.float32]  # (queries, k or all rows), higher is better, -inf where fewer were found
    documents: list[list[Document]] | None  # beside ids; None where the search was asked for ids alone
    passages: list[list[str]] | None = (
        None  # "doc#3", what each was found by; None where each document has one row, or counts whole
    )
    spans: list[list[tuple[int, int]]] | None = (
        None  # characters of `full_text` that each covers; (0, 0) for all of them
    )
    explanations: list[list[dict[str, Any]]] | None = None  # of each leg: score and rank, where they were asked for


@dataclass(frozen=True)
class Judged:
    """A document beside a query: how it is judged, and where it was found."""

    id: str
    text: str  # cut in length
    grade: float | None = None  # None: nobody judged it
    rank: int | None = None  # 1 is the best; None: not among the documents that were retrieved
    score: float | None = None  # its similarity, where it was retrieved


@dataclass(frozen=True)
class Failure:
    """A query, or what else is answered one by one, with a poor answer."""

    unit: str
    text: str
    value: float  # its score by the task's main metric
    expected: tuple[Judged, ...]  # the best judged first
    found: tuple[Judged, ...]  # best first


@dataclass(frozen=True)
class Report:
    """The scores of one task, with what is needed to compare and to repeat them."""

    scores: dict[str, float]  # "ndcg@10": 0.412
    intervals: dict[str, tuple[float, float]]  # 95 %, bootstrap over the units
    per_query: dict[str, dict[str, float]]  # metric -> query, or what `unit` says -> value; of metrics that are means
    context: dict[str, Any]  # model, fingerprint, data, versions, seconds, the literal first inputs
    main: str = "ndcg@10"  # the score that counts
    unit: str = "query"  # what intervals are over: query, pair, item or repetition
    predictions: dict[str, tuple[float, float]] = field(default_factory=dict)  # of correlations: unit -> truth, score
    texts: dict[str, str] = field(default_factory=dict)  # unit -> what stands there
    cost: dict[str, float] = field(default_factory=dict)  # "seconds", "tokens/s", "p50 ms", ...: see eval/cost.py
    failures: tuple[Failure, ...] = ()  # the worst first, a bounded number

    @property
    def units(self) -> int:
        """How many queries, pairs, items or repetitions the scores are over; 0 where the engine does not say."""
        return max((len(self.predictions), *map(len, self.per_query.values())), default=0)
