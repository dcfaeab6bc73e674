"""Rows from a server that speaks OpenAI's embeddings schema: TEI, vLLM, Infinity, llama.cpp and others. Standard library only."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from embedkit.errors import UsageError
from embedkit.types import Vectors

AT_ONCE = 16  # texts a request; servers refuse more than they like
PATIENCE = 120  # seconds for one request


def is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def address(url: str) -> str:
    """Where the embeddings are: a URL of a server, of its /v1, or the whole address.

    >>> address("http://localhost:8080")
    'http://localhost:8080/v1/embeddings'
    """
    bare = url.rstrip("/")
    if urlsplit(bare).path.endswith("/embeddings"):
        return bare
    return f"{bare}/embeddings" if urlsplit(bare).path.endswith("/v1") else f"{bare}/v1/embeddings"


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
    return np.array(rows, dtype=np.float32)


def _answer(url: str, question: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        url, json.dumps(question).encode(), {"Content-Type": "application/json", "Accept": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        said = error.read(200).decode("utf-8", "replace").strip()
        raise UsageError(
            f"{url} answered {error.code} {error.reason} ({said}); expected embeddings: check the URL, and the model's name "
            f"that the server knows."
        ) from None
    except (OSError, ValueError) as error:  # no connection, no JSON
        raise UsageError(
            f"{url} did not answer as expected ({getattr(error, 'reason', error)}); expected a server with OpenAI's embeddings schema."
        ) from None


def _rows(url: str, answer: Any, count: int) -> list[Any]:
    try:
        data = sorted(answer["data"], key=lambda entry: entry["index"])
        rows = [_numbers(entry["embedding"]) for entry in data]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f'{url} answered without data[].embedding ({error!r}); expected {{"data": [{{"index": 0, "embedding": [...]}}]}}.'
        ) from None
    if len(rows) != count:
        raise UsageError(f"{url} gave {len(rows)} rows for {count} texts; expected one a text.")
    return rows


def _numbers(embedding: Any) -> Any:
    """One row, as a list of numbers or as base64 of little-endian float32."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
    row = np.array(embedding, dtype=np.float32)
    if row.ndim != 1:
        raise ValueError(f"an embedding of {row.ndim} dimensions")
    return row
