"""Folders read as data: the families that are read give the rows of sentence-transformers, and whatever is unknown is left to it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit.encoders import load
from embedkit.encoders.model_files import read_model_files
from embedkit.errors import ModelError

TEXTS = ["cat dog red", "", "red fish swim " * 30, "é 猫 🐈", "Two  spaces\tand a tab", "<s> cat </s>"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))


def copied(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


def expected_rows(folder: Path) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode(TEXTS, normalize_embeddings=True)


def byte_level(folder: Path) -> Any:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaTokenizer

    trained = ByteLevelBPETokenizer()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(TEXTS * 5, vocab_size=300, special_tokens=specials, show_progress=False)
    trained.save_model(str(folder))
    return RobertaTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=64)


def unigram(name: str) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        import transformers

        pieces = ["▁cat", "▁dog", "▁red", "▁fish", "▁swim", "▁", *"abcdefghijklmnopqrstuvwxyz", "<mask>"]
        specials = ["<s>", "<pad>", "</s>", "<unk>"]
        vocabulary = [*((token, 0.0) for token in specials), *((piece, -float(i)) for i, piece in enumerate(pieces, 1))]
        return getattr(transformers, f"{name}Tokenizer")(vocab=vocabulary, model_max_length=64)

    return make


@pytest.mark.parametrize(
    ("family", "tokenizer"),
    [("Roberta", byte_level), ("XLMRoberta", unigram("XLMRoberta")), ("Camembert", unigram("Camembert"))],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_families_with_tokenizers_of_their_own_give_the_rows_of_sentence_transformers(
    family: str, tokenizer: Callable[[Path], Any], tmp_path: Path
) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    saved = tokenizer(tmp_path)
    specials = {name: getattr(saved, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(saved), max_position_embeddings=66, type_vocab_size=1, **SIZES, **specials
    )
    folder = tmp_path / "model"
    getattr(transformers, f"{family}Model")(config).save_pretrained(folder)
    saved.save_pretrained(folder)
    assert read_model_files(folder) is not None
    encoder = load(folder, dtype="float32")
    assert encoder.max_tokens == 64
    np.testing.assert_allclose(encoder.encode(TEXTS), expected_rows(folder), atol=1e-6)
    assert load(folder, backend="torch").fingerprint == encoder.fingerprint


def test_a_model_saved_with_another_head_is_the_same_encoder(plain_model: Path, tmp_path: Path) -> None:
    from transformers import BertForMaskedLM, BertModel

    folder = copied(plain_model, tmp_path)
    masked = BertForMaskedLM.from_pretrained(folder)
    masked.bert = BertModel.from_pretrained(folder, add_pooling_layer=False)
    masked.save_pretrained(folder)
    files, plain = read_model_files(folder), read_model_files(plain_model)
    assert files is not None and plain is not None
    assert files.tensors.keys() == plain.tensors.keys()
    assert load(folder).fingerprint == load(plain_model).fingerprint


def test_dense_layers_stand_behind_the_pooling(plain_model: Path, tmp_path: Path) -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    for activation in (torch.nn.Tanh(), torch.nn.Identity()):
        folder = tmp_path / type(activation).__name__
        transformer = Transformer(str(plain_model), max_seq_length=32)
        modules = [transformer, Pooling(32, "cls"), Dense(32, 16, activation_function=activation), Normalize()]
        SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder), create_model_card=False)
        files = read_model_files(folder)
        assert files is not None and (files.width, files.pooling, files.normalize) == (16, "cls", True)
        np.testing.assert_allclose(load(folder, dtype="float32").encode(TEXTS), expected_rows(folder), atol=1e-6)


def test_the_old_settings_of_pooling_are_read(tiny_model: Path, tmp_path: Path) -> None:
    folder = copied(tiny_model, tmp_path)
    marks = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "word_embedding_dimension": 32}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(marks))
    files = read_model_files(folder)
    assert files is not None and files.pooling == "cls"


def test_the_old_names_of_the_norms_are_read(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = copied(tiny_model, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    assert load(folder).fingerprint == load(tiny_model).fingerprint


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"model_type": "electra"}),
        ("config.json", {"hidden_act": "silu"}),
        ("config.json", {"position_embedding_type": "relative_key"}),
        ("config.json", {"is_decoder": True}),
        ("config.json", {"auto_map": {"AutoModel": "modeling.Model"}}),
        ("config.json", {"num_hidden_layers": 1}),
        ("config.json", {"quantization_config": {"bits": 4}}),
        ("tokenizer_config.json", {"do_lower_case": False}),
        ("tokenizer_config.json", {"strip_accents": True}),
        ("tokenizer_config.json", {"tokenize_chinese_chars": False}),
        ("tokenizer_config.json", {"truncation_side": "left"}),
        ("tokenizer_config.json", {"tokenizer_class": "XLMRobertaTokenizer"}),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}),
        ("sentence_bert_config.json", {"query_expansion": {"length": 32}}),
        ("sentence_bert_config.json", {"modality_config": {"message": {}}}),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}),
        ("config_sentence_transformers.json", {"similarity_fn_name": "hamming"}),
        ("1_Pooling/config.json", {"pooling_mode": "max"}),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "cls"]}),
        ("adapter_config.json", {"peft_type": "LORA"}),
        ("config.json", None),
        ("tokenizer.json", None),
        ("model.safetensors", None),
        ("1_Pooling/config.json", None),
    ],
    ids=str,
)
def test_what_is_unknown_is_left_to_sentence_transformers(
    tiny_model: Path, tmp_path: Path, file: str, changes: dict[str, Any] | None
) -> None:
    folder = copied(tiny_model, tmp_path)
    assert read_model_files(folder) is not None
    if changes is None:
        (folder / file).unlink()
    else:
        edit(folder / file, **changes)
    assert read_model_files(folder) is None


@pytest.mark.parametrize(
    "modules",
    [
        ["Transformer"],
        ["Transformer", "Normalize", "Pooling"],
        ["Transformer", "Pooling", "Normalize", "Dense"],
        ["Transformer", "Pooling", "LayerNorm"],
        ["StaticEmbedding"],
    ],
    ids=str,
)
def test_other_modules_are_left_to_sentence_transformers(tiny_model: Path, tmp_path: Path, modules: list[str]) -> None:
    folder = copied(tiny_model, tmp_path)
    listed = [
        {"path": "" if not i else f"1_{name}", "type": f"sentence_transformers.models.{name}"}
        for i, name in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    assert read_model_files(folder) is None


def test_code_beside_a_model_is_left_to_sentence_transformers(tiny_model: Path, tmp_path: Path) -> None:
    folder = copied(tiny_model, tmp_path)
    listed = json.loads((folder / "modules.json").read_text())
    listed[1]["type"] = "custom_pooling.Pooling"
    (folder / "modules.json").write_text(json.dumps(listed))
    assert read_model_files(folder) is None


def resaved(folder: Path, **changes: Any) -> None:
    """The weights once more, with some tensors changed; None leaves one out."""
    from safetensors.numpy import load_file, save_file

    tensors = {**load_file(folder / "model.safetensors"), **changes}
    kept = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 0}, r"stores embeddings\.\S+ as \[.*32\] and its config.json makes it \[.*0\]"),
        ({"hidden_size": 10**9}, r"makes it \[.*1000000000\]"),
        ({"vocab_size": 44}, r"word_embeddings.weight as \[43, 32\] and its config.json makes it \[44, 32\]"),
        ({"intermediate_size": 63}, r"as \[64.*\] and its config.json makes it \[63.*\]"),
        ({"num_attention_heads": 5}, "num_attention_heads = 5, which must divide it"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0"),
        ({"max_position_embeddings": "x"}, "max_position_embeddings is 'x', not a whole number"),
        ({"max_position_embeddings": -1}, "leaves no position for a token"),
        ({"layer_norm_eps": "x"}, "layer_norm_eps is 'x', not a number"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None"),
    ],
    ids=str,
)
def test_a_config_that_disagrees_with_the_weights_is_refused(
    tiny_model: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    folder = copied(tiny_model, tmp_path)
    edit(folder / "config.json", **changes)
    with pytest.raises(ModelError, match=said):
        read_model_files(folder)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("embeddings.word_embeddings.weight", (43 * 32,)),
        ("encoder.layer.0.attention.self.query.weight", (32, 31)),
        ("encoder.layer.1.output.dense.weight", (64, 32)),
        ("encoder.layer.1.output.LayerNorm.bias", (1, 32)),
    ],
)
def test_a_tensor_of_another_shape_is_named(
    tiny_model: Path, tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    folder = copied(tiny_model, tmp_path)
    resaved(folder, **{name: np.zeros(shape, np.float32)})
    with pytest.raises(ModelError, match=re.escape(f"{name} as {list(shape)}")):
        read_model_files(folder)


def test_a_dense_layer_of_another_width_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    folder = copied(tiny_model, tmp_path)
    listed = json.loads((folder / "modules.json").read_text())
    kind = "sentence_transformers.models.Dense"
    (folder / "modules.json").write_text(json.dumps([*listed[:2], {"path": "2_Dense", "type": kind}]))
    (folder / "2_Dense").mkdir()
    edit(folder / "2_Dense" / "config.json", activation_function="torch.nn.modules.linear.Identity")
    save_file({"linear.weight": np.zeros((8, 31), np.float32)}, folder / "2_Dense" / "model.safetensors")
    with pytest.raises(ModelError, match=r"a dense layer of \(8, 31\) behind rows of 32"):
        read_model_files(folder)
