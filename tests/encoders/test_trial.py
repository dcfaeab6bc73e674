"""Families of transformers that are unlike BERT, tiny and random, against sentence-transformers with each text alone."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer

import embedkit
from embedkit.errors import ModelError, UsageError
from embedkit.vectors import unit_rows
from tests.encoders.patients import save, wordpiece, wrap

TEXTS = [
    "a cat",
    "the quick brown fox jumps over the lazy dog",
    "one",
    "many words of a long text " * 9,
    "two dogs run",
]


def plain(folder: Path, family: str, **config: Any) -> Path:
    save(folder, family, wordpiece(folder), **config)
    return folder


def alone(folder: Path, texts: list[str] = TEXTS) -> np.ndarray:
    reference = SentenceTransformer(str(folder), device="cpu")
    return unit_rows(np.concatenate([reference.encode([text]) for text in texts]))


def assert_rows(encoder: Any, expected: np.ndarray, texts: list[str] = TEXTS) -> None:
    for rows in (encoder.encode(texts), np.concatenate([encoder.encode([text]) for text in texts])):
        assert np.sum(unit_rows(rows) * expected, axis=1).min() > 0.9999


SMALL = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
}
FEED = {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
PADDED = {
    "MBart": {**SMALL, **FEED, "pad_token_id": 1},
    "XLM": {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "pad_index": 0},
}
EQUAL: dict[str, dict[str, Any]] = {
    "FNet": {},
    "ConvBert": {"embedding_size": 32, "initializer_range": 0.3},
    "Nystromformer": {"num_landmarks": 8, "segment_means_seq_len": 8, "initializer_range": 0.3},
}


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("family", PADDED)
def test_rows_do_not_depend_on_what_pads_them(tmp_path: Path, family: str, backend: str) -> None:
    """MBart reads a row's last token that is no padding, by its id."""
    folder = plain(tmp_path, family, **PADDED[family])
    if family == "MBart":
        _change(folder / "tokenizer_config.json", pad_token="[UNK]")
    encoder = embedkit.load(folder, backend=backend, dtype="float32")
    assert encoder._opened.batching == "padded"
    assert_rows(encoder, alone(folder))


@pytest.mark.parametrize("family", EQUAL)
def test_families_that_read_padding_get_none(tmp_path: Path, family: str) -> None:
    folder = plain(tmp_path, family, **EQUAL[family])
    encoder = embedkit.load(folder, dtype="float32")
    assert encoder._opened.batching == "equal" and encoder.compute["backend"] == "torch"
    assert_rows(encoder, alone(folder))
    with pytest.raises(UsageError, match="its rows depend on padding; leave it to 'auto'"):
        embedkit.load(folder, backend="openvino")


def test_the_width_is_that_of_the_rows(tmp_path: Path) -> None:
    """Reformer's states are twice as wide as its config says."""
    axes = {
        "axial_pos_shape": (8, 8),
        "axial_pos_embds_dim": (16, 16),
        "attn_layers": ["local", "local"],
        "feed_forward_size": 64,
    }
    folder = plain(tmp_path, "Reformer", **axes, attention_head_size=8, local_attn_chunk_length=8, is_decoder=False)
    expected = alone(folder)
    encoder = embedkit.load(folder, dtype="float32")
    assert encoder.dim == expected.shape[1] == 64
    assert_rows(encoder, expected)


def test_a_long_text_loses_tokens_on_the_side_that_the_tokenizer_names(tmp_path: Path) -> None:
    folder = wrap(plain(tmp_path, "Bert"))
    _change(folder / "tokenizer_config.json", truncation_side="left")
    texts = ["the start is a cat " + "and dogs run " * 30 + "the end is a house"]
    encoder = embedkit.load(folder, dtype="float32")
    assert encoder.tokens(texts[0])[-2] == SentenceTransformer(str(folder)).tokenizer.tokenize(texts[0])[-1]  # type: ignore[index]
    assert_rows(encoder, alone(folder, texts), texts)


def test_a_stored_limit_beyond_the_config_holds_where_positions_are_rotations(tmp_path: Path) -> None:
    folder = wrap(plain(tmp_path, "ModernBert", max_position_embeddings=32, global_attn_every_n_layers=1))
    _change(folder / "sentence_bert_config.json", max_seq_length=48)
    texts = ["many words " * 20]
    encoder = embedkit.load(folder, dtype="float32")
    assert encoder.max_tokens == SentenceTransformer(str(folder)).max_seq_length == 48
    assert_rows(encoder, alone(folder, texts), texts)


def test_a_family_without_bfloat16_computes_in_float32_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = plain(tmp_path, "FNet")
    with caplog.at_level(logging.WARNING):
        encoder = embedkit.load(folder, backend="torch", dtype="bfloat16")
    assert encoder.compute["dtype"] == "float32"
    assert "computes in float32: in bfloat16 it fails" in caplog.text
    assert_rows(encoder, alone(folder))


def test_texts_that_a_family_cannot_read_are_named_and_the_others_read(tmp_path: Path) -> None:
    """Funnel halves the length of a text in each block, down to nothing."""
    sizes = {"block_sizes": [1, 1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64, "num_decoder_layers": 1}
    torch.manual_seed(0)
    config = transformers.FunnelConfig(vocab_size=wordpiece(tmp_path), **sizes)
    transformers.FunnelModel(config).save_pretrained(tmp_path)
    folder = tmp_path
    encoder = embedkit.load(folder, dtype="float32")
    with pytest.raises(
        ModelError, match=r"Input 1: the model does not read the text '' \(.*\); mend it or leave it out"
    ):
        encoder.encode([TEXTS[1], "", TEXTS[3]])
    assert_rows(encoder, alone(folder, [TEXTS[1], TEXTS[3]]), [TEXTS[1], TEXTS[3]])
    (window,) = encoder.encode_windows([[TEXTS[1], "", TEXTS[3]]])
    assert list(window.failed) == [1] and len(window.rows) == 2


def test_a_family_that_reads_no_texts_is_refused_by_name(tmp_path: Path) -> None:
    folder = plain(tmp_path, "Bros", dim_bbox=8)
    with pytest.raises(
        ModelError, match=r"does not read a text: You have to specify bbox. Choose a model that embeds texts"
    ):
        embedkit.load(folder)


def _change(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
