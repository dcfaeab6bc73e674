"""The name of a vector space: a hash of everything that decides which row an input gets.

It is taken from what the model computes with, not from its files' bytes, so another path, a sharded copy or the offline
package of the same model agree; and from the weights as they are stored, before any cast to a compute dtype. A model of a
family that embedkit runs by itself is described from its files whichever backend runs it, any other from the loaded
modules. Cost: one SHA-256 pass over the weights, on all cores (about 0.1 s for 90 MB).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from embedkit.encoders.model_files import ModelFiles
from embedkit.encoders.routes import routes

# of a Hugging Face config: what says where it came from or how it is run, not what it computes
COSMETIC = {
    "_name_or_path", "architectures", "attn_implementation", "dtype", "gradient_checkpointing", "id2label",
    "initializer_range", "label2id", "name_or_path", "output_attentions", "output_hidden_states", "problem_type",
    "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip
# of the config of a family that embedkit runs by itself: all that its rows depend on
COMPUTING = (
    "model_type",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_size",
    "hidden_act",
    "layer_norm_eps",
    "pad_token_id",
)


def fingerprint(space: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of a JSON-serialisable description of the space."""
    return hashlib.sha256(json.dumps(space, sort_keys=True, default=str).encode()).hexdigest()


def describe_modules(model: Any) -> list[dict[str, Any]]:
    """What each module of a SentenceTransformer computes: class, settings, tensors, and for the transformer its config
    and tokenizer."""
    return [_describe(module) for module in model.children()]


def _describe(module: Any) -> dict[str, Any]:
    if within := routes(module):
        return {
            "class": type(module).__name__,
            "settings": [module.default_route, sorted(map(str, module.route_mappings.items()))],
            "routes": {name: [_describe(step) for step in steps] for name, steps in within.items()},
        }
    inner = getattr(module, "auto_model", None)  # the Hugging Face model inside a Transformer module
    described: dict[str, Any] = {
        "class": type(module).__name__,
        "tensors": tensors_digest((inner or module).state_dict()),
    }
    if inner is not None:
        config = inner.config.to_diff_dict()
        described["config"] = {key: value for key, value in config.items() if not _cosmetic(key)}
    elif hasattr(module, "get_config_dict"):
        described["settings"] = module.get_config_dict()
    if (tokenizer := getattr(module, "tokenizer", None)) is not None:
        described["tokenizer"] = _describe_tokenizer(tokenizer)
    if (processor := getattr(module, "processor", None)) is not None and processor is not tokenizer:
        described["processor"] = _describe_processor(processor)
        described["reads"] = {name: getattr(module, name) for name in ("modality_config", "processing_kwargs")}
    return described


def _describe_processor(processor: Any) -> dict[str, Any]:
    """What is done to images (and sounds) before the model sees them, and the template in which texts and images stand."""
    return {"settings": _settings(processor.to_dict()), "chat_template": getattr(processor, "chat_template", None)}


def _settings(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: _settings(item) for key, item in value.items() if not _cosmetic(key)}


def describe_files(files: ModelFiles) -> dict[str, Any]:
    """What a model that was read as files computes; the tokenizer's padding and truncation are left out, as above."""
    heads = [
        (head.activation, tensors_digest({"weight": head.weight} | ({} if head.bias is None else {"bias": head.bias})))
        for head in files.heads
    ]
    return {
        "config": {key: files.config.get(key) for key in COMPUTING},
        "tensors": tensors_digest(files.tensors),
        "tokenizer": _describe_tokenizer(files.tokenizer),
        "pooling": [files.pooling, files.pool_prompt],
        "heads": heads,
        "normalize": files.normalize,
    }


def _cosmetic(key: str) -> bool:
    return key in COSMETIC or "dropout" in key  # nothing is dropped where nothing is trained


def _describe_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """The rules of a tokenizer; padding and truncation are left out, for they change from call to call."""
    backend = getattr(tokenizer, "backend_tokenizer", None) or tokenizer
    if not hasattr(backend, "to_str"):
        return {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    rules: dict[str, Any] = json.loads(backend.to_str())
    return {key: value for key, value in rules.items() if key not in ("padding", "truncation")}


def tensors_digest(tensors: Mapping[str, Any]) -> str:
    """SHA-256 over name, dtype, shape and bytes of every tensor, torch's or numpy's, in the order of their names."""
    names = sorted(tensors)
    with ThreadPoolExecutor() as pool:  # hashlib lets go of the interpreter lock
        digests = list(pool.map(lambda name: hashlib.sha256(_bytes(tensors[name])).hexdigest(), names))
    whole = hashlib.sha256()
    for name, digest in zip(names, digests, strict=True):
        tensor = tensors[name]
        kind = str(tensor.dtype).removeprefix("torch.")
        whole.update(f"{name} {kind} {list(tensor.shape)} {digest}\n".encode())
    return whole.hexdigest()


def _bytes(tensor: Any) -> memoryview:
    if isinstance(tensor, np.ndarray):
        return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data
    import torch

    plain = tensor.detach().cpu().contiguous().reshape(-1)
    content: memoryview = plain.view(torch.uint8).numpy().data
    return content
