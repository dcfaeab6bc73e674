"""The ways that inputs take through a SentenceTransformer: one, or several where a Router sends queries and documents through
modules of their own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from embedkit.encoders.prompts import NAMES
from embedkit.errors import ModelError


def ways(modules: Iterable[Any]) -> list[list[Any]]:
    """The modules of each way, in order. modules: of a SentenceTransformer, or of a route."""
    found: list[list[Any]] = [[]]
    for module in modules:
        steps = [way for route in routes(module).values() for way in ways(route)] or [[module]]
        found = [[*way, *step] for way in found for step in steps]
    return found


def routes(module: Any) -> dict[str, Any]:
    """Name -> modules of each route; none where the module is no Router."""
    return dict(getattr(module, "sub_modules", {}))


def is_routed(model: Any) -> bool:
    """model: a SentenceTransformer."""
    return any(routes(module) for module in model.children())


def readers(model: Any) -> list[Any]:
    """The modules that read inputs, each once."""
    return list({id(way[0]): way[0] for way in ways(model.children())}.values())


def normalizes(model: Any) -> bool:
    """Whether there is a norm on every way."""
    return all(any(type(module).__name__ == "Normalize" for module in way) for way in ways(model.children()))


def routed_width(model: Any, name: str) -> int:
    """The width of rows, found by trying. Raises ModelError where queries or documents have no route, or other widths."""
    import torch

    widths = {}
    for kind in NAMES:
        try:
            with torch.inference_mode():
                features = model.preprocess(["a"], task=kind)
                moved = {key: x.to(model.device) if isinstance(x, torch.Tensor) else x for key, x in features.items()}
                widths[kind] = int(model(moved, task=kind)["sentence_embedding"].shape[1])
        except Exception as error:  # every module fails in its own way
            reason = str(error).split("\n")[0].rstrip(".")
            raise ModelError(
                f"The Router of {name} does not take a {kind} ({reason}); expected routes for queries and for documents, or a "
                f"default route."
            ) from error
    if len(set(widths.values())) > 1:
        raise ModelError(
            f"The Router of {name} gives queries {widths['query']} dimensions and documents {widths['document']}; expected one "
            f"width, so that they can be compared."
        )
    return widths["document"]
