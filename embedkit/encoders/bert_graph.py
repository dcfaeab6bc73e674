"""BERT and its kin as an OpenVINO graph, built from the stored weights: no torch, no conversion, 10 ms.

Devlin et al. 2019; RoBERTa differs in where positions begin. What follows the last matrix product (the last norm, pooling)
OpenVINO's CPU plugin computes in float32 whatever the precision asked for, which is what keeps bfloat16 rows at a cosine
above 0.9999 with float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from embedkit.encoders.model_files import ModelFiles, position_offset
from embedkit.encoders.openvino_import import import_openvino
from embedkit.types import Array

openvino = import_openvino()
op = openvino.opset13
MASKED = np.float32(-1e9)  # added to the scores of padding
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": lambda x: op.gelu(x, "erf"),
    "gelu_new": lambda x: op.gelu(x, "tanh"),
    "gelu_pytorch_tanh": lambda x: op.gelu(x, "tanh"),
    "relu": op.relu,
}


def bert_graph(files: ModelFiles) -> Any:
    """Inputs ids (B, T) int32, mask (B, T) float32 (1: a token, 0: padding on the right), weights (B, T) float32 (see
    pooling.py); output (B, H) float32, the weighted sum of the last states."""
    return BertGraph(files).model()


class BertGraph:
    """The graph's parts, one method each."""

    def __init__(self, files: ModelFiles) -> None:
        self.config, self.tensors = files.config, files.tensors
        self.heads = int(self.config["num_attention_heads"])
        self.width = int(self.config["hidden_size"])
        self.offset = position_offset(self.config)
        self.activation = ACTIVATIONS[self.config.get("hidden_act", "gelu")]

    def model(self) -> Any:
        ids = op.parameter([-1, -1], np.int32, name="ids")
        mask = op.parameter([-1, -1], np.float32, name="mask")
        weights = op.parameter([-1, -1], np.float32, name="weights")
        # (B, 1, 1, T): 0 for a token, a large negative number for padding
        bias = op.unsqueeze(
            op.multiply(op.subtract(op.constant(np.float32(1)), mask), op.constant(MASKED)), _ints(1, 2)
        )
        states = self.embeddings(ids)  # (B, T, H)
        for layer in range(int(self.config["num_hidden_layers"])):
            states = self.layer(states, bias, f"encoder.layer.{layer}")
        pooled = op.reduce_sum(op.multiply(states, op.unsqueeze(weights, _ints(2))), _ints(1))
        return openvino.Model([pooled], [ids, mask, weights], "encoder")

    def embeddings(self, ids: Any) -> Any:
        length = op.squeeze(op.gather(op.shape_of(ids), _ints(1), _ints(0)), _ints(0))
        start = np.int64(self.offset)
        positions = op.range(op.constant(start), op.add(length, op.constant(start)), op.constant(np.int64(1)), "i64")
        words = op.gather(self.tensor("embeddings.word_embeddings.weight"), ids, _ints(0))
        places = op.gather(self.tensor("embeddings.position_embeddings.weight"), positions, _ints(0))
        types = op.gather(self.tensor("embeddings.token_type_embeddings.weight"), _ints(0), _ints(0))
        return self.norm(op.add(op.add(words, places), types), "embeddings.LayerNorm")

    def layer(self, states: Any, bias: Any, name: str) -> Any:
        attended = self.attention(states, bias, f"{name}.attention.self")
        attended = self.linear(attended, f"{name}.attention.output.dense")
        states = self.norm(op.add(attended, states), f"{name}.attention.output.LayerNorm")
        inner = self.activation(self.linear(states, f"{name}.intermediate.dense"))
        return self.norm(op.add(self.linear(inner, f"{name}.output.dense"), states), f"{name}.output.LayerNorm")

    def attention(self, states: Any, bias: Any, name: str) -> Any:
        queries, keys, values = (
            self.split(self.linear(states, f"{name}.{part}")) for part in ("query", "key", "value")
        )
        scale = op.constant(np.float32((self.width // self.heads) ** -0.5))
        scores = op.add(op.multiply(op.matmul(queries, keys, False, True), scale), bias)  # (B, heads, T, T)
        mixed = op.transpose(op.matmul(op.softmax(scores, -1), values, False, False), _ints(0, 2, 1, 3))
        return op.reshape(mixed, _ints(0, 0, self.width), True)

    def split(self, states: Any) -> Any:
        """(B, T, H) -> (B, heads, T, H / heads)"""
        parts = op.reshape(states, _ints(0, 0, self.heads, self.width // self.heads), True)
        return op.transpose(parts, _ints(0, 2, 1, 3))

    def linear(self, states: Any, name: str) -> Any:
        return op.add(op.matmul(states, self.tensor(f"{name}.weight"), False, True), self.tensor(f"{name}.bias"))

    def norm(self, states: Any, name: str) -> Any:
        epsilon = float(self.config.get("layer_norm_eps", 1e-12))
        centred = op.mvn(states, _ints(-1), True, epsilon, "inside_sqrt")
        return op.add(op.multiply(centred, self.tensor(f"{name}.weight")), self.tensor(f"{name}.bias"))

    def tensor(self, name: str) -> Any:
        stored: Array = self.tensors[name]
        return op.constant(np.ascontiguousarray(stored, dtype=np.float32), shared_memory=True)


def _ints(*values: int) -> Any:
    return op.constant(np.array(values, dtype=np.int64))
