"""A learned sparse model, as sentence-transformers runs it and as an index asks it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedkit.encoders.sparse_encoder import load_sparse
from embedkit.errors import ModelError
from embedkit.jobs import build_index, open_index
from embedkit.types import Document

from ..engine.fakes import Windowed
from .patients import POSITIONS, SIZES, wordpiece

TEXTS = ["cat dog", "red fish swim", "two blue bird", "run run cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SPLADE of random weights."""
    import torch
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling
    from transformers import BertConfig, BertForMaskedLM

    path = tmp_path_factory.mktemp("splade")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=wordpiece(path), max_position_embeddings=POSITIONS, initializer_range=0.5, **SIZES)
    BertForMaskedLM(config).save_pretrained(path)
    modules = [MLMTransformer(str(path), max_seq_length=32), SpladePooling("max")]
    SparseEncoder(modules=modules, device="cpu").save_pretrained(str(path / "whole"), create_model_card=False)
    return path / "whole"


def test_weights_are_those_of_sentence_transformers(folder: Path) -> None:
    from sentence_transformers import SparseEncoder

    encoder, reference = load_sparse(folder), SparseEncoder(str(folder), device="cpu")
    expected = reference.encode_document(TEXTS, convert_to_sparse_tensor=False).numpy()
    found = encoder.encode(TEXTS)
    assert found.shape == (len(TEXTS), len(encoder.vocabulary)) and 0 < found.nnz < expected.size
    np.testing.assert_allclose(found.toarray(), expected, atol=1e-5)
    assert len(set(encoder.vocabulary)) == len(encoder.vocabulary) and "cat" in encoder.vocabulary
    decoded = dict(reference.decode(reference.encode_document(TEXTS[:1]))[0])
    weights = {encoder.vocabulary[column]: found[0, column] for column in found[0].indices}
    assert weights == pytest.approx(decoded, abs=1e-5)
    assert encoder.fingerprint == load_sparse(folder).fingerprint


def test_an_index_opens_the_model_of_its_sparse_leg_by_itself(folder: Path, tmp_path: Path) -> None:
    corpus = [Document(f"d{n}", text) for n, text in enumerate(TEXTS)]
    build_index(corpus, tmp_path / "x", model=Windowed(), sparse=str(folder)).close()
    with open_index(tmp_path / "x", Windowed()) as index:
        index.add([Document("more", "blue cat")])
        assert index.manifest.sparse is not None and index.manifest.sparse.model == str(folder)
        hits = index.search(["cat", "bird swim"], 5, mode="sparse")
        encoder = load_sparse(folder)
        products = encoder.encode(["cat", "bird swim"], kind="query") @ encoder.encode([*TEXTS, "blue cat"]).T
    for ids, scores, row in zip(hits.ids, hits.scores, products.toarray(), strict=True):
        expected = dict(zip(["d0", "d1", "d2", "d3", "more"], row, strict=True))
        assert dict(zip(ids, scores, strict=False)) == pytest.approx(expected, abs=1e-4)


def test_what_is_no_sparse_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be opened as a sparse model"):
        load_sparse(tmp_path)
