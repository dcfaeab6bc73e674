"""Between `load` and those who open a model: what was asked for, and what is open then."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedkit.encoders.attention import Attention
from embedkit.encoders.backend import Backend
from embedkit.encoders.batches import Batching
from embedkit.encoders.images import Reading
from embedkit.encoders.pieces import Tokenization
from embedkit.errors import UsageError

BACKENDS = ("auto", "openvino", "torch")
DTYPES = ("auto", "float32", "bfloat16", "float16")
COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class Asked:
    """What a caller of `load` asked for; its docstring says what each means."""

    name: str
    revision: str | None
    device: str
    backend: str
    dtype: str
    threads: int | None
    batch_tokens: int | None
    max_tokens: int | None
    layers: int | None
    prompts: Mapping[str, str] | None
    trust_remote_code: bool

    def __post_init__(self) -> None:
        for option, choices in (("backend", BACKENDS), ("dtype", DTYPES)):
            if (value := getattr(self, option)) not in choices:
                raise UsageError(f"{option}={value!r} came; expected {', '.join(choices)}.")
        if "," in self.device:
            raise UsageError(
                f"device={self.device!r} came; a model is opened on one: give embed_corpus several as devices=, or the command "
                f"`embedkit embed`."
            )
        for option in ("threads", "batch_tokens"):
            if (value := getattr(self, option)) is not None:
                positive(option, value)
        if self.trust_remote_code and not (Path(self.name).is_dir() or COMMIT.fullmatch(self.revision or "")):
            raise UsageError(
                f"trust_remote_code came for {self.name} with revision={self.revision!r}; pin the code that is trusted: give "
                f"the commit's 40 digits as revision."
            )


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
    cut: bool  # layers of the transformer are left out
    reading: Reading | None = None  # what it reads beside texts; None: nothing
    batching: Batching = "padded"
    attention: Attention | None = None  # as it was tried; None: embedkit's own graph, or no transformer


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
