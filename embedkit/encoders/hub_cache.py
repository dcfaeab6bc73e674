"""Models in the local cache of the Hugging Face hub, found without the network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
SETTINGS = ("sentence_bert_config.json", "config_sentence_transformers.json", "tokenizer_config.json")
MODULES = "modules.json"


def cached_folder(repository: str, revision: str | None) -> Path | None:
    """Where the cache holds a whole model that needs no fetching; None where any file of it might be missing.

    A file counts as absent only where the hub said so: another program may have fetched some of the files, and a model
    without its `modules.json` would be taken for a plain encoder.
    """
    needed = [
        cached_file(repository, revision, "config.json"),
        cached_file(repository, revision, "tokenizer.json"),
        next(filter(None, (cached_file(repository, revision, name) for name in WEIGHTS)), None),
    ]
    if not all(needed) or any(_found(repository, revision, name) is None for name in (*SETTINGS, MODULES)):
        return None
    if modules := cached_file(repository, revision, MODULES):
        listed = json.loads(modules.read_text(encoding="utf-8"))
        settled = [module["path"] for module in listed if module["path"] and not module["type"].endswith("Normalize")]
        if not all(cached_file(repository, revision, f"{path}/config.json") for path in settled):
            return None
    return Path(str(needed[0])).parent


def cached_file(repository: str, revision: str | None, name: str) -> Path | None:
    """Where the cache keeps a file; None where it does not."""
    found = _found(repository, revision, name)
    return Path(found) if isinstance(found, str) else None


def _found(repository: str, revision: str | None, name: str) -> Any:
    """A path, a mark that the hub has no such file, or None where nobody asked it."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return try_to_load_from_cache(repository, name, revision=revision)
    except HFValidationError:
        return None  # no name that the hub can have: whoever opens it says so
