"""A model folder read as data: settings, weights and tokenizer of the families that embedkit runs by itself.

Nothing here needs torch, transformers or sentence-transformers, whose import alone takes seconds. A folder is either read
in full or not at all: whatever is unknown in it (another family, another module, an adapter, a setting that would change
the rows) makes it `None`, and sentence-transformers opens the model instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from embedkit.encoders.foreign import opening
from embedkit.encoders.hub_cache import MODULES, STEP, read_modules
from embedkit.encoders.layers import check_layers
from embedkit.encoders.pooling import POOLINGS
from embedkit.encoders.vocabulary import normalizer_rules
from embedkit.errors import EmbedkitError, ModelError
from embedkit.typed import checked
from embedkit.types import Array

FAMILIES = {  # encoders with absolute positions, normed after each block -> class and algorithm of their own tokenizer
    "bert": ("Bert", "WordPiece"),
    "roberta": ("Roberta", "BPE"),
    "xlm-roberta": ("XLMRoberta", "Unigram"),
    "camembert": ("Camembert", "Unigram"),
}
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
DENSE_ACTIVATIONS = {"Tanh": "tanh", "Identity": "identity"}
HEADS = (
    "pooler.",
    "cls.",
    "lm_head.",
    "classifier.",
    "embeddings.position_ids",
)  # stored weights that no row depends on
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
NO_LIMIT = 1e9  # tokenizers without a limit give 1e30, static embeddings infinity


@dataclass(frozen=True)
class Dense:
    """A layer after pooling: activation(rows @ weight.T + bias)."""

    weight: Array  # (out, in)
    bias: Array | None
    activation: str


@dataclass(frozen=True)
class ModelFiles:
    """All that decides which row a text gets."""

    folder: Path
    config: Mapping[str, Any]  # of the transformer, its number of layers that of those kept
    tensors: Mapping[str, Array]  # names as in BertModel, of the layers kept
    cut: bool  # layers are left out
    tokenizer: Any  # tokenizers.Tokenizer
    max_tokens: int | None  # as the folder says; see also position_limit
    pooling: str
    pool_prompt: bool
    heads: tuple[Dense, ...]
    normalize: bool
    prompts: Mapping[str, str]
    default_prompt_name: str | None
    similarity: str
    is_sentence_transformer: bool

    @property
    def width(self) -> int:
        return int(self.heads[-1].weight.shape[0] if self.heads else self.config["hidden_size"])


class _Config(TypedDict, total=False):
    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    vocab_size: int
    type_vocab_size: int
    layer_norm_eps: float
    pad_token_id: int | None


class _Unknown(Exception):
    """Something in the folder that this module does not know."""


def read_model_files(folder: Path, layers: int | None = None) -> ModelFiles | None:
    """The model in `folder`, or None where another library has to open it. layers: how many to read; None: all.

    Raises UsageError where the model has fewer, ModelError where config and weights disagree and where the tokenizer is damaged.
    """
    try:
        return _read(folder, layers)
    except EmbedkitError:
        raise
    except Exception:  # unknown, or damaged: sentence-transformers says what is wrong with it
        return None


def _read(folder: Path, layers: int | None) -> ModelFiles:
    from tokenizers import Tokenizer

    path = folder / "config.json"
    config = _config(_json(path))
    checked(config, _Config, path, ModelError, STEP)
    if (folder / "adapter_config.json").exists():
        raise _Unknown
    modules = _modules(folder)
    settings = _json(folder / "sentence_bert_config.json", {})
    _check_settings(settings)
    tokenizer_config = _json(folder / "tokenizer_config.json", {})
    if not (folder / "tokenizer.json").exists():
        raise _Unknown
    with opening(str(folder)):  # a panic is no Exception
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    _check_tokenizer(tokenizer, tokenizer_config, settings, config["model_type"])
    stored = _json(folder / "config_sentence_transformers.json", {})
    similarity = stored.get("similarity_fn_name") or "cosine"
    if stored.get("model_type", "SentenceTransformer") != "SentenceTransformer" or similarity not in SIMILARITIES:
        raise _Unknown
    pooling = _json(modules["Pooling"] / "config.json") if modules else {"pooling_mode": "mean"}
    most = int(config["num_hidden_layers"])
    kept = most if layers is None else check_layers(layers, most)
    heads = tuple(_dense(path) for name, path in modules.items() if name.startswith("Dense"))
    _check_sizes(path, config, heads)
    return ModelFiles(
        folder=folder,
        config={**config, "num_hidden_layers": kept},
        tensors=_tensors(folder, config, kept),
        cut=kept < most,
        tokenizer=tokenizer,
        max_tokens=_tokens(settings.get("max_seq_length") or tokenizer_config.get("model_max_length")),
        pooling=_pooling(pooling),
        pool_prompt=bool(pooling.get("include_prompt", True)),
        heads=heads,
        normalize="Normalize" in modules,
        prompts={str(name): str(text) for name, text in (stored.get("prompts") or {}).items()},
        default_prompt_name=stored.get("default_prompt_name"),
        similarity=similarity,
        is_sentence_transformer=bool(modules),
    )


def _json(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    if default is not None and not path.exists():
        return default
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, (dict, list)):
        raise _Unknown
    return content  # type: ignore[return-value]


def _config(config: dict[str, Any]) -> dict[str, Any]:
    plain = (
        config["model_type"] in FAMILIES
        and config.get("hidden_act", "gelu") in ACTIVATIONS
        and config.get("position_embedding_type", "absolute") == "absolute"
        and not config.get("is_decoder")
        and not config.get("add_cross_attention")
        and "auto_map" not in config  # code of its own
        and "quantization_config" not in config
    )
    if not plain:
        raise _Unknown
    return config


def _modules(folder: Path) -> dict[str, Path]:
    """Module name -> its folder: Transformer, Pooling, then Dense layers and a norm at the very end; none for a plain model."""
    if not (folder / MODULES).exists():
        return {}
    listed = read_modules(folder / MODULES)
    names = [entry["type"].rpartition(".")[2] for entry in listed]
    ours = all(entry["type"].startswith("sentence_transformers.") for entry in listed)
    tail = names[2:-1] if names[-1] == "Normalize" else names[2:]
    if not ours or names[:2] != ["Transformer", "Pooling"] or set(tail) - {"Dense"} or listed[0]["path"]:
        raise _Unknown
    keys = [f"{name}{i}" if name == "Dense" else name for i, name in enumerate(names)]
    return {key: folder / entry["path"] for key, entry in zip(keys, listed, strict=True)}


def _check_settings(settings: Mapping[str, Any]) -> None:
    known = {"max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name"}
    text_only = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    plain = (
        not set(settings) - known
        and settings.get("transformer_task", "feature-extraction") == "feature-extraction"
        and settings.get("modality_config", text_only) == text_only
        and settings.get("module_output_name", "token_embeddings") == "token_embeddings"
    )
    if not plain:
        raise _Unknown


def _check_tokenizer(tokenizer: Any, config: Mapping[str, Any], settings: Mapping[str, Any], family: str) -> None:
    """transformers rebuilds a tokenizer by its family, and lets the settings beside it override its own rules; here they
    must agree."""
    owner, algorithm = FAMILIES[family]
    named = config.get("tokenizer_class", owner).removesuffix("Fast").removesuffix("Tokenizer")
    if named != owner or type(tokenizer.model).__name__ != algorithm:
        raise _Unknown
    normalizer = normalizer_rules(tokenizer)
    if settings.get("do_lower_case") and not normalizer.get("lowercase"):
        raise _Unknown
    if normalizer.get("type") == "BertNormalizer":
        for name, own in (("do_lower_case", "lowercase"), ("strip_accents", "strip_accents")):
            if name in config and config[name] != normalizer[own]:
                raise _Unknown
        if config.get("tokenize_chinese_chars", True) != normalizer["handle_chinese_chars"]:
            raise _Unknown
    if config.get("truncation_side", "right") != "right":
        raise _Unknown


def _tokens(limit: Any) -> int | None:
    return int(limit) if limit and limit < NO_LIMIT else None


def position_limit(config: Mapping[str, Any]) -> int:
    """How many tokens have a position."""
    return int(config["max_position_embeddings"]) - position_offset(config)


def position_offset(config: Mapping[str, Any]) -> int:
    """The position of the first token: RoBERTa counts from behind the padding id, so 514 positions hold 512 tokens."""
    return 0 if config["model_type"] == "bert" else int(config.get("pad_token_id", 1)) + 1


def _pooling(settings: Mapping[str, Any]) -> str:
    """sentence-transformers' name for it; older folders have a boolean a pooling."""
    mode = settings.get("pooling_mode")
    if mode is None:
        old = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max"}
        marks = [key.removeprefix("pooling_mode_") for key, on in settings.items() if key.startswith("pooling_") and on]
        mode = old.get(marks[0], marks[0]) if len(marks) == 1 else None
    if mode not in POOLINGS:
        raise _Unknown
    return str(mode)


