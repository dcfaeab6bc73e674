"""Models with a Router: rows are those of sentence-transformers' encode_query and encode_document."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit.encoders import load
from embedkit.encoders.doctor.examination import doctor
from embedkit.encoders.doctor.parity import parity
from embedkit.errors import ModelError, UsageError
from embedkit.vectors import unit_rows

from . import patients

pytestmark = pytest.mark.filterwarnings("ignore")
TEXTS = ["a red bird sings", "cat", "", "fish " * 100, "one two red"]
PROMPTS = {"query": "query : ", "document": ""}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    patients.save(folder, "Bert", patients.wordpiece(folder))
    return folder


def modules(form: str, plain: Path) -> list[Any]:
    from sentence_transformers.sentence_transformer.modules import (
        Dense,
        Normalize,
        Pooling,
        Router,
        StaticEmbedding,
        Transformer,
    )

    def reads(limit: int = 48) -> Any:
        return Transformer(str(plain), max_seq_length=limit)

    def pools(mode: str = "mean") -> Any:
        return Pooling(32, mode)

    def static() -> Any:
        return StaticEmbedding(reads().tokenizer, embedding_dim=32)

    def mapped(query: list[Any], document: list[Any]) -> Any:
        """Without names that say the kind, and without a default."""
        ways = {("query", "text"): "one", ("document", "text"): "other"}
        return Router({"one": query, "other": document}, route_mappings=ways, allow_empty_key=False)

    pair = Router.for_query_document
    forms: dict[str, Callable[[], list[Any]]] = {
        "static queries": lambda: [pair([static()], [reads(), pools()])],
        "static queries by default": lambda: [pair([static()], [reads(), pools()], default_route="query"), Normalize()],
        "two transformers": lambda: [pair([reads(8), pools("cls"), Normalize()], [reads(), pools(), Normalize()])],
        "mapped": lambda: [mapped([static()], [reads(), pools()])],
        "heads": lambda: [reads(), pools(), mapped([Dense(32, 16)], [Dense(32, 16)])],
        "no way for a query": lambda: [Router({"document": [reads(), pools()]}, allow_empty_key=False)],
        "two widths": lambda: [pair([static()], [reads(), pools(), Dense(32, 16)])],
        "no Router": lambda: [static()],
        "limits of a kind": lambda: [Transformer(str(plain), query_length=6, document_length=9), pools()],
    }
    return forms[form]()


def saved(form: str, plain: Path, folder: Path) -> Path:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(modules=modules(form, plain), device="cpu", prompts=PROMPTS)
    model.save_pretrained(str(folder / "model"), create_model_card=False)
    return folder / "model"


@pytest.mark.parametrize("form", ["static queries", "two transformers", "mapped", "heads", "limits of a kind"])
def test_rows_of_each_kind_are_those_of_sentence_transformers(
    form: str, plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = saved(form, plain, tmp_path)
    reference = SentenceTransformer(str(folder), device="cpu")
    expected = {
        "query": unit_rows(reference.encode_query(TEXTS)),
        "document": unit_rows(reference.encode_document(TEXTS)),
    }
    assert np.abs(expected["query"] - expected["document"]).max() > 0.1
    caplog.set_level(logging.WARNING, logger="embedkit")
    for backend in (
        ("torch", "auto") if form == "heads" else ("auto",)
    ):  # OpenVINO takes a Router behind the transformer
        encoder = load(folder, backend=backend, dtype="float32")
        for kind, rows in expected.items():
            np.testing.assert_allclose(encoder.encode(TEXTS, kind=kind), rows, atol=1e-5)  # type: ignore[arg-type]
            alone = np.concatenate([encoder.encode(text, kind=kind) for text in TEXTS])  # type: ignore[arg-type]
            np.testing.assert_allclose(alone, rows, atol=1e-5)
    assert [record.getMessage() for record in caplog.records if "`embedkit doctor`" in record.getMessage()] == []


@pytest.mark.parametrize("form", ["static queries by default", "heads"])
def test_the_doctor_compares_both_kinds(form: str, plain: Path, tmp_path: Path) -> None:
    folder = saved(form, plain, tmp_path)
    examination = doctor(folder, dtype="float32")
    assert examination.findings == []
    assert "least cosine 1.000000" in examination.seen["backends"]
    assert parity(folder, "sentence-transformers").cosine == pytest.approx(1, abs=1e-6)


def test_the_doctor_finds_a_query_side_that_differs(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queries sent the way of documents."""
    folder = saved("static queries", plain, tmp_path)
    encoder = load(folder)
    run = type(encoder._opened.backend).run
    monkeypatch.setattr(
        type(encoder._opened.backend),
        "run",
        lambda self, batches, **kw: run(self, (batch._replace(kind="document") for batch in batches), **kw),
    )
    assert [finding.name for finding in doctor(encoder).findings] == ["backends-disagree"]


@pytest.mark.parametrize(
    ("form", "said"),
    [("no way for a query", "does not take a query"), ("two widths", "gives queries 32 dimensions and documents 16")],
)
def test_a_router_that_cannot_be_searched_with_is_refused(form: str, said: str, plain: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=said):
        load(saved(form, plain, tmp_path))


@pytest.mark.parametrize("form", ["static queries", "no Router"])
def test_a_limit_that_a_static_embedding_cannot_have_is_refused(form: str, plain: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a StaticEmbedding, which reads texts of any length"):
        load(saved(form, plain, tmp_path), max_tokens=16)


def test_each_route_keeps_its_own_limit(plain: Path, tmp_path: Path) -> None:
    folder = saved("two transformers", plain, tmp_path)
    whole, cut = load(folder, dtype="float32"), load(folder, dtype="float32", max_tokens=12)
    assert (whole.max_tokens, cut.max_tokens) == (48, 12)
    assert whole.fingerprint != cut.fingerprint
    long = "cat dog " * 40
    np.testing.assert_array_equal(cut.encode(long), cut.encode("cat dog " * 5))  # [CLS], ten words, [SEP]
    assert (whole.encode_query(long) == whole.encode_query("cat dog " * 3)).all()


def test_routes_that_compute_something_else_are_another_space(plain: Path, tmp_path: Path) -> None:
    folder = saved("two transformers", plain, tmp_path)
    before = load(folder).fingerprint
    config = next(folder.glob("**/query_0_*/config.json"))
    patients.change(config, num_attention_heads=8)
    assert load(folder).fingerprint != before
