"""Rows from a server that speaks OpenAI's embeddings schema: TEI, vLLM, Infinity, llama.cpp and others. Standard library only."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any, TypedDict
from urllib.parse import urlsplit

import numpy as np

from embedkit.errors import UsageError
from embedkit.limits import ANSWER
from embedkit.typed import misfit, parsed
from embedkit.types import Vectors

AT_ONCE = 16  # texts a request; servers refuse more than they like
PATIENCE = 120  # seconds for one answer, and for each wait within it


class _Entry(TypedDict):
    index: int
    embedding: list[Any] | str


class _Answer(TypedDict):
    data: list[_Entry]


def is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def address(url: str) -> str:
    """Where the embeddings are: a URL of a server, of its /v1, or the whole address.

    >>> address("http://localhost:8080")
    'http://localhost:8080/v1/embeddings'
    """
    bare = url.rstrip("/")
    try:
        path = urlsplit(bare).path
    except ValueError as error:
        raise UsageError(f"{url} is no address ({error}); expected http://HOST:PORT.") from None
    if path.endswith("/embeddings"):
        return bare
    return f"{bare}/embeddings" if path.endswith("/v1") else f"{bare}/v1/embeddings"


def endpoint_rows(url: str, model: str, texts: Sequence[str]) -> Vectors:
    """(len(texts), dim) float32, in the order of the texts. No key is sent.

    Raises UsageError when the server cannot be reached, refuses, or answers something else.
    """
    rows: list[Any] = []
    for start in range(0, len(texts), AT_ONCE):
        part = list(texts[start : start + AT_ONCE])
        rows += _rows(address(url), _answer(address(url), {"model": model, "input": part}), len(part))
    if len({len(row) for row in rows}) != 1:
        raise UsageError(f"{address(url)} gave rows of several widths; expected one.")
    with np.errstate(over="ignore"):  # infinity is refused where rows are compared
        return np.array(rows, dtype=np.float32)


def _answer(url: str, question: dict[str, Any]) -> Any:
    try:
        request = urllib.request.Request(
            url, json.dumps(question).encode(), {"Content-Type": "application/json", "Accept": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return parsed(_whole(answer))
    except urllib.error.HTTPError as error:
        said = ""
        with contextlib.suppress(OSError, http.client.HTTPException):
            said = error.read(200).decode("utf-8", "replace").strip()
        raise UsageError(
            f"{url} answered {error.code} {error.reason} ({said}); expected embeddings: check the URL, and the model's name "
            f"that the server knows."
        ) from None
    except (OSError, ValueError, http.client.HTTPException) as error:  # no connection, no HTTP, no JSON
        raise UsageError(
            f"{url} did not answer as expected ({getattr(error, 'reason', error)}); expected a server with OpenAI's embeddings schema."
        ) from None


def _whole(answer: Any) -> bytes:
    """All bytes of an answer. Raises ValueError where they are more than ANSWER or take longer than PATIENCE: a wait within
    it has a limit of its own, which a server that sends a byte now and then never meets."""
    end = time.monotonic() + PATIENCE
    content = bytearray()
    while part := answer.read1(1 << 16):
        content += part
        if len(content) > ANSWER:
            raise ValueError(f"more than {ANSWER:,} bytes")
        if time.monotonic() > end:
            raise ValueError(f"no end within {PATIENCE} s")
    return bytes(content)


def _rows(url: str, answer: Any, count: int) -> list[Any]:
    try:
        if reason := misfit(answer, _Answer):
            raise ValueError(reason)
        data = sorted(answer["data"], key=lambda entry: entry["index"])
        rows = [_numbers(entry["embedding"]) for entry in data]
    except (ValueError, OverflowError) as error:  # a whole number beyond all floats
        raise UsageError(
            f'{url} answered without data[].embedding ({error}); expected {{"data": [{{"index": 0, "embedding": [...]}}]}}.'
        ) from None
    if len(rows) != count:
        raise UsageError(f"{url} gave {len(rows)} rows for {count} texts; expected one a text.")
    if [entry["index"] for entry in data] != list(range(count)):
        raise UsageError(f"{url} gave rows with other indices than 0 to {count - 1}; expected one of each.")
    return rows


def _numbers(embedding: Any) -> Any:
    """One row, as a list of numbers or as base64 of little-endian float32."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
    if not embedding or any(type(number) not in (int, float) for number in embedding):
        raise ValueError("an embedding is not a list of numbers")
    return np.array(embedding, dtype=np.float64)
