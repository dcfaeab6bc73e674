"""Prompts of training: what the recipe says of a task, else what the model stores, by the rule of eval, index and search; and what
the trained model stores for them.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from embedkit.encoders.prompts import NAMES, resolve_prompts
from embedkit.train.settings import Stage
from embedkit.types import Kind

logger = logging.getLogger(__name__)


def prompts_of(model: Any) -> dict[Kind, str]:
    """What eval, index and search put in front of a text, of a SentenceTransformer."""
    return resolve_prompts(model.prompts, model.default_prompt_name, {})


def with_prompts(stage: Stage, model: Any) -> Stage:
    """The stage with the prompts of every task written out. The model stores them from here on; where tasks differ it keeps its
    own, and a warning says so."""
    own = prompts_of(model)
    data = tuple(
        replace(
            task,
            query_prompt=own["query"] if task.query_prompt is None else task.query_prompt,
            document_prompt=own["document"] if task.document_prompt is None else task.document_prompt,
        )
        for task in stage.data
    )
    asked = {(task.query_prompt or "", task.document_prompt or "") for task in data}
    if len(asked) > 1:
        logger.warning(
            "The tasks of %s have different prompts; eval, index and search will use the model's own, %r for queries and %r for documents.",
            stage.name,
            own["query"],
            own["document"],
        )
    elif (found := asked.pop()) != (own["query"], own["document"]):
        others = {name: one for name, one in model.prompts.items() if name not in NAMES["document"]}
        model.prompts = {**others, "query": found[0], "document": found[1]}
        if not all(found):
            model.default_prompt_name = None  # which would stand in for an empty one
    return replace(stage, data=data)
