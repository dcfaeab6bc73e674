"""The records that pass between the parts, in the field's own words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Document:
    """One row of a corpus."""

    id: str
    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def full_text(self) -> str:
        """What is embedded: title, one space, text, as BEIR and mteb join them; the text alone where there is no title."""
        return f"{self.title} {self.text}".strip() if self.title else self.text


class Hits(NamedTuple):
    """What a search found for each query, best first."""

    ids: list[list[str]]  # document ids; shorter than k where fewer were found
    scores: NDArray[np.float32]  # (queries, k), higher is better, -inf where fewer than k were found
    documents: list[list[Document]] | None  # beside ids; None where the search was asked for ids alone
    passages: list[list[str]] | None = (
        None  # "doc#3", what each was found by; None where each document has one row, or counts whole
    )
    spans: list[list[tuple[int, int]]] | None = (
        None  # characters of `full_text` that each covers; (0, 0) for all of them
    )
    explanations: list[list[dict[str, Any]]] | None = None  # of each leg: score and rank, where they were asked for


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
    cost: dict[str, float] = field(default_factory=dict)  # "seconds", "tokens/s", "p50 ms", ...

    @property
    def units(self) -> int:
        """How many queries, pairs, items or repetitions the scores are over; 0 where the engine does not say."""
        return max((len(self.predictions), *map(len, self.per_query.values())), default=0)
