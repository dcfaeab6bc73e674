"""A model folder looked at before any library opens it: its files may come from strangers.

Files are regular and within their limits; settings have the types that their readers expect and ask for no more parts than a
model can have; and none of them steers the loading: no place for weights, no path outside, no name on the hub, no code. What the
libraries raise on all else is `as_model_error`'s.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

from embedkit.encoders.hub_cache import MODULES, STEP, below, cached_file, read_modules, read_settings
from embedkit.errors import ModelError
from embedkit.limits import LABELS, PARTS, SHOWN, TOKENIZER, open_regular, shown

SETTINGS = re.compile(r"sentence_[\w-]+_config\.json")
VOCABULARY = re.compile(
    r"tokenizer\.json|vocab\.(json|txt)|merges\.txt|.*\.model"
)  # read by tokenizers alone, which bound their depth
READ_AS_THEY_ARE = re.compile(r".*\.safetensors|README\.md|chat_template\.jinja")
PARTS_OF = re.compile(r"(layers?|blocks|groups|experts|heads?|stages|labels|depths?)$")  # what a config has a number of
ATTENTION = (
    "eager",
    "sdpa",
    "flash_attention_2",
    "flash_attention_3",
    "flex_attention",
)  # any other may be a kernel of the hub's
WEIGHT_SIZES = (
    "in_features", "out_features", "word_embedding_dimension", "in_word_embedding_dimension", "hidden_dim", "input_dim",
    "out_channels",
)  # fmt: skip
STEERING = ("tokenizer_name_or_path", "processor_name", "model_name_or_path", "cache_dir", "backend")
ALLOWED: dict[str, set[str]] = {  # which arguments of from_pretrained a folder may set: what it computes, nothing of where and how
    "model": {
        "add_pooling_layer", "attn_implementation", "dtype", "is_causal", "rotary_scaling_factor", "torch_dtype",
        "unpad_inputs", "use_memory_efficient_attention", "trust_remote_code",  # which sentence-transformers leaves out
    },
    "processor": {
        "add_bos_token", "add_eos_token", "add_prefix_space", "chat_template", "clean_up_tokenization_spaces", "do_lower_case",
        "legacy", "max_pixels", "min_pixels", "model_max_length", "padding_side", "strip_accents", "tokenize_chinese_chars",
        "truncation_side", "trust_remote_code", "use_fast",
    },
    "config": {
        "attn_implementation", "attention_probs_dropout_prob", "hidden_dropout_prob", "is_causal", "max_position_embeddings",
        "num_labels", "rope_scaling", "rope_theta", "rotary_scaling_factor", "sliding_window", "trust_remote_code", "unpad_inputs",
        "use_bidirectional_attention", "use_cache", "use_memory_efficient_attention",
    },
}  # fmt: skip
ARGUMENTS = {
    "model_kwargs": "model", "model_args": "model",
    "processor_kwargs": "processor", "tokenizer_kwargs": "processor", "tokenizer_args": "processor",
    "config_kwargs": "config", "config_args": "config",
}  # fmt: skip


class _Config(TypedDict, total=False):
    model_type: str
    auto_map: dict[str, Any] | None
    transformers_weights: str | None
    attn_implementation: str | dict[str, str] | None


class _Settings(TypedDict, total=False):
    max_seq_length: int | None
    do_lower_case: bool | None
    model_kwargs: dict[str, Any]
    model_args: dict[str, Any]
    processor_kwargs: dict[str, Any]
    tokenizer_kwargs: dict[str, Any]
    tokenizer_args: dict[str, Any]
    config_kwargs: dict[str, Any]
    config_args: dict[str, Any]


class _Tokenizer(TypedDict, total=False):
    model_max_length: float | None
    tokenizer_class: str | None
    padding_side: str | None
    truncation_side: str | None


class _Stored(TypedDict, total=False):
    model_type: str
    prompts: dict[str, str | None] | None
    default_prompt_name: str | None
    similarity_fn_name: str | None


class _Adapter(TypedDict, total=False):
    base_model_name_or_path: str | None
    peft_type: str | None


class _Shards(TypedDict):
    weight_map: dict[str, str]


OTHERS = (
    "router_config.json", "preprocessor_config.json", "processor_config.json", "generation_config.json",
    "special_tokens_map.json", "added_tokens.json", "elastic.json",
)  # fmt: skip
TYPES: dict[str, Any] = {
    "config.json": _Config,
    "tokenizer_config.json": _Tokenizer,
    "config_sentence_transformers.json": _Stored,
    "adapter_config.json": _Adapter,
    "model.safetensors.index.json": _Shards,
    **dict.fromkeys(OTHERS, dict[str, Any]),
}


def check_folder(folder: Path) -> None:
    """Raises ModelError at the first file that cannot be part of a model: what it holds and what was expected."""
    for base in check_files(folder):
        if Path(base).is_dir():
            check_files(Path(base))
        elif cached_file(base, None, "config.json") is None:
            raise ModelError(
                f"{folder} is an adapter of the model {shown(base)}, which is not on this machine, and a folder fetches nothing: "
                f"fetch the base first (`hf download`), or write its folder into adapter_config.json."
            )


def check_fetched(repository: str, revision: str | None) -> None:
    """The same of a model of the hub, before its weights are fetched; an adapter's base may be fetched as well."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(repository, revision=revision, allow_patterns="*.json")
    except Exception:  # whoever opens the model says why it cannot be fetched
        return
    check_files(Path(folder))


