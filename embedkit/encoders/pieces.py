"""Texts as pieces: the token ids that a model reads, and which part of the text they are.

A text that fits is one piece. A longer one is cut, or becomes several pieces that overlap. The prompt is told apart from the
text by character offsets, never by counting the tokens of the prompt: a byte-level tokenizer merges the prompt's last space
into the first word, and counting then drops that word.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from embedkit.encoder import OnLong
from embedkit.encoders.foreign import as_model_error
from embedkit.errors import UsageError
from embedkit.limits import TEXT
from embedkit.types import Picture

FAILED, STEP = "The model's tokenizer fails on a text", "Its tokenizer.json may be damaged: fetch the model again."
OVERLAP = 8  # neighbouring chunks share an eighth of their tokens


@dataclass(frozen=True, slots=True)
class Piece:
    """What gives one row."""

    input: int  # position of its text
    text: str  # with its prompt
    ids: Sequence[int] | None = None  # None: the backend has a tokenizer of its own
    first: int = 0  # tokens before this one are left out of pooling
    span: tuple[int, int] = (0, 0)  # characters of the text, without its prompt
    truncated: bool = False
    picture: Picture | None = None  # read alone, or together with the text where it has one
    tokens: int = 0  # of the picture

    @property
    def length(self) -> int:
        """Tokens; characters where they cannot be told. 0 where the model would have nothing to read."""
        return self.tokens + (len(self.text) + 1 if self.ids is None else len(self.ids))

    @property
    def kind(self) -> str:
        """Pieces of one kind make a batch."""
        if self.picture is None:
            return "text"
        return "image" if self.picture.text is None else "image and text"

    def __str__(self) -> str:
        """For messages."""
        return f"the text {self.text[:40]!r}" if self.picture is None else str(self.picture)[:200]


class Tokenization:
    """Cuts texts into pieces with a `tokenizers.Tokenizer`, whose truncation and padding it takes over. side: where a long text loses
    tokens, "left" or "right"."""

    def __init__(self, tokenizer: Any, max_tokens: int | None, *, pool_prompt: bool, side: str = "right") -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        if max_tokens is not None:
            tokenizer.enable_truncation(max_tokens, direction=side)
        self._cutting, self._max_tokens, self._pool_prompt = tokenizer, max_tokens, pool_prompt

    def pieces(self, texts: Sequence[str], prompt: str, on_long: OnLong = "truncate") -> list[Piece]:
        """The pieces of all texts, in order; one a text unless on_long is "chunk" (the caller looks at `truncated`)."""
        prompted = [prompt + text for text in texts] if prompt else list(texts)
        if on_long == "chunk":
            return [piece for i, text in enumerate(prompted) for piece in self._chunks(i, text, len(prompt))]
        apart = bool(prompt) and not self._pool_prompt
        encode = self._cutting.encode_batch if apart else self._cutting.encode_batch_fast  # fast: without offsets
        encodings = itertools.chain.from_iterable(map(functools.partial(_encoded, encode), _parts(prompted)))
        return [
            Piece(
                i,
                text,
                encoding.ids,
                first=_first_token(encoding, len(prompt)) if apart else 0,
                span=(0, len(text) - len(prompt)),
                truncated=bool(encoding.overflowing),
            )
            for i, (text, encoding) in enumerate(zip(prompted, encodings, strict=True))
        ]

    def tokens(self, text: str) -> list[str]:
        """The tokens of one text, cut at the limit."""
        with as_model_error(FAILED, STEP):
            tokens: list[str] = self._cutting.encode(text).tokens
        return tokens

    @functools.cached_property
    def _whole(self) -> Any:
        """The same tokenizer, cutting nothing."""
        from tokenizers import Tokenizer

        whole = Tokenizer.from_str(self._cutting.to_str())
        whole.no_truncation()
        return whole

    def _chunks(self, position: int, text: str, prompt: int) -> list[Piece]:
        """The pieces of one text, each with the special tokens and the prompt's tokens around its own.

        Cut between tokens, not by tokenizing parts of the text again, so a piece holds just the tokens that the whole text
        has there, and each but the last is full.
        """
        with as_model_error(FAILED, STEP):
            encoding = self._whole.encode(text)
        ids, special = encoding.ids, encoding.special_tokens_mask
        lead = next((i for i, mark in enumerate(special) if not mark), len(ids))
        trail = len(ids) - next((i for i, mark in enumerate(reversed(special)) if not mark), 0)
        body = _first_token(encoding, prompt) if prompt else lead
        room = (self._max_tokens or len(ids)) - body - (len(ids) - trail)
        first = 0 if self._pool_prompt or not prompt else body
        if trail - body <= room:
            return [Piece(position, text, ids, first=first, span=(0, len(text) - prompt))]
        if room < 1:
            raise UsageError(
                f"The prompt and the special tokens fill the {self._max_tokens} tokens that the model takes; give a shorter prompt."
            )
        overlap = min(max(room // OVERLAP, 1), room - 1)
        starts, offsets = (
            range(body, trail - overlap, room - overlap),
            encoding.offsets,
        )  # each look makes the list anew
        return [
            Piece(
                position,
                text,
                [*ids[:body], *ids[start : min(start + room, trail)], *ids[trail:]],
                first=first,
                span=_span(offsets[start : min(start + room, trail)], prompt),
            )
            for start in starts
        ]


def _encoded(encode: Callable[[Sequence[str]], list[Any]], texts: Sequence[str]) -> list[Any]:
    with as_model_error(FAILED, STEP):
        return encode(texts)


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Texts that are tokenized at once: their encodings hold all that is cut off, some hundred bytes a character."""
    start = held = 0
    for place, text in enumerate(texts):
        if held and held + len(text) > TEXT:
            yield texts[start:place]
            start, held = place, 0
        held += len(text)
    yield texts[start:]


def _first_token(encoding: Any, prompt: int) -> int:
    """The first token that reaches beyond the prompt's characters; the closing special tokens where there is none."""
    special = encoding.special_tokens_mask
    for i, (_, end) in enumerate(encoding.offsets):
        if not special[i] and end > prompt:
            return i
    return len(special) - next((i for i, mark in enumerate(reversed(special)) if not mark), 0)


def _span(offsets: Sequence[tuple[int, int]], prompt: int) -> tuple[int, int]:
    return max(offsets[0][0] - prompt, 0), offsets[-1][1] - prompt
