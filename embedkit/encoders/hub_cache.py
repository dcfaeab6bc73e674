"""Models in the local cache of the Hugging Face hub, found without the network."""

from __future__ import annotations

import json
from pathlib import Path

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
SETTINGS = ("sentence_bert_config.json", "config_sentence_transformers.json", "tokenizer_config.json")
MODULES = "modules.json"


def cached_folder(repository: str, revision: str | None) -> Path | None:
    """Where the cache holds a whole model that needs no fetching; None where any file of it might be missing.

    A file counts as absent only where the hub said so: another program may have fetched some of the files, and a model
    without its `modules.json` would be taken for a plain encoder.
    """
    from huggingface_hub import try_to_load_from_cache

    def place(name: str) -> Path | None:
        found = try_to_load_from_cache(repository, name, revision=revision)
        return Path(found) if isinstance(found, str) else None

    def known(name: str) -> bool:
        return try_to_load_from_cache(repository, name, revision=revision) is not None

    needed = [place("config.json"), place("tokenizer.json"), place(WEIGHTS[0]) or place(WEIGHTS[1])]
    if not all(needed) or not all(known(name) for name in (*SETTINGS, MODULES)):
        return None
    if modules := place(MODULES):
        listed = json.loads(modules.read_text(encoding="utf-8"))
        settled = [module["path"] for module in listed if module["path"] and not module["type"].endswith("Normalize")]
        if not all(place(f"{path}/config.json") for path in settled):
            return None
    return Path(str(needed[0])).parent
