"""The Encoder that `load` returns: what a call may ask for, over whichever backend computes the rows."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from embedkit.encoder import Encoded, OnLong, contents, window_of
from embedkit.encoders.backend import Backend
from embedkit.encoders.fingerprint import fingerprint
from embedkit.encoders.opened import Opened
from embedkit.encoders.prompts import family_prompts, named_prompt, resolve_prompts
from embedkit.encoders.windows import Run
from embedkit.errors import DataError, EmbedkitError, ModelError, UsageError
from embedkit.types import Content, Kind, Picture, Vectors
from embedkit.vectors import check_dim

WINDOW = 2048  # texts that are tokenized and sorted at once, at most
logger = logging.getLogger(__name__)


class TextEncoder:
    """What `embedkit.load` returns.

    Attributes that are settled at load: name, dim, max_tokens (None: no limit), similarity, unit (rows have length 1),
    prompts (kind -> literal prompt), fingerprint, compute, settings.
    """

    def __init__(
        self,
        name: str,
        opened: Opened,
        description: Mapping[str, Any],  # what the model computes, for the fingerprint
        *,
        dim: int | None = None,
        prompt_names: Mapping[Kind, str] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self.similarity, self.max_tokens = name, opened.similarity, opened.max_tokens
        self.unit = opened.normalize or opened.similarity == "cosine"
        self.stored_prompts = dict(opened.prompts)
        self.default_prompt = self.stored_prompts.get(opened.default_prompt_name or "", "")  # for inputs without a role
        self.prompts = resolve_prompts(self.stored_prompts, opened.default_prompt_name, prompt_names or {})
        if dim is not None:
            check_dim(dim, opened.width)
        self.dim: int = dim or opened.width
        self.compute = dict(opened.backend.compute)
        self.settings = dict(settings or {})
        self._description = dict(description)
        self.fingerprint = fingerprint({**description, **self._space()})
        self._opened = opened
        self._float32: Backend | None = None  # opened when a row is no number in the chosen dtype
        self._said: set[str] = set()

    def _space(self) -> dict[str, Any]:
        return {
            "max_tokens": self.max_tokens,
            "prompts": self.prompts,
            "unit": self.unit,
            "similarity": self.similarity,
            "dim": self.dim,
        }

    def narrowed(self, dim: int) -> TextEncoder:
        """The same model with the first `dim` columns, as `load(dim=...)` gives it; both share what is opened.

        Raises UsageError for more columns than this one has."""
        check_dim(dim, self.dim)
        other = copy(self)
        other.dim, other.settings = dim, {**self.settings, "dim": dim}
        other.fingerprint = fingerprint({**self._description, **other._space()})
        return other

    def in_float32(self) -> TextEncoder:
        """The same model, computing in float32: a second copy, unless it does so already."""
        other = copy(self)
        other._opened = replace(self._opened, backend=self._in_float32())
        other.compute = dict(other._opened.backend.compute)
        return other

    @property
    def reads_images(self) -> bool:
        """Whether it takes images beside texts."""
        reading = self._opened.reading
        return reading is not None and reading.images

    def encode_query(self, inputs: Any, **options: Any) -> Vectors:
        """`encode` with kind="query"."""
        return self.encode(inputs, kind="query", **options)

    def encode_document(self, inputs: Any, **options: Any) -> Vectors:
        """`encode` with kind="document"."""
        return self.encode(inputs, kind="document", **options)

    def encode(
        self,
        inputs: Any,
        *,
        kind: Kind = "document",
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        normalize_embeddings: bool | None = None,
        truncate_dim: int | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
    ) -> Vectors:
        """float32 (len(inputs), dim), in input order; a single input counts as one and gives (1, dim).

        inputs: texts (a string is always text) and, of models that read them, images (pathlib.Path or PIL) and dicts of "text"
        and "image". The keywords are those of sentence-transformers. prompt: the literal text in front, instead of the kind's own;
        prompt_name: one that the model stores. batch_size: at most so many texts a batch (the token budget holds as well).
        normalize_embeddings: None gives unit rows where the model normalises or compares by cosine. truncate_dim: the
        first so many columns, at unit length again where the rows were. convert_to_tensor, or
        convert_to_numpy=False: the same rows as one tensor.
        Raises UsageError for an input of another kind, with its position; DataError for an image that cannot be read;
        ModelError when a row comes out as NaN or infinite
        even in float32, or when a text does not fit in memory on its own.
        """
        texts = contents(inputs)
        if batch_size is not None and batch_size < 1:
            raise UsageError(f"batch_size={batch_size} came; expected at least 1.")
        unit = self.unit if normalize_embeddings is None else normalize_embeddings
        dim = self.dim if truncate_dim is None else truncate_dim
        check_dim(dim, self.dim)
        literal = self._literal_prompt(kind, prompt, prompt_name)
        run = self._run(kind, literal, batch_size=batch_size, dim=dim, unit=unit, hurried=True)
        rows = np.zeros((len(texts), dim), dtype=np.float32)
        stream = iter(texts)
        windows = list(iter(lambda: window_of(stream, WINDOW, lambda text: text), []))
        start = truncated = 0
        with tqdm(total=len(texts), unit="text", disable=not show_progress_bar) as bar:
            try:
                for window in run.encoded(windows, lambda _, inputs: bar.update(len(inputs))):
                    for position, reason in window.failed.items():
                        at = start + position
                        error_of = DataError if isinstance(texts[at], Picture) else ModelError
                        raise error_of(f"Input {at}: {reason}; mend it or leave it out.", position=position)
                    rows[start : start + len(window.rows)] = window.rows
                    start += len(window.rows)
                    truncated += len(window.truncated)
            except EmbedkitError as error:
                if error.position is not None:
                    error.position += start  # it was counted from the window's first input
                raise
            bar.update(len(texts) - bar.n)
        if truncated:
            self._say_once(
                "cut",
                f"{truncated:,} of {len(texts):,} texts are longer than {self.max_tokens} tokens and were cut.",
            )
        if convert_to_tensor or not convert_to_numpy:
            return _as_tensor(rows)  # type: ignore[no-any-return]
        return rows

    def encode_windows(
        self,
        windows: Iterable[Sequence[Any]],
        *,
        kind: Kind = "document",
        on_long: OnLong = "truncate",
        on_batch: Callable[[int, Sequence[int]], None] | None = None,
    ) -> Iterator[Encoded]:
        """See `embedkit.encoder.WindowEncoder`."""
        if on_long == "chunk" and self._opened.tokenization is None:
            raise UsageError(
                f"{self.name} cannot be read token by token, so its texts cannot be cut into chunks; truncate them."
            )
        run = self._run(kind, self._literal_prompt(kind), on_long=on_long, dim=self.dim, unit=self.unit)
        return run.encoded(windows, on_batch)

    def _run(self, kind: Kind, prompt: str, **settings: Any) -> Run:
        return Run(
            name=self.name,
            backend=self._opened.backend,
            in_float32=self._in_float32,
            tokenization=self._opened.tokenization,
            reading=self._opened.reading,
            max_tokens=self.max_tokens,
            batch_tokens=self._opened.batch_tokens,
            batching=self._opened.batching,
            kind=kind,
            prompt=prompt,
            **settings,
        )

    def _in_float32(self) -> Backend:
        if self._float32 is None:
            self._float32 = self._opened.backend.in_float32()
        return self._float32

    def first_input(self, content: Content, kind: Kind) -> str:
        """The literal input that the model reads for this text, its prompt in front; of an image its name."""
        return self._literal_prompt(kind) + str(content)

    def tokens(self, text: str) -> list[str] | None:
        """What the model reads for a text without a prompt, cut at max_tokens; None where the backend tokenizes by itself."""
        tokenization = self._opened.tokenization
        return None if tokenization is None else tokenization.tokens(text)

    def _literal_prompt(self, kind: Kind, prompt: str | None = None, prompt_name: str | None = None) -> str:
        if kind not in ("query", "document"):
            raise UsageError(f"kind={kind!r} came; expected 'query' or 'document'.")
        if prompt is not None and prompt_name is not None:
            raise UsageError("Both prompt and prompt_name came; give one of them.")
        if prompt is not None:
            return prompt
        if prompt_name is not None:
            return named_prompt(self.stored_prompts, prompt_name)
        if kind == "query" and not self.prompts["query"] and (needed := self._family_prompts):
            beside = f" and {needed['document']!r} in front of documents" if needed["document"] else ""
            self._say_once(
                "prompt",
                f"{self.name} stores no prompt for queries, and models of its family expect {needed['query']!r} in front of them"
                f"{beside}: give it to load as prompts.",
            )
        return self.prompts[kind]

    @functools.cached_property
    def _family_prompts(self) -> dict[Kind, str] | None:
        return family_prompts(self.name)

    def _say_once(self, about: str, message: str) -> None:
        if about not in self._said:
            self._said.add(about)
            logger.warning("%s", message)


def _as_tensor(rows: Vectors) -> Any:
    import torch

    return torch.from_numpy(rows)
