"""A model that is open: what runs it, what cuts its texts into tokens, and what its rows are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from embedkit.encoders.backend import Backend
from embedkit.encoders.pieces import Tokenization
from embedkit.errors import UsageError


@dataclass(frozen=True)
class Opened:
    """What an opener hands to `load`."""

    backend: Backend
    tokenization: Tokenization | None  # None: the backend tokenizes
    description: Mapping[str, Any]  # what the modules compute, for the fingerprint
    max_tokens: int | None
    prompts: Mapping[str, str]  # name -> literal prompt
    default_prompt_name: str | None
    similarity: str
    normalize: bool  # the model's last module is a norm
    width: int
    batch_tokens: int
    pooling: str


def positive(name: str, value: int) -> int:
    """The value. Raises UsageError where it is below 1."""
    if value < 1:
        raise UsageError(f"{name}={value} came; expected at least 1.")
    return value


def limited(max_tokens: int | None, own: int | None, most: int | None, name: str) -> int | None:
    """How many tokens an input may have: what was asked for, else the model's own limit, never more than it has positions.

    Raises UsageError where more were asked for.
    """
    if max_tokens is not None:
        if most is not None and positive("max_tokens", max_tokens) > most:
            raise UsageError(f"max_tokens={max_tokens} came; {name} takes {most} tokens: choose at most that.")
        return positive("max_tokens", max_tokens)
    return most if own is None else own if most is None else min(own, most)
