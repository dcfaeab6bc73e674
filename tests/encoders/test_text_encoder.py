"""What `encode` promises, on a small real model."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors

from embedkit.encoders import TextEncoder, load
from embedkit.encoders import text_encoder as module
from embedkit.encoders.torch_backend import cast
from embedkit.errors import ModelError, UsageError
from tests.conftest import TINY_VOCABULARY

SHORT, LONG = "cat", "red blue dog " * 20
MANY = [" ".join(["cat", "dog", "swim", "a", "b"][: i % 5 + 1]) for i in range(40)]


@pytest.fixture(scope="module", params=["openvino", "torch"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "openvino":
        pytest.importorskip("openvino")
    return str(request.param)


@pytest.fixture(scope="module")
def encoder(tiny_model: Path, backend: str) -> TextEncoder:
    return load(tiny_model, dtype="float32", backend=backend)


def test_rows_come_in_input_order_whatever_the_batches(
    encoder: TextEncoder, tiny_model: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = np.concatenate([encoder.encode([text]) for text in MANY])
    np.testing.assert_allclose(encoder.encode(MANY), alone, atol=1e-6)
    np.testing.assert_allclose(encoder.encode(MANY, batch_size=3), alone, atol=1e-6)
    np.testing.assert_allclose(
        load(tiny_model, dtype="float32", backend=backend, batch_tokens=5).encode(MANY), alone, atol=1e-6
    )
    monkeypatch.setattr(module, "WINDOW", 7)
    np.testing.assert_allclose(encoder.encode(MANY), alone, atol=1e-6)


def test_padding_changes_nothing(encoder: TextEncoder) -> None:
    """A text alone and beside a longer one has the same row: the mask reaches attention and pooling."""
    np.testing.assert_allclose(encoder.encode([SHORT]), encoder.encode([SHORT, LONG])[:1], atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "count"),
    [
        (list, 0),
        (lambda: "cat", 1),
        (lambda: [""], 1),
        (lambda: ("a", "b"), 2),
        (lambda: iter("abc"), 3),
        (lambda: {"text": "a"}, 1),
        ({"a": 1}.keys, 1),
    ],
)
def test_any_number_of_texts_gives_a_float32_matrix(encoder: TextEncoder, inputs: Any, count: int) -> None:
    rows = encoder.encode(inputs())
    assert (rows.shape, rows.dtype) == ((count, 32), np.float32)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("inputs", [b"bytes", 3, None])
def test_what_is_no_text_is_refused(encoder: TextEncoder, inputs: Any) -> None:
    with pytest.raises(UsageError, match=f"A {type(inputs).__name__} came; expected texts"):
        encoder.encode(inputs)


@pytest.mark.parametrize("wrong", [None, 3.5, b"x", ["a"]])
def test_an_item_that_is_no_string_is_named_by_its_position(encoder: TextEncoder, wrong: Any) -> None:
    with pytest.raises(UsageError, match=rf"Input 2 is a {type(wrong).__name__} \("):
        encoder.encode(["a", "b", wrong])


def test_truncated_rows_are_the_first_columns_at_unit_length(encoder: TextEncoder, tiny_model: Path) -> None:
    full = encoder.encode(MANY)
    expected = full[:, :8] / np.linalg.norm(full[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode(MANY, truncate_dim=8), expected, atol=1e-6)
    np.testing.assert_allclose(load(tiny_model, dtype="float32", dim=8).encode(MANY), expected, atol=1e-6)
    with pytest.raises(UsageError, match="dim=33"):
        encoder.encode(MANY, truncate_dim=33)


def test_a_dot_product_model_keeps_its_lengths(make_model: Callable[..., Path]) -> None:
    dot = load(make_model(similarity="dot", normalize=False), dtype="float32")
    assert (dot.unit, dot.similarity) == (False, "dot")
    rows = dot.encode(MANY)
    assert np.linalg.norm(rows, axis=1).std() > 1e-3
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(dot.encode(MANY, normalize_embeddings=True), unit, atol=1e-6)
    np.testing.assert_allclose(dot.encode(MANY, truncate_dim=4), rows[:, :4], atol=1e-6)


def test_a_cosine_model_without_a_norm_of_its_own_gets_unit_rows(make_model: Callable[..., Path]) -> None:
    plain = load(make_model(normalize=False), dtype="float32")
    assert plain.unit
    np.testing.assert_allclose(np.linalg.norm(plain.encode(MANY), axis=1), 1, atol=1e-6)
    assert np.linalg.norm(plain.encode(MANY, normalize_embeddings=False), axis=1).min() > 1.5


def test_a_normalising_dot_model_has_unit_rows(make_model: Callable[..., Path]) -> None:
    assert load(make_model(similarity="dot")).unit


def test_a_prompt_stands_in_front_of_the_text(make_model: Callable[..., Path]) -> None:
    prompted = load(make_model(prompts={"query": "query : ", "web": "red "}), dtype="float32")
    bare = load(make_model(), dtype="float32")
    np.testing.assert_allclose(prompted.encode("cat", kind="query"), bare.encode("query : cat"), atol=1e-6)
    np.testing.assert_allclose(prompted.encode_query("cat"), bare.encode("query : cat"), atol=1e-6)
    np.testing.assert_allclose(prompted.encode_document("cat"), bare.encode("cat"), atol=1e-6)
    np.testing.assert_allclose(prompted.encode("cat", prompt="blue "), bare.encode("blue cat"), atol=1e-6)
    np.testing.assert_allclose(prompted.encode("cat", kind="query", prompt=""), bare.encode("cat"), atol=1e-6)
    np.testing.assert_allclose(prompted.encode("cat", prompt_name="web"), bare.encode("red cat"), atol=1e-6)


def test_prompts_that_cannot_be_are_refused(encoder: TextEncoder) -> None:
    with pytest.raises(UsageError, match="Both prompt and prompt_name"):
        encoder.encode("cat", prompt="a", prompt_name="b")
    with pytest.raises(UsageError, match="no prompt named 'web'"):
        encoder.encode("cat", prompt_name="web")
    with pytest.raises(UsageError, match="kind='passage' came"):
        encoder.encode("cat", kind="passage")  # type: ignore[arg-type]


def test_a_model_without_the_query_prompt_of_its_family_says_so_once(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "e5-tiny").symlink_to(tiny_model)
    encoder = load(tmp_path / "e5-tiny")
    with caplog.at_level(logging.WARNING):
        encoder.encode("cat", kind="document")
        encoder.encode("cat", kind="query", prompt="given ")
        assert not caplog.records
        encoder.encode("cat", kind="query")
        encoder.encode("dog", kind="query")
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'e5-tiny'} stores no prompt for queries, and models of its family expect 'query: ' in "
        "front of them and 'passage: ' in front of documents: give it to load as prompts."
    ]


def test_a_model_that_is_not_known_to_need_a_prompt_says_nothing(
    tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(tiny_model).encode("cat", kind="query")
    assert not caplog.records


def test_other_keywords_are_refused_by_name(encoder: TextEncoder) -> None:
    with pytest.raises(TypeError, match="'precision'"):
        encoder.encode("cat", precision="int8")  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="batch_size=0 came"):
        encoder.encode("cat", batch_size=0)
    assert encoder.encode("cat", batch_size=1).shape == (1, 32)


def test_tensors_are_given_where_asked_for(encoder: TextEncoder) -> None:
    rows = encoder.encode(["cat", "dog"])
    for keywords in ({"convert_to_tensor": True}, {"convert_to_numpy": False}):
        tensor: Any = encoder.encode(["cat", "dog"], **keywords)
        assert isinstance(tensor, torch.Tensor)
        np.testing.assert_array_equal(tensor.numpy(), rows)


def test_the_progress_bar_counts_texts(encoder: TextEncoder, capsys: pytest.CaptureFixture[str]) -> None:
    encoder.encode(MANY)
    assert capsys.readouterr().err == ""
    encoder.encode(MANY, show_progress_bar=True)
    assert "40/40" in capsys.readouterr().err


@pytest.fixture
def broken_model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model, but the word "cat" has no finite embedding."""
    from safetensors.numpy import load_file, save_file

    copy = shutil.copytree(tiny_model, tmp_path / "broken")
    tensors = load_file(copy / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][TINY_VOCABULARY.index("cat")] = np.inf
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_a_row_that_is_not_finite_is_an_error_that_names_it(broken_model: Path, backend: str) -> None:
    encoder = load(broken_model, backend=backend)
    assert encoder.encode(["dog"]).shape == (1, 32)
    with pytest.raises(ModelError, match="NaN or infinity for the text 'a cat', in float32 too; mend") as caught:
        encoder.encode(["dog", "red", "a cat", "cat"])
    assert caught.value.position == 2


