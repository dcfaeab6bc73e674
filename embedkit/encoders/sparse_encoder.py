"""Learned sparse models (SPLADE and its kin), as sentence-transformers opens them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from embedkit.encoders.fingerprint import describe_modules, fingerprint
from embedkit.encoders.foreign import as_model_error
from embedkit.encoders.hub_cache import found_here, offline
from embedkit.encoders.model_folder import check_fetched, check_folder
from embedkit.types import Kind


class SparseTextEncoder:
    """A SparseEncoder of sentence-transformers, behind embedkit's protocol of the same name."""

    def __init__(self, model: Any, name: str) -> None:
        self._model, self.settings = model, {"model": name}
        # what a model says of its width may be that of its hidden states
        dim = model.encode_document(["a"], convert_to_sparse_tensor=True, show_progress_bar=False).shape[1]
        self.vocabulary: Sequence[str] = _names(model, int(dim))
        space = {"modules": describe_modules(model), "prompts": dict(model.prompts), "most": model.max_active_dims}
        self.fingerprint = fingerprint(space)

    def encode(self, inputs: Sequence[Any], *, kind: Kind = "document") -> csr_matrix:
        """float32 (len(inputs), len(vocabulary)), weights over 0."""
        encode = self._model.encode_query if kind == "query" else self._model.encode_document
        rows = encode(list(inputs), convert_to_sparse_tensor=True, save_to_cpu=True, show_progress_bar=False).coalesce()
        shape = (len(inputs), len(self.vocabulary))
        return csr_matrix((rows.values().float().numpy(), rows.indices().numpy()), shape=shape, dtype=np.float32)


def _names(model: Any, dim: int) -> list[str]:
    """The token of each column, or its number where columns are no tokens."""
    tokenizer = getattr(model, "tokenizer", None)
    names = [] if tokenizer is None else tokenizer.convert_ids_to_tokens(list(range(min(dim, len(tokenizer)))))
    if any(type(module).__name__ == "SparseAutoEncoder" for module in model.modules()) or len(set(names)) != len(names):
        names = []
    return [*names, *(f"#{column}" for column in range(len(names), dim))]


def load_sparse(model: str | Path, *, device: str | None = None, local_files_only: bool = False) -> SparseTextEncoder:
    """Opens a folder or hub id of a sentence-transformers SparseEncoder. local_files_only: as of `load`. Raises ModelError where
    it is none."""
    from sentence_transformers import SparseEncoder

    from embedkit.encoders.sentence_transformer import whole_weights

    folder = Path(model).absolute() if Path(model).is_dir() else None
    name = str(folder or model)
    if folder is None and local_files_only:
        folder = found_here(name, None)
    expected = "Expected a folder or hub id of a SparseEncoder of sentence-transformers, with safetensors weights."
    with as_model_error(f"{model} cannot be opened as a sparse model", expected), whole_weights():
        if folder:
            check_folder(folder)
        else:
            check_fetched(name, None)
        with offline() if folder else nullcontext():
            opened = SparseEncoder(
                str(folder or name),
                device=device,
                model_kwargs={"use_safetensors": True},
                local_files_only=folder is not None,
            )
        return SparseTextEncoder(opened.eval(), name)