def check_files(folder: Path) -> list[str]:
    """What `check_folder` does, but for the base models that adapters name, which it returns."""
    bases = []
    for path in (path for parent in _folders(folder) for path in sorted(parent.glob("*")) if not path.is_dir()):
        if SETTINGS.fullmatch(path.name):
            _check_settings(path, read_settings(path, _Settings))
        elif path.name in TYPES:
            content = read_settings(path, TYPES[path.name])
            _check_content(path, content)
            bases += [content["base_model_name_or_path"]] if content.get("base_model_name_or_path") else []
        elif VOCABULARY.fullmatch(path.name) or READ_AS_THEY_ARE.fullmatch(path.name):
            _check_file(path)
    return bases


def _folders(folder: Path) -> list[Path]:
    """The model's own folder and those of its modules; a Router's lie below its own."""
    folders = [folder]
    if (folder / MODULES).exists():
        folders += [folder / module["path"] for module in read_modules(folder / MODULES)]
    for parent in folders:
        for settings in (parent / "router_config.json", parent / "config.json"):
            routed = read_settings(settings, dict[str, Any]).get("types") if settings.exists() else None
            for name in routed if isinstance(routed, Mapping) else ():
                if (module := below(parent, name)) not in folders:
                    folders.append(module)
    return list(dict.fromkeys(folders))


def _check_file(path: Path) -> None:
    with open_regular(path, ModelError) as stream:
        size = stream.seek(0, 2)
    if VOCABULARY.fullmatch(path.name) and size > TOKENIZER:
        raise ModelError(f"{path} has {size:,} bytes; at most {TOKENIZER:,} are read of a tokenizer.")


def _check_content(path: Path, content: Mapping[str, Any]) -> None:
    if path.name == "config.json":
        _check_config(path, content)
    elif path.name == "tokenizer_config.json":
        _check_limit(path, "model_max_length", content)
    elif path.name == "model.safetensors.index.json":
        for name in content["weight_map"].values():
            if PurePosixPath(name).name != name:
                raise ModelError(f"{path} names the weights {shown(name)}; expected a file beside it: {STEP}.")


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    for name, number in _numbers(config):
        most = LABELS if name.endswith("labels") else PARTS
        if number > most and PARTS_OF.search(name):
            raise ModelError(f"{path} says {name} = {number:,}; at most {most:,} are taken: {STEP}.")
    _check_attention(path, config)
    if (weights := config.get("transformers_weights")) and not weights.endswith(
        (".safetensors", ".safetensors.index.json")
    ):
        raise ModelError(f"{path} names the weights {shown(weights)}; expected safetensors: {STEP}.")
    sizes = sorted(value for name, value in config.items() if name in WEIGHT_SIZES and type(value) is int)[-2:]
    beside = path.with_name("model.safetensors")
    if (
        len(sizes) == 2
        and "model_type" not in config
        and beside.exists()
        and math.prod(sizes) > (held := _elements(beside))
    ):
        raise ModelError(
            f"{path} describes weights of {sizes[0]:,} x {sizes[1]:,} and {beside.name} holds {held:,}: {STEP}."
        )


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """All whole numbers within, each with the name under which it stands."""
    if type(value) is int:
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, key)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for inner in value:
            yield from _numbers(inner, name)


def _elements(weights: Path) -> int:
    from safetensors import SafetensorError, safe_open

    _check_file(weights)
    try:
        with safe_open(weights, framework="numpy") as stored:
            return sum(math.prod(stored.get_slice(name).get_shape()) for name in stored.keys())  # noqa: SIM118
    except SafetensorError as error:
        raise ModelError(f"{weights} is not whole ({error}); {STEP}.") from None


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    _check_limit(path, "max_seq_length", settings)
    for name in STEERING:
        if settings.get(name) is not None:
            raise ModelError(f"{path} sets {name} = {shown(settings[name])}, which a folder may not: {STEP}.")
    for where, kind in ARGUMENTS.items():
        arguments = settings.get(where, {})
        for refused in (name for name in arguments if name not in ALLOWED[kind]):
            raise ModelError(
                f"{path} sets {where}.{refused:.{SHOWN}} = {shown(arguments[refused])}, which a folder may not: take it out. It may "
                f"set {', '.join(sorted(ALLOWED[kind]))}."
            )
        _check_limit(path, "model_max_length", arguments)
        _check_attention(path, arguments)


def _check_limit(path: Path, name: str, settings: Mapping[str, Any]) -> None:
    limit = settings.get(name)
    if limit is not None and not (type(limit) in (int, float) and limit >= 1):
        raise ModelError(f"{path} says {name} = {shown(limit)}; expected at least 1 token: {STEP}.")


def _check_attention(path: Path, settings: Mapping[str, Any]) -> None:
    for name in ("attn_implementation", "_attn_implementation"):
        named = settings.get(name)
        for one in named.values() if isinstance(named, Mapping) else [named]:
            if one is not None and one not in ATTENTION:
                raise ModelError(f"{path} says {name} = {shown(one)}; expected {', '.join(ATTENTION)}.")