def test_what_overflows_in_float16_is_computed_again_in_float32(tiny_model: Path, tmp_path: Path) -> None:
    """Activations of some models pass 65,504, the largest number of float16; float32 holds them."""
    from safetensors.numpy import load_file, save_file

    copy = shutil.copytree(tiny_model, tmp_path / "large")
    tensors = load_file(copy / "model.safetensors")
    tensors["encoder.layer.0.intermediate.dense.weight"] *= 30_000
    tensors["encoder.layer.0.output.dense.weight"] *= 1_000
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    exact = load(copy, dtype="float32", backend="torch")
    np.testing.assert_allclose(load(copy, dtype="float16").encode(MANY), exact.encode(MANY), atol=1e-6)


def test_max_tokens_cuts_the_text(tiny_model: Path, backend: str) -> None:
    short = load(tiny_model, max_tokens=4, dtype="float32", backend=backend)  # [CLS] two words [SEP]
    np.testing.assert_allclose(short.encode("cat dog red fish"), short.encode("cat dog"), atol=1e-6)
    assert np.abs(short.encode("cat dog") - short.encode("cat red")).max() > 1e-3


def test_what_a_model_keeps_in_float32_stays_so(tiny_model: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tiny_model), device="cpu")
    model[0].auto_model._keep_in_fp32_modules = ["pooler"]
    cast(model, torch.bfloat16)
    dtypes = {name.split(".")[0]: parameter.dtype for name, parameter in model[0].auto_model.named_parameters()}
    assert dtypes == {"embeddings": torch.bfloat16, "encoder": torch.bfloat16, "pooler": torch.float32}


