"""An embedkit Encoder as a model of mteb, so that mteb's own evaluators run it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedkit.encoder import Encoder
from embedkit.types import Kind, Picture, Vectors
from embedkit.vectors import unit_rows

logger = logging.getLogger(__name__)


class MtebModel:
    """Fulfils mteb's EncoderProtocol (mteb 2): texts come in a DataLoader of batches, the role in `prompt_type`.

    first_inputs: role ("query", "document" or "text") -> the first literal input that was embedded in it.
    """

    def __init__(
        self, encoder: Encoder, experiment: Mapping[str, Any] | None = None, *, query_prompt: str | None = None
    ) -> None:
        """experiment: what mteb's result files are to say beside name and revision, such as the index. query_prompt: the name
        of a stored prompt that queries are to have, whatever the task."""
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        self.encoder = encoder
        self.first_inputs: dict[str, str] = {}
        self._stored: Mapping[str, str] = getattr(encoder, "stored_prompts", {})
        self._chosen = dict(encoder.settings.get("prompt_names") or {})
        if query_prompt is not None:
            self._chosen["query"] = query_prompt
        name = str(encoder.settings.get("model", "embedkit/encoder")).rstrip("/")
        owner, _, short = name.rpartition("/")
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={
                "name": f"{owner.rsplit('/', 1)[-1] or 'embedkit'}/{short}",
                "revision": encoder.fingerprint[:16],
                "embed_dim": encoder.dim,
                "modalities": ["text", "image"] if getattr(encoder, "reads_images", False) else ["text"],
                "experiment_kwargs": dict(experiment or {}) or None,
                "similarity_fn_name": ScoringFunction.DOT_PRODUCT
                if encoder.similarity == "dot"
                else ScoringFunction.COSINE,
            }
        )

    def encode(self, inputs: Any, *, task_metadata: Any = None, prompt_type: Any = None, **_: Any) -> Vectors:
        """inputs: batches {"text": [...]}, {"image": [...]} or both; prompt_type: mteb's "query" or "document", or None where
        texts have no role, as in STS. The prompt is the one that mteb takes for sentence-transformers: see `prompt_for`."""
        texts = [item for batch in inputs for item in _items(batch)]
        role = getattr(prompt_type, "value", prompt_type)
        kind: Kind = "query" if role == "query" else "document"
        prompt = self.prompt_for(task_metadata, prompt_type)
        if texts:
            literal = getattr(self.encoder, "prompts", {}).get(kind, "") if prompt is None else prompt
            self.first_inputs.setdefault(role or "text", literal + str(texts[0]))
        if prompt is None:
            return self.encoder.encode(texts, kind=kind)
        return self.encoder.encode(texts, kind=kind, prompt=prompt)  # type: ignore[call-arg]

    def prompt_for(self, task_metadata: Any, prompt_type: Any) -> str | None:
        """The literal prompt that the model stores for a task and role; None leaves it to the encoder's own rule.

        As mteb resolves it: task and role, task, type of task and role, type of task, role, the first that is stored. A text
        without a role and without a prompt of its task gets the model's default prompt or none, as sentence-transformers
        does. A name that the user chose for a role comes before all.
        """
        if not hasattr(self.encoder, "stored_prompts"):
            return None
        from mteb.models.abs_encoder import get_prompt_name

        role = getattr(prompt_type, "value", prompt_type)
        if role in self._chosen:
            return self._stored[self._chosen[role]]
        name = None if task_metadata is None else get_prompt_name(dict(self._stored), task_metadata, prompt_type)
        if name is not None:
            return self._stored[name]
        return None if role else str(getattr(self.encoder, "default_prompt", ""))

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """(n, m) similarities, as the torch tensor that mteb's evaluators take."""
        left, right = self._comparable(embeddings1), self._comparable(embeddings2)
        return _as_tensor(left @ right.T)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """(n,) similarities of row i with row i, as a torch tensor."""
        left, right = self._comparable(embeddings1), self._comparable(embeddings2)
        return _as_tensor((left * right).sum(axis=1))

    def _comparable(self, rows: Any) -> Vectors:
        array = np.atleast_2d(np.asarray(rows, dtype=np.float32))
        return array if self.encoder.similarity == "dot" else unit_rows(array)


def _items(batch: Mapping[str, Sequence[Any]]) -> list[Any]:
    """The inputs of a batch: texts, images as datasets stores or decodes them, or both together."""
    if "image" not in batch:
        return list(batch["text"])
    texts = batch.get("text") or [None] * len(batch["image"])
    return [_picture(image, text) for image, text in zip(batch["image"], texts, strict=True)]


def _picture(image: Any, text: str | None) -> Picture:
    if not isinstance(image, Mapping):
        return Picture(image, text)
    path = image.get("path") or ""
    return Picture(image.get("bytes") or Path(path), text, Path(path).name)


def _as_tensor(values: Any) -> Any:
    import torch

    return torch.from_numpy(values)
