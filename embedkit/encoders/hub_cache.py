"""Models in the local cache of the Hugging Face hub, found without the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any, TypedDict

from embedkit.errors import ModelError
from embedkit.limits import CONFIG, read_at_most, shown
from embedkit.typed import checked, parsed

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
SETTINGS = ("sentence_bert_config.json", "config_sentence_transformers.json", "tokenizer_config.json")
MODULES = "modules.json"
STEP = "fetch the model again, or mend the file"


class Module(TypedDict):
    """A line of modules.json."""

    path: str
    type: str


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
        listed = read_modules(modules)
        settled = [module["path"] for module in listed if module["path"] and not module["type"].endswith("Normalize")]
        if not all(cached_file(repository, revision, f"{path}/config.json") for path in settled):
            return None
    return Path(str(needed[0])).parent


def found_here(repository: str, revision: str | None) -> Path:
    """The folder of the cache that holds any of the model. Raises ModelError where none does."""
    for name in (MODULES, "config.json"):
        if found := cached_file(repository, revision, name):
            return found.parent
    raise ModelError(
        f"{repository} is not on this machine, and an index that names a model fetches nothing; name it to fetch it: --model {repository}."
    )


@contextmanager
def offline() -> Iterator[None]:
    """The hub's client makes no request: local_files_only alone leaves it one for its own statistics. The switch is of the whole
    process."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


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
    except (HFValidationError, UnicodeDecodeError):
        return None  # no name that the hub can have, or a damaged note of a commit: whoever opens it says so


def read_modules(path: Path) -> list[Module]:
    """The modules that a modules.json lists. Raises ModelError where it lists none, or names a folder outside its own."""
    modules: list[Module] = read_settings(path, list[Module])
    for module in modules:
        below(path.parent, module["path"])
    return modules


def read_settings(path: Path, kind: Any) -> Any:
    """What a JSON file of a model says, of this type (see `typed`). Raises ModelError for anything else."""
    try:
        value = parsed(read_at_most(path, CONFIG, ModelError))
    except ValueError as error:
        raise ModelError(f"{path} is no JSON that can be read ({error}); {STEP}.") from None
    return checked(value, kind, path, ModelError, STEP)


def below(folder: Path, name: str) -> Path:
    """The folder of a module. Raises ModelError where it would lie elsewhere."""
    path = PureWindowsPath(name)  # which knows the separators of all systems
    if path.anchor or ".." in path.parts or "\0" in name:
        raise ModelError(f"{folder} names {shown(name)} as the folder of a module; expected one within: {STEP}.")
    return folder / name