def test_static_embeddings_are_models_too(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "cat": 1, "dog": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    weights = np.eye(3, 4, dtype=np.float32)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu").save_pretrained(
        str(tmp_path / "static"), create_model_card=False
    )
    rows = load(tmp_path / "static", dtype="bfloat16").encode(["cat", "cat dog", "dog dog"])
    half = np.sqrt(0.5)
    np.testing.assert_allclose(rows, [[0, 1, 0, 0], [0, half, half, 0], [0, 0, 1, 0]], atol=1e-6)


@pytest.mark.model
def test_the_default_model_agrees_with_sentence_transformers(default_encoder: TextEncoder, backend: str) -> None:
    from sentence_transformers import SentenceTransformer

    from embedkit.encoders.default_model import default_model_folder

    texts = [
        "a",
        "",
        " ",
        "\n",
        "🐈",
        "🐈‍⬛🏴‍☠️",
        "Grüße, 世界, привет",
        "नमस्ते שלום",
        "The quick brown fox. " * 100,
        "two words",
    ]
    expected = SentenceTransformer(str(default_model_folder()), device="cpu").encode(texts)
    assert (load(dtype="float32", backend=backend).encode(texts) * expected).sum(axis=1).min() > 0.99999
    assert (load(dtype="bfloat16", backend=backend).encode(texts) * expected).sum(axis=1).min() > 0.999


@pytest.mark.long
@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"])
def test_poolings_give_the_rows_of_sentence_transformers(make_model: Callable[..., Path], pooling: str) -> None:
    from sentence_transformers import SentenceTransformer

    folder = make_model(pooling=pooling, normalize=False, similarity="dot")
    expected = SentenceTransformer(str(folder), device="cpu").encode(MANY)
    np.testing.assert_allclose(load(folder, dtype="float32").encode(MANY), expected, atol=1e-5)
    np.testing.assert_allclose(load(folder, dtype="float32", backend="torch").encode(MANY), expected, atol=1e-5)


