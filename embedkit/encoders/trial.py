"""What a model that sentence-transformers opens does with texts, found by a few short ones when it is opened.

Most families give a text the same row alone and beside a longer one. In some a row depends on the padding (Fourier transforms,
convolutions, pooled queries) or on the texts beside it (a norm over the batch): their batches are of equal lengths, or of one text. The
width of a row is looked at, not read from a config, for families differ in what they call it. Cost: four or five forward passes of
short texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from embedkit.encoders.backend import Backend, Batch, SetAside
from embedkit.encoders.batches import Batching
from embedkit.encoders.foreign import as_model_error, quiet
from embedkit.encoders.pieces import Piece, Tokenization
from embedkit.encoders.torch_backend import pad_id, padded
from embedkit.errors import ModelError
from embedkit.types import Array, Vectors
from embedkit.vectors import unit_rows

SHORT, MIDDLE, LONG = "one", "some words that are read on their own", "many words that stand beside " * 6
SAME = {torch.float32: 0.99999, torch.bfloat16: 0.99, torch.float16: 0.99}  # least cosine of a row with itself
HALF = (torch.bfloat16, torch.float16)


class Trial(NamedTuple):
    width: int
    batching: Batching


def tried(model: Any, tokenization: Tokenization | None, name: str) -> Trial:
    """model: a SentenceTransformer, weights as stored; those of half precision become float32 where texts can be read so alone.

    Raises ModelError where it reads no text, or gives the same text another row each time."""
    with quiet():
        try:
            return _tried(model, tokenization, name)
        except ModelError:
            if _dtype(model) not in HALF:
                raise
            return _tried(model.float(), tokenization, name)


def _tried(model: Any, tokenization: Tokenization | None, name: str) -> Trial:
    features = _features_of(model, tokenization)
    with as_model_error(f"{name} does not read a text", "Choose a model that embeds texts."):
        alone = _rows(model, features([MIDDLE]))
        again, beside = _rows(model, features([MIDDLE])), _rows(model, features([MIDDLE, LONG]))
    if not np.isfinite(alone).all():
        return Trial(alone.shape[1], "padded")  # said at the first row
    least = SAME.get(_dtype(model), SAME[torch.float32])
    if not _are_same(alone, again, least):
        raise ModelError(
            f"{name} gives the same text another row each time; choose a model whose rows can be compared."
        )
    if _are_same(alone, beside[:1], least) and _reads_short_ones_alike(model, features, least):
        return Trial(alone.shape[1], "padded")
    if tokenization is None:  # how long a text is only the model's own tokenizer knows
        return Trial(alone.shape[1], "alone")
    (piece,) = tokenization.pieces([MIDDLE], "")
    other = replace(piece, ids=[piece.ids[0], *reversed(piece.ids[1:-1]), piece.ids[-1]] if piece.ids else None)
    together = _rows(model, {**padded([piece, other], pad_id(model)), "modality": "text"})
    return Trial(alone.shape[1], "equal" if _are_same(alone, together[:1], least) else "alone")


def _reads_short_ones_alike(model: Any, features: Callable[[Sequence[str]], dict[str, Any]], least: float) -> bool:
    try:
        alone = _rows(model, features([SHORT]))
    except Exception:  # some families read no short texts; these are set aside
        return True
    return not np.isfinite(alone).all() or _are_same(alone, _rows(model, features([SHORT, LONG]))[:1], least)


def _features_of(model: Any, tokenization: Tokenization | None) -> Callable[[Sequence[str]], dict[str, Any]]:
    if tokenization is None:
        return lambda texts: dict(model.preprocess(list(texts), task="document"))
    pad = pad_id(model)
    return lambda texts: {**padded(tokenization.pieces(texts, ""), pad), "modality": "text"}


@torch.inference_mode()
def _rows(model: Any, features: dict[str, Any]) -> Vectors:
    moved = {name: x.to(model.device) if isinstance(x, torch.Tensor) else x for name, x in features.items()}
    rows: Vectors = model.eval()(moved, task="document")["sentence_embedding"].float().cpu().numpy()
    return rows


def _are_same(one: Array, other: Array, least: float) -> bool:
    if not one.any():
        return not other.any()
    return bool(np.sum(unit_rows(one) * unit_rows(other)) >= least)


def _dtype(model: Any) -> torch.dtype:
    return next((one.dtype for one in model.parameters() if one.is_floating_point()), torch.float32)


def failure(backend: Backend, tokenization: Tokenization | None) -> str | None:
    """Why a backend computes no row of a text, in its dtype; None where it does."""
    pieces = tokenization.pieces([MIDDLE], "") if tokenization else [Piece(0, MIDDLE)]
    for _, result in backend.run([Batch(pieces, "", "document", None)]):
        if isinstance(result, SetAside):
            return str(result)
    return None
