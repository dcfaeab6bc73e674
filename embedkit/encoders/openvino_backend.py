"""Batches through OpenVINO on the CPU: several requests in flight, bfloat16 where it pays, float32 rows.

Two compiled models of one graph: one whose streams share the threads out, for many batches, and one whose threads all work
on the one batch that somebody waits for. Each is compiled when first needed (0.1 s for the default model).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import platform
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from embedkit.encoders.backend import Backend, Batch, compute_settings
from embedkit.encoders.batches import stepped
from embedkit.encoders.foreign import FAILED, STEP, as_model_error
from embedkit.encoders.model_files import Dense, ModelFiles, position_limit
from embedkit.encoders.openvino_import import import_openvino
from embedkit.encoders.pooling import POOLINGS
from embedkit.encoders.timing import bfloat16_wins
from embedkit.errors import is_out_of_memory
from embedkit.types import Array, Vectors
from embedkit.vectors import unit_rows

T = TypeVar("T")
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
SIZES = 2  # parts of a full batch: others have whole parts of it, or a power of two rows below one
WAITING = 1  # batches that wait beside those being computed, so that no thread does


def available_threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Graph:
    """A model as OpenVINO runs it."""

    model: Any  # openvino.Model
    inputs: Callable[[Batch[Any]], Mapping[str, Array]]  # a batch -> what the model reads
    rows: Callable[[Batch[Any], Array], Vectors]  # the model's output -> rows (len(pieces), width)
    longest: int | None  # tokens that have a position
    pad: int = 0  # the id that "input_ids" are padded with


class OpenVinoBackend:
    """A graph, compiled for the CPU."""

    def __init__(
        self,
        graph: Graph,
        *,
        dtype: str,
        threads: int,
        batch_tokens: int,
        in_float32: Callable[[], Backend],  # the same model once more, in float32
        versions: Mapping[str, str] | None = None,  # of other libraries that take part
    ) -> None:
        self._graph, self._dtype, self._threads, self._batch_tokens = graph, dtype, threads, batch_tokens
        self._reopened = in_float32
        # by process: the threads of a compiled model are not in a child that was forked, where a new one answers; the old one is kept,
        # for it would wait for them when it goes
        self._models: dict[tuple[int, str], _Compiled] = {}
        self.compute = compute_settings(
            backend="openvino",
            device="cpu",
            dtype=dtype,
            threads=threads,
            batch_tokens=batch_tokens,
            openvino=import_openvino().__version__.partition("-")[0],
            python=platform.python_version(),
            **(versions or {}),
        )

    def in_float32(self) -> Backend:
        """See Backend."""
        return self if self._dtype == "float32" else self._reopened()

    def run(
        self, batches: Iterable[Batch[T]], *, hurried: bool = False
    ) -> Iterator[tuple[Batch[T], Vectors | Exception]]:
        """See Backend."""
        stream = iter(batches)
        first = list(itertools.islice(stream, 2 if hurried else 1))
        if not first:
            return
        hint = "LATENCY" if hurried and len(first) == 1 else "THROUGHPUT"
        flying: deque[tuple[Batch[T], _Flight]] = deque()
        for batch in itertools.chain(first, stream):
            if len(flying) >= self._compiled(hint).streams + WAITING:
                yield self._land(flying, hint)
            flying.append((batch, self._start(batch, hint)))
        while flying:
            yield self._land(flying, hint)

    def _start(self, batch: Batch[Any], hint: str) -> _Flight:
        model = self._compiled(hint)
        try:
            request = model.request()
            inputs = self._graph.inputs(batch)
            known = {name: self._of_known_shape(name, array, hint) for name, array in inputs.items()}
            request.start_async(known, share_inputs=False)
        except Exception as error:
            return _Flight(model, None, _known(error))
        return _Flight(model, request, None)

    def _of_known_shape(self, name: str, array: Array, hint: str) -> Array:
        """Padded to one of few shapes: OpenVINO keeps up to 0.7 MB of each that it has met, which would be a sixth more memory at
        100,000 rows than at 10,000. At most half the rows of a small batch are padding, and one that somebody waits for keeps
        its rows."""
        rows, width = array.shape
        wider = min(stepped(width), self._graph.longest or stepped(width)) - width
        full = self._batch_tokens // (width + wider)
        part = min(max(full // SIZES, 1), 1 << (rows - 1).bit_length())
        more = 0 if hint == "LATENCY" or rows >= full else -rows % part
        fill = self._graph.pad if name == "input_ids" else 0
        return np.pad(array, ((0, more), (0, wider)), constant_values=fill) if more or wider else array

    def _land(self, flying: deque[tuple[Batch[T], _Flight]], hint: str) -> tuple[Batch[T], Vectors | Exception]:
        """The rows of the batch that started first, or the error that memory ran out. After such an error the model is
        compiled anew and what flies is started again: the graph was left with half its shapes of that batch."""
        batch, (model, request, error) = flying.popleft()
        try:
            if error is not None:
                raise error
            request.wait()
            rows = self._graph.rows(batch, np.array(request.get_output_tensor(0).data[: len(batch.pieces)]))
        except Exception as failure:
            others = [other for other, flight in flying if flight.over()]
            flying.clear()
            if self._models.get((os.getpid(), hint)) is model:
                del self._models[os.getpid(), hint]
            del model, request  # the old model's memory is needed
            flying.extend((other, self._start(other, hint)) for other in others)
            return batch, _known(failure)
        model.idle.append(request)
        return batch, rows

    def _compiled(self, hint: str) -> _Compiled:
        key = os.getpid(), hint
        model = self._models.get(key)
        if model is None:
            with as_model_error(FAILED, STEP):
                model = self._models[key] = _Compiled(compiled(self._graph.model, self._dtype, self._threads, hint))
        return model


class _Flight(NamedTuple):
    """A batch under way, or why it could not be started."""

    model: _Compiled
    request: Any
    error: Exception | None

    def over(self) -> bool:
        """True, once it has ended, well or not."""
        with contextlib.suppress(RuntimeError, AttributeError):  # None: it was never started
            self.request.wait()
        return True


class _Compiled:
    """A compiled model and its requests that are free; several threads may use it."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.idle: deque[Any] = deque()
        self.streams = int(model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))

    def request(self) -> Any:
        try:
            return self.idle.popleft()
        except IndexError:
            return self._model.create_infer_request()


