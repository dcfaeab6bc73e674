"""A stream of documents through an encoder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedkit
from embedkit.engine import embed_documents
from embedkit.engine import run as module
from embedkit.errors import ModelError
from embedkit.types import Document

DOCUMENTS = [Document(str(i), "cat " * i, title="dog") for i in range(7)]


def test_windows_come_in_order_with_the_rows_of_their_documents(
    word_counts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW", 3)
    windows = list(embed_documents(DOCUMENTS, word_counts))
    assert [[document.id for document in documents] for documents, _ in windows] == [
        ["0", "1", "2"],
        ["3", "4", "5"],
        ["6"],
    ]
    expected = word_counts.encode([f"dog {document.text}" for document in DOCUMENTS])
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in windows]), expected)


def test_no_more_than_a_window_is_read_ahead(word_counts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 2)
    taken = []

    def watched() -> Iterator[Document]:
        for document in DOCUMENTS:
            taken.append(document.id)
            yield document

    windows = embed_documents(watched(), word_counts)
    assert taken == []
    next(windows)
    assert taken == ["0", "1"]


def test_the_kind_reaches_the_encoder() -> None:
    class Kinds:
        dim, kinds = 1, []  # type: ignore[var-annotated]

        def encode(self, inputs: list[str], *, kind: str) -> np.ndarray:
            self.kinds.append(kind)
            return np.ones((len(inputs), 1), np.float32)

    encoder: Any = Kinds()
    list(embed_documents(DOCUMENTS[:1], encoder))
    list(embed_documents(DOCUMENTS[:1], encoder, "query"))
    assert encoder.kinds == ["document", "query"]


def test_every_window_is_logged_with_the_count_so_far(
    word_counts: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "WINDOW", 3)
    with caplog.at_level(logging.DEBUG, logger="embedkit"):
        list(embed_documents(DOCUMENTS, word_counts))
    assert [record.rows for record in caplog.records] == [3, 6, 7]  # type: ignore[attr-defined]


def test_a_document_that_the_model_fails_at_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def encode(self, inputs: list[str], *, kind: str) -> np.ndarray:
            position = next((i for i, text in enumerate(inputs) if text == "dog cat cat"), None)
            if position is not None or len(inputs) == 1:
                raise ModelError("NaN.", position=position)
            return np.ones((len(inputs), 1), np.float32)

    monkeypatch.setattr(module, "WINDOW", 2)
    broken: Any = Broken()
    with pytest.raises(ModelError, match=r"^At the document '2': NaN\.$"):
        list(embed_documents(DOCUMENTS, broken))
    with pytest.raises(ModelError, match=r"^NaN\.$"):
        list(embed_documents(DOCUMENTS[:1], broken))


def test_documents_that_were_cut_are_counted(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "WINDOW", 3)
    texts = [f"cat {'dog ' * (number % 2 * 9)}" for number in range(7)]
    encoder = embedkit.load(tiny_model, dtype="float32", max_tokens=5)
    with caplog.at_level(logging.WARNING):
        list(embed_documents([Document(str(number), text) for number, text in enumerate(texts)], encoder))
    assert [one.getMessage() for one in caplog.records] == ["3 of 7 documents are longer than 5 tokens and were cut."]
