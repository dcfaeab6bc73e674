"""The first layers of a transformer alone, for models trained so that each of their layers gives usable rows.

What follows the layers stays: the family's own last norm, pooling, dense heads (AdaptiveLayerLoss of sentence-transformers; Layer
by Layer, Skean et al. 2025, takes intermediate layers in the same way). Half the layers are about half the time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

from embedkit.errors import IntegrityError, UsageError
from embedkit.storage import read_json

GRID = "elastic.json"  # in a model folder
TRAINED = re.compile(r"^- loss:(AdaptiveLayerLoss|Matryoshka2dLoss)$", re.MULTILINE)  # tags of a model's card


def check_layers(layers: int, most: int) -> int:
    """The number of layers. Raises UsageError where the model does not have so many."""
    if not 1 <= layers <= most:
        raise UsageError(f"layers={layers} came; the model has {most} layers: choose 1 to {most}.")
    return layers


def keep_layers(model: Any, layers: int, name: str) -> bool:
    """Leaves the first `layers` layers of a SentenceTransformer's transformer, in its modules and in its configs; False where
    these are all.

    The layers are the one ModuleList that is as long as the config says. Raises UsageError where there is none or several,
    where it is shorter than asked for, and where the states of all layers are read.
    """
    transformer: Any = getattr(model[0], "auto_model", None)
    most = getattr(getattr(transformer, "config", None), "num_hidden_layers", None)
    places = list(_lists(transformer, most)) if isinstance(most, int) else []
    if most is None or len(places) != 1:
        raise UsageError(f"layers={layers} came; {name} has no list of transformer layers to cut: leave layers out.")
    if check_layers(layers, most) == most:
        return False
    if _reads_all_layers(model):
        raise UsageError(f"layers={layers} came; {name} reads the states of all its {most} layers: leave layers out.")
    parent, _, attribute = places[0].rpartition(".")
    owner = transformer.get_submodule(parent)
    setattr(owner, attribute, getattr(owner, attribute)[:layers])
    configs = {id(module.config): module.config for module in transformer.modules() if hasattr(module, "config")}
    for config in configs.values():
        if getattr(config, "num_hidden_layers", None) == most:
            _cut_config(config, layers, most)
    return True


def check_it_runs(model: Any, layers: int, name: str) -> None:
    """Raises UsageError where a cut model cannot be run: Gemma 3n, say, has tables as wide as all its layers together."""
    import torch

    try:
        with torch.inference_mode():
            features = model.preprocess(["a"])
            model({key: x.to(model.device) if isinstance(x, torch.Tensor) else x for key, x in features.items()})
    except Exception as error:  # every family fails in its own way
        reason = str(error).split("\n")[0].rstrip(".")
        raise UsageError(
            f"layers={layers} came; {name} does not run without its other layers ({reason}): leave layers out."
        ) from error


def _lists(transformer: Any, length: int) -> Iterator[str]:
    """Where the ModuleLists of this length are that are inside no other one: experts of a layer may be as many as layers."""
    from torch.nn import ModuleList

    found: list[str] = []
    for place, module in transformer.named_modules():  # outer modules come first
        if isinstance(module, ModuleList) and not any(place.startswith(f"{outer}.") for outer in found):
            found.append(place)
            if len(module) == length:
                yield place


def _reads_all_layers(model: Any) -> bool:
    weighted = any(type(module).__name__ == "WeightedLayerPooling" for module in model.children())
    outputs = str(getattr(model[0], "modality_config", ""))  # which of the transformer's outputs are taken
    return weighted or bool(getattr(model[0].config, "output_hidden_states", False)) or "hidden_states" in outputs


def _cut_config(config: Any, layers: int, most: int) -> None:
    config.num_hidden_layers = layers
    for key, value in list(vars(config).items()):
        if "layer" in key and isinstance(value, (list, tuple)) and len(value) == most:  # layer_types and the like
            setattr(config, key, value[:layers])


class Grid(TypedDict):
    """What a model was trained for."""

    layers: list[int]
    dims: list[int]
    early_dims: list[int]


def trained_grid(folder: Path | None) -> dict[str, list[int]] | None:
    """{"layers": [...], "dims": [...], "early_dims": [...]} for which `embedkit train` trained the model; None where it did not, or for
    none. early_dims: of the layers before the last. Raises IntegrityError where the file says something else."""
    if folder is None or not (folder / GRID).is_file():
        return None
    grid = read_json(folder / GRID, Grid)
    if not all(grid[name] for name in Grid.__required_keys__):
        raise IntegrityError(f"{folder / GRID} names no layers or dims; restore it or train the model again.")
    return {name: grid[name] for name in Grid.__required_keys__}


def off_the_grid(grid: dict[str, list[int]], layers: int | None, dim: int | None) -> str | None:
    """What was asked for that the model was not trained for, as the start of a sentence; None where it was."""
    for name, asked in (("layers", layers), ("dim", dim)):
        known = grid["dims" if name == "dim" else name]
        if asked is not None and asked not in known:
            return f"{name}={asked} came; the model was trained for {', '.join(map(str, known))}"
    whole, width = max(grid["layers"]), max(grid["dims"])
    if (layers or whole) < whole and (dim or width) not in grid["early_dims"]:
        early = ", ".join(map(str, grid["early_dims"]))
        return f"layers={layers} with {dim or width} dimensions came; the model's first layers were trained for {early}"
    return None


def trained_for_layers(folder: Path | None) -> bool:
    """Whether the card of the model says that it was trained to be cut."""
    card = folder / "README.md" if folder else None
    if card is None or not card.is_file():
        return False
    return TRAINED.search(card.read_text(encoding="utf-8", errors="replace")) is not None
