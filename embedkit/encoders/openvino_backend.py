"""Batches through OpenVINO on the CPU: several requests in flight, bfloat16 where it pays, float32 rows.

Two compiled models of one graph: one whose streams share the threads out, for many batches, and one whose threads all work
on the batch at hand, for a question on its own. Each is compiled when first needed (0.1 s for the default model).
"""

from __future__ import annotations

import functools
import os
import platform
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from embedkit.encoders.backend import Batch, compute_settings, is_out_of_memory
from embedkit.encoders.model_files import Dense, ModelFiles
from embedkit.encoders.pooling import POOLINGS
from embedkit.encoders.timing import quickest
from embedkit.types import Array, Vectors
from embedkit.vectors import unit_rows

T = TypeVar("T")
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
WAITING = 1  # batches that wait beside those being computed, so that no thread does
BFLOAT16_GAIN = 1.2  # how much faster it must be to be the default


def import_openvino() -> Any:
    """The module, kept from reporting to its maker: its telemetry package posts on import and on conversion, and writes
    into the home folder. Without that package it is silent."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def available_threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class OpenVinoBackend:
    """A model of the families that `model_files` reads."""

    def __init__(self, files: ModelFiles, *, dtype: str, threads: int | None, batch_tokens: int) -> None:
        openvino = import_openvino()
        self._files, self._dtype, self._batch_tokens = files, dtype, batch_tokens
        self._threads = threads or available_threads()
        self._idle: dict[str, deque[Any]] = {"LATENCY": deque(), "THROUGHPUT": deque()}
        self.compute = compute_settings(
            backend="openvino",
            device="cpu",
            dtype=dtype,
            threads=self._threads,
            batch_tokens=batch_tokens,
            openvino=openvino.__version__.partition("-")[0],
            python=platform.python_version(),
        )

    def in_float32(self) -> OpenVinoBackend:
        if self._dtype == "float32":
            return self
        return OpenVinoBackend(self._files, dtype="float32", threads=self._threads, batch_tokens=self._batch_tokens)

    def run(self, batches: Iterable[Batch[T]]) -> Iterator[tuple[Batch[T], Vectors | Exception]]:
        """See Backend. Which of the two compiled models runs depends on whether there is a second batch, so on the rows alone."""
        stream = iter(batches)
        first, second = next(stream, None), next(stream, None)
        if first is None:
            return
        hint = "LATENCY" if second is None else "THROUGHPUT"
        flying: deque[tuple[Batch[T], Any]] = deque()
        most = self._streams(hint) + WAITING
        for batch in (first, second):
            if batch is not None:
                flying.append((batch, self._start(batch, hint)))
        for batch in stream:
            if len(flying) >= most:
                yield self._finish(*flying.popleft(), hint)
            flying.append((batch, self._start(batch, hint)))
        while flying:
            yield self._finish(*flying.popleft(), hint)

    def _start(self, batch: Batch[Any], hint: str) -> Any:
        idle = self._idle[hint]
        try:
            request = idle.popleft()
        except IndexError:
            request = self._compiled(hint).create_infer_request()
        ids, mask, weights = padded(batch, self._files.pooling)
        request.start_async({"ids": ids, "mask": mask, "weights": weights}, share_inputs=False)
        return request

    def _finish(self, batch: Batch[T], request: Any, hint: str) -> tuple[Batch[T], Vectors | Exception]:
        try:
            request.wait()
        except RuntimeError as error:
            if is_out_of_memory(error):
                return batch, error
            raise
        pooled = np.array(request.get_output_tensor(0).data)
        self._idle[hint].append(request)
        return batch, head(pooled, self._files.heads, normalize=self._files.normalize)

    @functools.cached_property
    def _graph(self) -> Any:
        from embedkit.encoders.bert_graph import bert_graph

        return bert_graph(self._files)

    def _compiled(self, hint: str) -> Any:
        cache: dict[str, Any] = self.__dict__.setdefault("_models", {})
        if hint not in cache:
            cache[hint] = compiled(self._graph, self._dtype, self._threads, hint)
        return cache[hint]

    def _streams(self, hint: str) -> int:
        return int(self._compiled(hint).get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))


def compiled(graph: Any, dtype: str, threads: int, hint: str) -> Any:
    """The graph, compiled for the CPU."""
    settings = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
        "PERFORMANCE_HINT": hint,
        "INFERENCE_NUM_THREADS": threads,
    }
    return import_openvino().Core().compile_model(graph, "CPU", settings)


def padded(batch: Batch[Any], pooling: str) -> tuple[Array, Array, Array]:
    """ids int32, mask and pooling weights float32, each (B, T), T the longest piece, padding on the right."""
    lengths = np.array([len(piece.ids or ()) for piece in batch.pieces])
    positions = np.arange(1, lengths.max() + 1)
    present = positions <= lengths[:, None]
    ids = np.zeros(present.shape, dtype=np.int32)
    ids[present] = np.concatenate([np.asarray(piece.ids, dtype=np.int32) for piece in batch.pieces])
    firsts = np.array([piece.first for piece in batch.pieces])
    weights = POOLINGS[pooling](present & (positions > firsts[:, None]), positions)
    return ids, present.astype(np.float32), np.ascontiguousarray(weights)


def head(pooled: Vectors, layers: Iterable[Dense], *, normalize: bool) -> Vectors:
    """What stands behind pooling: dense layers, then the norm."""
    for layer in layers:
        pooled = pooled @ layer.weight.T.astype(np.float32)
        if layer.bias is not None:
            pooled = pooled + layer.bias.astype(np.float32)
        if layer.activation == "tanh":
            pooled = np.tanh(pooled)
    return unit_rows(pooled) if normalize else pooled


@functools.cache
def bfloat16_is_fast(threads: int) -> bool:
    """Whether this CPU multiplies bfloat16 matrices faster than float32 ones, by trying (some 50 ms, once a process)."""
    return (
        quickest({dtype: _multiplication(dtype, threads) for dtype in PRECISIONS}, handicap=BFLOAT16_GAIN) == "bfloat16"
    )


def _multiplication(dtype: str, threads: int) -> Callable[[], Any]:
    openvino = import_openvino()
    import openvino.opset13 as op

    states = np.random.default_rng(0).standard_normal((256, 384), dtype=np.float32)
    rows = op.parameter([256, 384], np.float32, name="rows")
    weight = op.constant(np.random.default_rng(1).standard_normal((384, 1536), dtype=np.float32))
    model = openvino.Model([op.matmul(rows, weight, False, False)], [rows], "multiplication")
    request = compiled(model, dtype, threads, "LATENCY").create_infer_request()
    return lambda: request.infer({"rows": states})