def _known(error: Exception) -> Exception:
    """The error, where it says that memory ran out; raised as a ModelError where it says something else."""
    if not is_out_of_memory(error):
        with as_model_error(FAILED, STEP):
            raise error
    return error.with_traceback(None)  # the frames would keep the batch's arrays alive


def open_bert(
    files: ModelFiles,
    *,
    dtype: str,
    threads: int | None,
    batch_tokens: int,
    graph: Callable[[ModelFiles], Any] | None = None,  # bert_graph, or another of its inputs and output
) -> OpenVinoBackend:
    """A model of the families that `model_files` reads."""
    from embedkit.encoders.bert_graph import bert_graph

    threads = threads or available_threads()

    def inputs(batch: Batch[Any]) -> Mapping[str, Array]:
        ids, mask, weights = padded(batch, files.pooling)
        return {"ids": ids, "mask": mask, "weights": weights}

    return OpenVinoBackend(
        Graph(
            (graph or bert_graph)(files),
            inputs,
            lambda _, pooled: head(pooled, files.heads, normalize=files.normalize),
            position_limit(files.config),
        ),
        dtype=chosen_dtype(dtype, threads),
        threads=threads,
        batch_tokens=batch_tokens,
        in_float32=lambda: open_bert(files, dtype="float32", threads=threads, batch_tokens=batch_tokens, graph=graph),
    )


def chosen_dtype(dtype: str, threads: int) -> str:
    """float32 or bfloat16, for "auto" the faster."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if bfloat16_is_fast() else "float32"


def compiled(graph: Any, dtype: str, threads: int, hint: str) -> Any:
    """The graph, compiled for the CPU. Raises RuntimeError where that would end the process.

    On a CPU with AMX, OpenVINO 2026.4 ended the process (SIGFPE) when it compiled any of eleven Llamas in bfloat16 for streams of one
    thread. With two threads, in float32, or without the product of a gate it did not; other CPUs were not tried.
    """
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
        "PERFORMANCE_HINT": hint,
        "INFERENCE_NUM_THREADS": threads,
    }
    if dtype == "bfloat16" and _has_gated_mlp(graph):
        if threads == 1:
            raise RuntimeError("OpenVINO computes a gated MLP in bfloat16 with two threads or more")
        if hint == "THROUGHPUT":
            settings["NUM_STREAMS"] = threads // 2
    return import_openvino().Core().compile_model(graph, "CPU", settings)


def _has_gated_mlp(graph: Any) -> bool:
    """Whether an activation is multiplied with something that is computed too, as in most decoders; the scales of int8 are constants."""
    gates = {op.get_friendly_name() for op in graph.get_ops() if op.get_type_name() in ("Swish", "Gelu")}
    for op in graph.get_ops():
        if op.get_type_name() == "Multiply":
            sources = [value.get_source_output().get_node() for value in op.inputs()]
            others = [one for one in sources if one.get_friendly_name() not in gates]
            if len(others) == 1 and not _is_constant(others[0]):
                return True
    return False


def _is_constant(node: Any) -> bool:
    if node.get_type_name() in ("Convert", "Reshape", "Unsqueeze"):  # of a constant, as a conversion leaves it
        return _is_constant(node.input(0).get_source_output().get_node())
    return bool(node.get_type_name() == "Constant")


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
def bfloat16_is_fast() -> bool:
    """Whether this CPU multiplies bfloat16 matrices faster than float32 ones, by trying (some 50 ms, once a process)."""
    return bfloat16_wins(_multiplication)


def _multiplication(dtype: str) -> Callable[[], Any]:
    openvino = import_openvino()
    op = openvino.opset13
    states = np.random.default_rng(0).standard_normal((64, 384), dtype=np.float32)
    rows = op.parameter([64, 384], np.float32, name="rows")
    weight = op.constant(np.random.default_rng(1).standard_normal((384, 1536), dtype=np.float32))
    model = openvino.Model([op.matmul(rows, weight, False, False)], [rows], "multiplication")
    request = compiled(model, dtype, 1, "LATENCY").create_infer_request()
    return lambda: request.infer({"rows": states})