def test_both_backends_give_the_same_rows_on_either_padding_side(
    tiny_model: Path, encoder: TextEncoder, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / "left")
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": "left"}))
    left = load(copy, dtype="float32", backend="torch").encode(MANY)
    np.testing.assert_allclose(encoder.encode(MANY), left, atol=1e-6)


def test_a_text_without_any_token_is_a_zero_row(tiny_model: Path, tmp_path: Path, backend: str) -> None:
    """Tokenizers of many decoders add nothing to an empty text; pooling over no token would be NaN or an error."""
    copy = shutil.copytree(tiny_model, tmp_path / "bare")
    rules = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps({**rules, "post_processor": None}))  # no [CLS], no [SEP]
    encoder = load(copy, dtype="float32", backend=backend)
    if backend == "torch":  # transformers puts the family's own post-processor back
        encoder._opened.tokenization._cutting.post_processor = processors.Sequence([])
    rows = encoder.encode(["", "cat", ""])
    np.testing.assert_array_equal(rows[[0, 2]], 0)
    np.testing.assert_allclose(rows[1:2], encoder.encode("cat"), atol=1e-6)
    assert encoder.encode([""]).shape == (1, 32)


def test_half_a_character_is_named_by_its_position(encoder: TextEncoder) -> None:
    with pytest.raises(UsageError, match=r"Input 1 holds half of a character \('a.ud800'\)"):
        encoder.encode(["cat", "a\ud800"])


def test_no_columns_are_refused(encoder: TextEncoder) -> None:
    with pytest.raises(UsageError, match="dim=0"):
        encoder.encode("cat", truncate_dim=0)


@pytest.mark.model
def test_a_row_hardly_depends_on_its_batch(default_encoder: TextEncoder, backend: str) -> None:
    """What the README says: within 1e-6 in float32, a cosine of 0.9999 in bfloat16."""
    texts = ["The quick brown fox. " * n for n in (1, 3, 9, 27)]
    half, exact = load(dtype="bfloat16", backend=backend), load(dtype="float32", backend=backend)
    alone = np.concatenate([half.encode(text) for text in texts])
    assert (half.encode(texts) * alone).sum(axis=1).min() > 0.9999
    alone = np.concatenate([exact.encode(text) for text in texts])
    np.testing.assert_allclose(exact.encode(texts), alone, atol=1e-6)


def test_texts_that_are_cut_are_told_of_once(encoder: TextEncoder, caplog: pytest.LogCaptureFixture) -> None:
    encoder._said.clear()
    with caplog.at_level(logging.WARNING):
        encoder.encode([SHORT, LONG])
        encoder.encode([LONG, LONG, LONG])
    assert [r.getMessage() for r in caplog.records] == ["1 of 2 texts are longer than 32 tokens and were cut."]


def test_equal_texts_are_computed_once(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[str] = []
    run = encoder._opened.backend.run

    def watched(batches: Any, **options: Any) -> Any:
        return run(batch for batch in batches if not computed.extend(piece.text for piece in batch.pieces))

    monkeypatch.setattr(encoder._opened.backend, "run", watched)
    rows = encoder.encode(["cat", "dog", "cat", "cat"])
    assert sorted(computed) == ["cat", "dog"]
    np.testing.assert_array_equal(rows[[0, 0]], rows[[2, 3]])


@pytest.mark.model
def test_the_default_model_opens_without_torch(default_encoder: TextEncoder) -> None:
    """Importing torch, transformers and sentence-transformers takes seconds, which every cold search would pay."""
    pytest.importorskip("openvino")
    heavy = ("torch", "transformers", "sentence_transformers", "huggingface_hub")
    code = f"import sys, embedkit; embedkit.load(device='cpu').encode('cat'); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_broken_text_of_a_later_window_has_its_own_position(
    broken_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW", 3)
    encoder = load(broken_model)
    with pytest.raises(ModelError) as caught:
        encoder.encode(["dog", "red", "one", "two", "fish", "swim", "bird", "a cat"])
    assert caught.value.position == 7
