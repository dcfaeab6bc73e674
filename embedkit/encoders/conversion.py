"""Any transformer that torch opened, converted for OpenVINO where the two then agree.

Conversion follows one run of the model and may take for a constant what depended on that run's input. So the converted model
is held against torch's, on texts of several lengths, alone and padded, before it is used; where it cannot be converted or a
row differs, torch runs the model. Cost: half a second and more, by the model's size, once a load.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from embedkit.encoders.backend import Batch
from embedkit.encoders.foreign import quiet
from embedkit.encoders.openvino_backend import Graph, OpenVinoBackend, available_threads, chosen_dtype
from embedkit.encoders.openvino_import import import_openvino
from embedkit.encoders.pieces import Piece, Tokenization
from embedkit.encoders.torch_backend import pad_id, padded, versions
from embedkit.types import Array, Vectors
from embedkit.vectors import unit_rows

AGREEMENT = {"float32": 0.99999, "bfloat16": 0.999}  # the smallest cosine with torch in float32
PROBES = (
    ["a"],
    ["word " * 40],
    ["some words that differ in length", "two words", "x"],
    ["word " * 99, "another " * 70],
)
logger = logging.getLogger(__name__)


def convert(
    model: Any,  # sentence_transformers.SentenceTransformer
    tokenization: Tokenization,
    name: str,
    *,
    dtype: str,
    threads: int | None,
    batch_tokens: int,
    reopen: Callable[[], Any],  # the same model once more
) -> OpenVinoBackend | None:
    """The model for OpenVINO, with torch for its modules after the transformer; None where it has to stay with torch."""
    threads = threads or available_threads()

    def opened(model: Any, dtype: str) -> OpenVinoBackend:
        return OpenVinoBackend(
            _graph(model.eval().float()),
            dtype=dtype,
            threads=threads,
            batch_tokens=batch_tokens,
            in_float32=lambda: opened(reopen(), "float32"),
            versions=versions(),
        )

    try:
        with warnings.catch_warnings(), quiet(), torch.inference_mode():
            warnings.simplefilter(
                "ignore"
            )  # tracing warns of every choice that might depend on its input: hence the probes
            backend = opened(model, chosen_dtype(dtype, threads))
            cosine = min(_agreement(model, backend, tokenization))
    except Exception as error:  # what a conversion cannot follow, it reports in many ways
        logger.info("%s is run by torch: OpenVINO cannot convert it (%s).", name, str(error).split("\n")[0])
        return None
    if not cosine >= AGREEMENT[backend.compute["dtype"]]:
        logger.info("%s is run by torch: OpenVINO's rows differ (cosine %.5f).", name, cosine)
        return None
    return backend


class _States(torch.nn.Module):
    """The last hidden states (B, T, H) of a transformer."""

    def __init__(self, transformer: torch.nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def _graph(model: Any) -> Graph:
    transformer, *tail = model.children()
    pad = pad_id(model)
    example = padded([Piece(0, "", [1] * 7), Piece(1, "", [1] * 5), Piece(2, "", [1] * 2)], pad)
    transformer.auto_model.config.use_cache = False
    converted = import_openvino().convert_model(_States(transformer.auto_model), example_input=example)

    def inputs(batch: Batch[Any]) -> dict[str, Array]:
        features = padded(batch.pieces, pad)
        return {name: features[name].numpy() for name in ("input_ids", "attention_mask")}

    @torch.inference_mode()
    def rows(batch: Batch[Any], states: Array) -> Vectors:
        features = padded(batch.pieces, pad)
        features["token_embeddings"] = torch.from_numpy(states[:, : features["input_ids"].shape[1]])
        features["attention_mask"] = features.pop("pooling_mask", features["attention_mask"])
        features |= {"task": batch.kind, "modality": "text"}  # what a Router goes by
        for module in tail:
            features = module(features)
        pooled: Vectors = features["sentence_embedding"].float().numpy()
        return pooled

    return Graph(converted, inputs, rows, getattr(model, "max_seq_length", None), pad)


def _agreement(model: Any, backend: OpenVinoBackend, tokenization: Tokenization) -> Iterator[float]:
    """The cosine of each probe's row with torch's."""
    for texts in PROBES:
        pieces = [piece for piece in tokenization.pieces(texts, "") if piece.length]
        expected = (
            model({**padded(pieces, pad_id(model)), "modality": "text"}, task="document")["sentence_embedding"]
            .float()
            .numpy()
        )
        for _, rows in backend.run([Batch(pieces, "", "document", None)]):
            if isinstance(rows, Exception):
                raise rows
            yield float(np.min(np.sum(unit_rows(rows) * unit_rows(expected), axis=1), initial=1.0))
