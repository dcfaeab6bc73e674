"""What a user would pick instead of embedkit to embed texts with the default model on a CPU, for encode_speed.py.

Each maker takes the model's folder and gives a function: texts -> float32 (n, 384). Tokenization is inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

Peer = Callable[[list[str]], np.ndarray]
MAX_TOKENS, BUDGET = 256, 1024


def sentence_transformers_float32(folder: Path, threads: int) -> Peer:
    """What everybody does first."""
    return _sentence_transformers(folder)


def sentence_transformers_bfloat16(folder: Path, threads: int) -> Peer:
    return _sentence_transformers(folder, model_kwargs={"dtype": torch.bfloat16})


def _sentence_transformers(folder: Path, **options: Any) -> Peer:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", **options)
    return lambda texts: np.asarray(model.encode(texts, batch_size=32, show_progress_bar=False), dtype=np.float32)


def transformers_bfloat16(folder: Path, threads: int) -> Peer:
    """transformers by hand: batches of one token budget, sorted by length."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager").eval()

    @torch.inference_mode()
    def encode(texts: list[str]) -> np.ndarray:
        ids = tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        rows = np.empty((len(ids), model.config.hidden_size), np.float32)
        for batch in _batches(ids):
            x, mask = _padded(ids, batch)
            rows[batch] = _mean(model(input_ids=x, attention_mask=mask).last_hidden_state.float(), mask).numpy()
        return rows

    return encode


def openvino_bfloat16(folder: Path, threads: int) -> Peer:
    """The same batches through a converted model, asynchronous, two requests in flight: the fastest made by hand."""
    import openvino
    from transformers import AutoModel, AutoTokenizer

    class Embedder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return _mean(
                self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state, attention_mask
            )

    tokenizer = AutoTokenizer.from_pretrained(folder)
    x, mask = _padded(tokenizer(["a text", "another one, longer"])["input_ids"], [0, 1])
    converted = openvino.convert_model(Embedder(), example_input={"input_ids": x, "attention_mask": mask})
    settings = {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(converted, "CPU", settings)

    def encode(texts: list[str]) -> np.ndarray:
        ids = tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        rows = np.empty((len(ids), 384), np.float32)
        queue = openvino.AsyncInferQueue(compiled, 2)

        def store(request: Any, batch: list[int]) -> None:
            rows[batch] = request.get_output_tensor(0).data

        queue.set_callback(store)
        for batch in _batches(ids):
            x, mask = _padded(ids, batch)
            queue.start_async({0: x.numpy(), 1: mask.numpy()}, batch)
        queue.wait_all()
        return rows

    return encode


PEERS = {
    "st-fp32": sentence_transformers_float32,
    "st-bf16": sentence_transformers_bfloat16,
    "hf-bf16": transformers_bfloat16,
    "openvino-bf16": openvino_bfloat16,
}


def _batches(ids: list[list[int]]) -> Iterator[list[int]]:
    batch: list[int] = []
    width = 0
    for i in sorted(range(len(ids)), key=lambda i: -len(ids[i])):
        width = max(width, len(ids[i]))
        if batch and width * (len(batch) + 1) > BUDGET:
            yield batch
            batch, width = [], len(ids[i])
        batch.append(i)
    yield batch


def _padded(ids: list[list[int]], batch: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(ids[i]) for i in batch)
    x, mask = (torch.zeros(len(batch), width, dtype=torch.long) for _ in range(2))
    for row, i in enumerate(batch):
        x[row, : len(ids[i])] = torch.tensor(ids[i])
        mask[row, : len(ids[i])] = 1
    return x, mask


def _mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1)
