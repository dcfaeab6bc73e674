"""A model under examination, as embedkit runs it and as sentence-transformers does, and the texts it is tried on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from embedkit.encoders.attention import Attention, attention_of
from embedkit.encoders.prompts import resolve_prompts
from embedkit.encoders.routes import is_routed
from embedkit.encoders.text_encoder import TextEncoder
from embedkit.types import Kind, Vectors
from embedkit.vectors import unit_rows

SHORT, MIDDLE = "cat", "a red bird sings"
LONG = "the dogs run along the shore while a few fish swim in the blue sea and nobody counts them " * 2
DIFFERENT = (SHORT, MIDDLE, LONG)  # lengths
WORDS = ("cat", "one", "red", "run")  # of one length, word by word as letter by letter
SAME = {"float32": 0.9999, "bfloat16": 0.999, "float16": 0.999}  # cosine of two rows of one text
SAME_AT_LEAST = 0.99  # in any other precision
NOISE = 4  # how many times farther from one another than from float32 two rows of one text may be, as 1 - cosine


class Finding(NamedTuple):
    """Something wrong, how it shows, and what to do."""

    name: str
    evidence: str
    fix: str


class NotChecked(Exception):
    """Why a check says nothing about this model."""


class Voice(NamedTuple):
    """One program's way of running the model: rows (n, dim) of texts, padded together in batches of `size`."""

    name: str
    rows: Callable[[tuple[str, ...], int], Vectors]
    same: float  # the cosine from which two rows count as the same
    in_float32: Callable[[], Voice] | None = None  # the same program; None: it computes in float32 already

    def in_company(self, texts: tuple[str, ...]) -> tuple[float, bool]:
        """The least cosine of a text's row alone with its row beside the others, and whether they are the same but for the
        noise of the precision: a deep decoder's rows in bfloat16 move by more than most faults would move them."""
        alone = self.rows(texts, 1)
        cosine = _least(alone, self.rows(texts, len(texts)))
        if cosine >= self.same or self.in_float32 is None:
            return cosine, cosine >= self.same
        exact = self.in_float32()
        noise = 1 - _least(alone, exact.rows(texts, 1))
        return cosine, exact.in_company(texts)[1] and 1 - cosine <= NOISE * noise


@dataclass
class Patient:
    """What the checks look at. Without `reference` they see no more than what embedkit runs."""

    name: str
    encoder: TextEncoder | None  # None: a model in memory that embedkit did not open
    reference: Callable[[], Any] | None  # opens a SentenceTransformer in float32, on the CPU
    tried: Attention | None = None  # by whoever opened the model

    @functools.cached_property
    def model(self) -> Any:
        """The SentenceTransformer in float32."""
        if self.reference is None:
            raise NotChecked("the first look at a model opens it once only")
        return self.reference()

    @property
    def transformer(self) -> Any:
        """The Hugging Face model inside."""
        if (transformer := getattr(self.model[0], "auto_model", None)) is None:
            raise NotChecked("the model has no transformer")
        return transformer

    @functools.cached_property
    def attention(self) -> Attention:
        found = self.tried or attention_of(self.transformer)
        if found is None:
            raise NotChecked("the transformer gives no states of plain token ids")
        return found

    @property
    def pooling(self) -> Any:
        """The module that makes one row of the tokens' states: Pooling, or what stands in its place behind the transformer."""
        from sentence_transformers.sentence_transformer.modules import Pooling

        modules = list(self.model.children())
        found = next((module for module in modules if isinstance(module, Pooling)), None)
        if found is None and (len(modules) < 2 or not hasattr(modules[0], "auto_model")):
            raise NotChecked("the model has no pooling module")
        return found or modules[1]

    @property
    def pooling_mode(self) -> str:
        return str(getattr(self.pooling, "pooling_mode", type(self.pooling).__name__))

    @functools.cached_property
    def voices(self) -> list[Voice]:
        """embedkit, where it opened the model, and sentence-transformers, where the examination is a full one. What one was asked
        already it says again."""
        voices = []
        if self.encoder is not None:
            voices.append(_embedkit(self.encoder))
        if self.reference is not None:
            voices.append(Voice("sentence-transformers", functools.cache(self.reference_rows), SAME["float32"]))
        return voices

    def reference_rows(self, texts: Sequence[str], size: int, prompt: str = "", kind: Kind = "document") -> Vectors:
        """(n, width) float32 rows of sentence-transformers, neither made unit nor cut by us."""
        rows = self.model.encode(list(texts), batch_size=size, prompt=prompt, show_progress_bar=False, task=kind)
        return np.asarray(rows, dtype=np.float32)

    def prompts(self) -> tuple[dict[str, str], dict[Kind, str]]:
        """All stored prompts by name, and the literal prompt of each kind."""
        if self.encoder is not None:
            return self.encoder.stored_prompts, self.encoder.prompts
        stored = dict(self.model.prompts)
        return stored, resolve_prompts(stored, self.model.default_prompt_name, {})

    def tokens(self, text: str) -> list[str]:
        """What the model reads for a text, cut at the model's limit."""
        if self.encoder is not None and (read := self.encoder.tokens(text)) is not None:
            return read
        if is_routed(self.model):
            raise NotChecked("a Router's routes have tokenizers of their own")
        features = self.model.preprocess([text])
        if "input_ids" not in features or not hasattr(self.model.tokenizer, "convert_ids_to_tokens"):
            raise NotChecked("the model does not read tokens")
        return [str(token) for token in self.model.tokenizer.convert_ids_to_tokens(features["input_ids"][0].tolist())]

    def max_tokens(self) -> int | None:
        return self.encoder.max_tokens if self.encoder is not None else self.model.max_seq_length

    def long_text(self, tokens: int) -> str:
        """A text of at least so many tokens."""
        return LONG * (1 + tokens // max(len(LONG.split()), 1))


def _embedkit(encoder: TextEncoder) -> Voice:
    dtype = encoder.compute.get("dtype", "")
    rows = functools.cache(functools.partial(embedkit_rows, encoder))
    in_float32 = None if dtype == "float32" else functools.cache(lambda: _embedkit(encoder.in_float32()))
    return Voice("embedkit", rows, SAME.get(dtype, SAME_AT_LEAST), in_float32)


def embedkit_rows(encoder: TextEncoder, texts: Sequence[str], size: int, kind: Kind = "document") -> Vectors:
    """(n, dim) rows of a job's windows, which say nothing of texts that are cut: these are ours."""
    windows = [texts[start : start + size] for start in range(0, len(texts), size)]
    return np.concatenate([encoded.rows for encoded in encoder.encode_windows(windows, kind=kind)])


def cosines(left: Vectors, right: Vectors) -> Vectors:
    """(n,) of each row with its partner, over the first columns that both have; 1 where both are zeros, NaN where a row is no
    number."""
    width = min(left.shape[1], right.shape[1])
    left, right = left[:, :width], right[:, :width]
    with np.errstate(invalid="ignore"):
        found: Vectors = np.sum(unit_rows(left) * unit_rows(right), axis=1)
    found[~left.any(axis=1) & ~right.any(axis=1)] = 1
    return found


def _least(left: Vectors, right: Vectors) -> float:
    return float(np.min(cosines(left, right)))
