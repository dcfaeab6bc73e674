"""Small models with random weights: five healthy families, and eight with one fault each. `tests/doctor_table.py` makes a table of them."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import TINY_VOCABULARY

PIECES = [*(f"##{letter}" for letter in string.ascii_lowercase), *string.digits, *(f"##{n}" for n in string.digits)]
Build = Callable[[Path], Any]  # an empty folder -> a model: its folder, or one in memory
VOCABULARY = [*TINY_VOCABULARY, *PIECES, *".,%?"]

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
POSITIONS = 66
MAX_TOKENS = 48
SPECIALS = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
LETTERS = ["<unk>", "<s>", "¶", "<pad>", "▁", *string.ascii_letters, *string.digits, *".,:%"]


def wordpiece(folder: Path, vocabulary: list[str] = VOCABULARY) -> int:
    from transformers import BertTokenizerFast

    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    return len(vocabulary)


def letters(folder: Path, **settings: Any) -> int:
    """A decoder's tokenizer: one token a letter, `<s>` in front, `¶` behind."""
    from transformers import LlamaTokenizer

    vocabulary = {token: i for i, token in enumerate(LETTERS)}
    settings = {"add_eos_token": True, "eos_token": "¶", "pad_token": "<pad>", "model_max_length": 64, **settings}
    LlamaTokenizer(vocab=vocabulary, merges=[], **settings).save_pretrained(folder)
    return len(LETTERS)


def save(folder: Path, family: str, size: int, **config: Any) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = dict(SIZES, max_position_embeddings=POSITIONS)
    if family == "T5":
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    kind = {"T5": "T5EncoderModel"}.get(family, f"{family}Model")
    made = getattr(transformers, f"{family}Config")(**{"vocab_size": size, **sizes, **SPECIALS, **config})
    getattr(transformers, kind)(made).save_pretrained(folder)


def wrap(folder: Path, pooling: str = "mean", tail: list[Any] | None = None, **settings: Any) -> Path:
    """The transformer in `folder` as a saved SentenceTransformer; tail: the modules after pooling."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    transformer = Transformer(str(folder), max_seq_length=MAX_TOKENS)
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), pooling), *(tail or [Normalize()])]
    model = SentenceTransformer(modules=modules, device="cpu", **settings)
    whole = folder / "whole"
    model.save_pretrained(str(whole), create_model_card=False)
    return whole


def encoder(folder: Path, family: str = "Bert", pooling: str = "mean", **settings: Any) -> Path:
    save(folder, family, wordpiece(folder))
    return wrap(folder, pooling, **settings)


def decoder(folder: Path, family: str = "Llama", tokenizer: dict[str, Any] | None = None, **config: Any) -> Path:
    size = letters(folder, **(tokenizer or {}))
    ids = {"pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2}
    save(folder, family, size, **{"num_key_value_heads": 2, **ids, **config})
    return wrap(folder, "lasttoken")


def change(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


HEALTHY: dict[str, Build] = {
    "BERT": encoder,
    "BERT, CLS": lambda folder: encoder(folder, pooling="cls"),
    "ModernBERT": lambda folder: encoder(folder, "ModernBert"),
    "MPNet": lambda folder: encoder(folder, "MPNet"),
    "T5 encoder": lambda folder: encoder(folder, "T5"),
    "Llama": decoder,
    "Qwen2, right padding": lambda folder: decoder(folder, "Qwen2", {"padding_side": "right"}),
    "Qwen3, bidirectional": lambda folder: decoder(folder, "Qwen3", is_causal=False, head_dim=8),
    "prompts": lambda folder: encoder(folder, prompts={"query": "query : ", "document": "", "colour": "red "}),
}


def runs_causal(folder: Path) -> Path:
    """A flag that this family does not read."""
    return decoder(folder, use_bidirectional_attention=True)


def causal_when_padded(folder: Path) -> Any:
    """The flag on the layers and not in the config, as older adapters of decoders set it."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(decoder(folder)), device="cpu")
    for layer in model[0].auto_model.layers:
        layer.self_attn.is_causal = False
    return model


def cls_with_left_padding(folder: Path) -> Path:
    whole = encoder(folder, pooling="cls")
    change(whole / "tokenizer_config.json", padding_side="left")
    return whole


def last_token_is_a_pad(folder: Path) -> Path:
    whole = decoder(folder, tokenizer={"padding_side": "right"})
    change(whole / "tokenizer_config.json", model_input_names=["input_ids"])
    return whole


def prompt_of_another_name(folder: Path) -> Path:
    return encoder(folder, prompts={"search_query": "query : "})


def eos_is_cut(folder: Path) -> Path:
    """A normalizer writes EOS behind the text, before the text is cut; this family's rules are read as they are stored."""
    whole = decoder(folder, "Mistral", tokenizer={"add_eos_token": False})
    rules = json.loads((whole / "tokenizer.json").read_text())
    rules["normalizer"] = {"type": "Replace", "pattern": {"Regex": "\\z"}, "content": "¶"}
    (whole / "tokenizer.json").write_text(json.dumps(rules))
    return whole


def norm_before_the_last_layer(folder: Path) -> Path:
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize

    return encoder(folder, tail=[Normalize(), Dense(32, 16)])


def overflows_at_full_length(folder: Path) -> Path:
    """The last position's embedding is beyond float16."""
    from safetensors.torch import load_file, save_file

    whole = encoder(folder)
    weights = load_file(whole / "model.safetensors")
    name = next(name for name in weights if name.endswith("position_embeddings.weight"))
    weights[name][MAX_TOKENS - 1, 5] = 70_000.0
    save_file(weights, whole / "model.safetensors", metadata={"format": "pt"})
    return whole


FAULTS: dict[str, tuple[Build, str]] = {
    "a bidirectional config that runs causal": (runs_causal, "attention-direction"),
    "sdpa causal only when padded": (causal_when_padded, "attention-padding"),
    "CLS pooling with left padding": (cls_with_left_padding, "cls-left-padding"),
    "last-token pooling of a pad": (last_token_is_a_pad, "pooled-padding"),
    "a prompt name never applied": (prompt_of_another_name, "prompt-never-applied"),
    "EOS missing after truncation": (eos_is_cut, "eos-cut"),
    "rows not unit though declared": (norm_before_the_last_layer, "norm"),
    "float16 overflow at full length": (overflows_at_full_length, "overflow"),
}
