"""Encoders without a model, whose rows follow from the text alone, and what may go wrong with one."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from embedkit.encoder import Encoded
from embedkit.errors import ModelError
from embedkit.types import Document

DIM = 5


def row(text: str) -> np.ndarray:
    """The row of a text, by its SHA-256."""
    digest = hashlib.sha256(text.encode()).digest()
    return np.frombuffer(digest[: 4 * DIM], dtype="<u4").astype(np.float32) / 2**31 - 1


def rows(texts: Iterable[str]) -> np.ndarray:
    return np.array([row(text) for text in texts], dtype=np.float32).reshape(-1, DIM)


def documents(count: int, text: str = "text") -> list[Document]:
    return [Document(f"d{number}", f"{text} {number}", title="" if number % 3 else "title") for number in range(count)]


class Plain:
    """An Encoder and no more. `memory`: it can take so many inputs at once."""

    dim, similarity, fingerprint = DIM, "cosine", "f" * 64

    def __init__(self, memory: int = 10**9, seconds: float = 0.0, **compute: str) -> None:
        self.memory, self.seconds = memory, seconds
        self.settings: dict[str, Any] = {"model": "fake"}
        self.compute = {"backend": "fake", **compute}

    def encode(self, inputs: Sequence[str], *, kind: str = "document") -> np.ndarray:
        if len(inputs) > self.memory or "huge" in inputs:
            raise MemoryError
        time.sleep(self.seconds)
        for text in inputs:
            misbehave(text)
        return rows(inputs)


def misbehave(text: str) -> None:
    """What the words of a text tell an encoder to do."""
    words = text.split()
    if "raise" in words:
        raise RuntimeError("a screw is loose")
    if "nan" in words:
        raise ModelError("NaN.", position=int(words[-1]))
    if "killed" in words:
        os.kill(os.getpid(), signal.SIGKILL)
    if "hang" in words:
        time.sleep(1000)


class Windowed(Plain):
    """A WindowEncoder that takes the next window in a thread. Texts with the word "bad" are set aside; those over LONGEST
    characters are cut, given a row every LONGEST characters, or refused."""

    LONGEST = 12

    def encode_windows(
        self,
        windows: Iterable[Sequence[str]],
        *,
        kind: str = "document",
        on_long: str = "truncate",
        on_batch: Callable[[int, Sequence[int]], None] | None = None,
    ) -> Iterator[Encoded]:
        stream = enumerate(windows)
        with ThreadPoolExecutor(1) as thread:
            coming = deque([thread.submit(next, stream, None)])
            while (window := coming.popleft().result()) is not None:
                coming.append(thread.submit(next, stream, None))
                found = self._window(*window, on_long, on_batch)
                wait(coming)  # a strict one: it gives a window when it has the next
                yield found

    def _window(self, number: int, texts: Sequence[str], on_long: str, on_batch: Any) -> Encoded:
        parts, inputs, spans, failed, truncated = [], [], [], {}, []
        for place, text in enumerate(texts):
            if on_batch is not None and place % 2 == 0:
                on_batch(number, range(place, min(place + 2, len(texts))))
            misbehave(text)
            if "bad" in text.split():
                failed[place] = "it is bad"
                continue
            if len(text) > self.LONGEST and on_long == "error":
                raise ModelError("Too long.", position=place)
            if len(text) > self.LONGEST and on_long == "truncate":
                truncated.append(place)
            ends = range(0, len(text), self.LONGEST) if on_long == "chunk" and text else [0]
            for start in ends:
                parts.append(text[start : start + self.LONGEST])
                inputs.append(place)
                spans.append((start, start + len(parts[-1])))
        return Encoded(
            rows(parts),
            np.array(inputs, dtype=np.int64),
            spans=np.array(spans, dtype=np.int64).reshape(-1, 2) if on_long == "chunk" else None,
            failed=failed,
            truncated=truncated,
        )

    def first_input(self, text: str, kind: str) -> str:
        return f"{kind}: {text}"