def _dense(folder: Path) -> Dense:
    from safetensors.numpy import load_file

    settings = _json(folder / "config.json")
    weights = load_file(folder / "model.safetensors")
    places = {settings.get(key, "sentence_embedding") for key in ("module_input_name", "module_output_name")}
    activation = DENSE_ACTIVATIONS.get(settings["activation_function"].rpartition(".")[2])
    if places != {"sentence_embedding"} or activation is None or set(weights) - {"linear.weight", "linear.bias"}:
        raise _Unknown
    return Dense(weights["linear.weight"], weights.get("linear.bias"), activation)


def _check_sizes(path: Path, config: Mapping[str, Any], heads: Sequence[Dense]) -> None:
    """Raises ModelError where sizes cannot go together."""
    width, parts = config["hidden_size"], config["num_attention_heads"]
    if parts < 1 or width % parts:
        raise ModelError(
            f"{path} says hidden_size = {width} and num_attention_heads = {parts}, which must divide it; {STEP}."
        )
    if position_limit(config) < 1:
        raise ModelError(f"{path} leaves no position for a token (max_position_embeddings, pad_token_id); {STEP}.")
    for head in heads:
        if head.weight.ndim != 2 or head.weight.shape[1] != width:
            raise ModelError(f"{path.parent} has a dense layer of {head.weight.shape} behind rows of {width}; {STEP}.")
        width = head.weight.shape[0]


