"""An embedkit Encoder as a model of mteb, so that mteb's own evaluators run it."""

from __future__ import annotations

from typing import Any

import numpy as np

from embedkit.encoder import Encoder
from embedkit.encoders import TextEncoder
from embedkit.types import Vectors
from embedkit.vectors import unit_rows


class MtebModel:
    """Fulfils mteb's EncoderProtocol (mteb 2): texts come in a DataLoader of batches, the role in `prompt_type`."""

    def __init__(self, encoder: Encoder) -> None:
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        self.encoder = encoder
        name = str(encoder.settings.get("model", "embedkit/encoder")).rstrip("/")
        owner, _, short = name.rpartition("/")
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={
                "name": f"{owner.rsplit('/', 1)[-1] or 'embedkit'}/{short}",
                "revision": encoder.fingerprint[:16],
                "embed_dim": encoder.dim,
                "similarity_fn_name": ScoringFunction.DOT_PRODUCT
                if encoder.similarity == "dot"
                else ScoringFunction.COSINE,
            }
        )

    def encode(self, inputs: Any, *, prompt_type: Any = None, **_: Any) -> Vectors:
        """inputs: batches {"text": [...]}; prompt_type: mteb's "query" or "document", or None where texts have no role, as in
        STS: they get the model's default prompt or none, as sentence-transformers does."""
        texts = [text for batch in inputs for text in batch["text"]]
        role = getattr(prompt_type, "value", prompt_type)
        if role is None and isinstance(self.encoder, TextEncoder):
            return self.encoder.encode(texts, prompt=self.encoder.default_prompt)
        return self.encoder.encode(texts, kind="query" if role == "query" else "document")

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Vectors:
        """(n, m) similarities."""
        left, right = self._comparable(embeddings1), self._comparable(embeddings2)
        similar: Vectors = left @ right.T
        return similar

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Vectors:
        """(n,) similarities of row i with row i."""
        left, right = self._comparable(embeddings1), self._comparable(embeddings2)
        similar: Vectors = (left * right).sum(axis=1)
        return similar

    def _comparable(self, rows: Any) -> Vectors:
        array = np.atleast_2d(np.asarray(rows, dtype=np.float32))
        return array if self.encoder.similarity == "dot" else unit_rows(array)
