"""Which literal prompt stands in front of a text.

A model's own configuration may hold named prompts. As sentence-transformers does, `kind="query"` takes the one named
"query", `kind="document"` the first of "document", "passage", "corpus"; where neither is stored the model's default
prompt is taken, or none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from embedkit.errors import EmbedkitError, UsageError
from embedkit.limits import CONFIG, read_at_most
from embedkit.typed import parsed
from embedkit.types import Kind

NAMES: dict[Kind, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
_RETRIEVAL = "Represent this sentence for searching relevant passages: "
_TASK = "Instruct: TASK\nQuery: "  # TASK: one sentence on what is searched for
FAMILIES: tuple[tuple[str, str, str], ...] = (  # pattern of a model's name, its authors' prompt of queries, that of documents
    (r"e5-.*instruct|gte-.*instruct|qwen3-embedding", _TASK, ""),
    (r"\be5-", "query: ", "passage: "),
    (r"bge-(small|base|large)-en", _RETRIEVAL, ""),
    (r"bge-(small|base|large)-zh", "为这个句子生成表示以用于检索相关文章：", ""),
    (r"nomic-embed-text", "search_query: ", "search_document: "),
    (r"arctic-embed-.*v2", "query: ", ""),
    (r"arctic-embed|mxbai-embed-large", _RETRIEVAL, ""),
    (
        r"instructor-(base|large|xl)",
        "Represent the question for retrieving supporting documents: ",
        "Represent the document for retrieval: ",
    ),
    (r"embeddinggemma", "task: search result | query: ", "title: none | text: "),
)  # fmt: skip


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


def family_prompts(name: str) -> dict[Kind, str] | None:
    """The prompts that models of this one's family were trained with; None where none is known to need them.

    name: a folder, whose config.json may say what it was made from, or a hub id.
    """
    names = [Path(name).name, Path(_made_from(Path(name))).name]
    for pattern, query, document in FAMILIES:
        if any(re.search(pattern, one.lower()) for one in names):
            return {"query": query, "document": document}
    return None


def _made_from(folder: Path) -> str:
    """What the config of a model folder names as its origin; empty where there is none."""
    try:
        return str(parsed(read_at_most(folder / "config.json", CONFIG)).get("_name_or_path", ""))
    except (OSError, ValueError, AttributeError, EmbedkitError):
        return ""
