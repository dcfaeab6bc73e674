"""Which literal prompt stands in front of a text.

A model's own configuration may hold named prompts. As sentence-transformers does, `kind="query"` takes the one named
"query", `kind="document"` the first of "document", "passage", "corpus"; where neither is stored the model's default
prompt is taken, or none.
"""

from __future__ import annotations

from collections.abc import Mapping

from embedkit.errors import UsageError
from embedkit.types import Kind

NAMES: dict[Kind, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}


def resolve_prompts(stored: Mapping[str, str], default: str | None, chosen: Mapping[Kind, str]) -> dict[Kind, str]:
    """The literal prompt of each kind. chosen: kind -> name of a stored prompt, which overrides the rule above.

    Raises UsageError for a kind or a name that is not there.
    """
    if unknown := [kind for kind in chosen if kind not in NAMES]:
        raise UsageError(f"A prompt for {unknown[0]!r} came; inputs are of the kinds {' and '.join(map(repr, NAMES))}.")
    return {kind: _resolve(stored, default, names, chosen.get(kind)) for kind, names in NAMES.items()}


def _resolve(stored: Mapping[str, str], default: str | None, names: tuple[str, ...], chosen: str | None) -> str:
    if chosen is not None:
        return named_prompt(stored, chosen)
    name = next((name for name in names if stored.get(name)), default)
    return stored.get(name, "") if name else ""


def named_prompt(stored: Mapping[str, str], name: str) -> str:
    """The prompt stored under `name`. Raises UsageError that lists the known names."""
    if name not in stored:
        known = ", ".join(sorted(key for key, prompt in stored.items() if prompt)) or "none"
        raise UsageError(
            f"The model stores no prompt named {name!r}; it stores {known}. Choose one of those, or give the prompt itself."
        )
    return stored[name]