def _tensors(folder: Path, config: Mapping[str, Any], kept: int) -> dict[str, Array]:
    """The stored weights of the encoder's first `kept` layers, whatever head they were saved with."""
    from safetensors import safe_open

    shards = sorted(folder.glob("model*.safetensors"))
    if len(shards) > 1 and not (folder / "model.safetensors.index.json").exists():
        raise _Unknown
    with ExitStack() as opened:
        files = [opened.enter_context(safe_open(shard, framework="numpy")) for shard in shards]
        stored = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        prefixes = ("bert.", "roberta.")
        prefix = next((p for p in prefixes if any(name.startswith(p) for name in stored)), "")
        places = {_renamed(name.removeprefix(prefix)): name for name in stored}
        places = {name: place for name, place in places.items() if not name.startswith(HEADS)}
        if set(places) != set(_tensor_names(config["num_hidden_layers"])):
            raise _Unknown
        for name, place in places.items():
            shape, declared = stored[place].get_slice(place).get_shape(), _declared(name, config)
            if len(shape) != len(declared) or any(
                size not in (None, own) for size, own in zip(declared, shape, strict=True)
            ):
                raise ModelError(f"{folder} stores {place} as {shape} and its config.json makes it {declared}; {STEP}.")
        return {name: stored[places[name]].get_tensor(places[name]) for name in _tensor_names(kept)}


def _tensor_names(layers: int) -> Iterator[str]:
    for table in ("word", "position", "token_type"):
        yield f"embeddings.{table}_embeddings.weight"
    blocks = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
    blocks += ["attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"]
    for name in ("embeddings.LayerNorm", *(f"encoder.layer.{i}.{block}" for i in range(layers) for block in blocks)):
        yield f"{name}.weight"
        yield f"{name}.bias"


def _declared(name: str, config: Mapping[str, Any]) -> list[int | None]:
    """The shape that a tensor has by the config; None for a size that it leaves to the family."""
    width, inner = config["hidden_size"], config.get("intermediate_size")
    block, part, kind = name.split(".")[-3:]
    for table, size in (
        ("word", "vocab_size"),
        ("position", "max_position_embeddings"),
        ("token_type", "type_vocab_size"),
    ):
        if part == f"{table}_embeddings":
            return [config.get(size), width]
    into = inner if block == "intermediate" else width
    out_of = inner if block == "output" and ".attention." not in name else width
    return [into, out_of] if kind == "weight" and part != "LayerNorm" else [into]


def _renamed(name: str) -> str:
    """LayerNorm's weights go by their first names in old files."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
