"""What happens around OpenVINO's requests; that its rows are right is told in test_text_encoder.py and test_model_files.py."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from embedkit.encoders import load
from embedkit.encoders.openvino_backend import compiled
from embedkit.encoders.openvino_import import import_openvino

pytest.importorskip("openvino")
TEXTS = [" ".join(["cat", "dog", "swim", "a", "b"][: i % 5 + 1] * (i % 3 + 1)) for i in range(30)]


class Full:
    """A request for which memory does not suffice."""

    def start_async(self, *_: Any, **__: Any) -> None:
        pass

    def wait(self) -> None:
        raise RuntimeError("Exception from cpu_memory.cpp:257:\nFailed to allocate 430848000 bytes of memory")


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_after_a_failed_allocation_the_model_is_compiled_anew(
    tiny_model: Path, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its graph keeps half the shapes of the batch that failed, so what flies beside it is started again as well."""
    expected = load(tiny_model, dtype="float32").encode(TEXTS)
    encoder = load(tiny_model, dtype="float32", batch_tokens=40)
    backend: Any = encoder._opened.backend
    first = backend._compiled("THROUGHPUT")
    make, calls = type(first).request, iter(range(1000))
    monkeypatch.setattr(type(first), "request", lambda self: Full() if next(calls) == failing else make(self))
    (encoded,) = encoder.encode_windows([TEXTS])
    np.testing.assert_allclose(encoded.rows, expected, atol=1e-6)
    assert (encoded.halvings, encoded.failed) == (1, {})
    assert backend._compiled("THROUGHPUT") is not first


def test_other_errors_of_a_request_are_raised(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load(tiny_model)
    model: Any = encoder._opened.backend
    broken = Full()
    monkeypatch.setattr(broken, "wait", lambda: (_ for _ in ()).throw(RuntimeError("shape mismatch")), raising=False)
    monkeypatch.setattr(type(model._compiled("LATENCY")), "request", lambda self: broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        encoder.encode("cat")


def test_several_threads_may_ask_at_once(tiny_model: Path) -> None:
    encoder = load(tiny_model, dtype="float32", batch_tokens=40)
    expected = encoder.encode(TEXTS)
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(encoder.encode(TEXTS))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    for rows in found:
        np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_the_bits_of_a_window_do_not_depend_on_the_windows_before_it(tiny_model: Path) -> None:
    """A job that is resumed at its last window computes what it would have computed."""
    encoder = load(tiny_model, dtype="bfloat16")
    *_, last = encoder.encode_windows(iter([TEXTS, TEXTS[::-1], ["cat"]]))
    (alone,) = encoder.encode_windows(iter([["cat"]]))
    np.testing.assert_array_equal(alone.rows, last.rows)
    assert [hint for _, hint in encoder._opened.backend._models] == ["THROUGHPUT"]
    encoder.encode("cat")
    assert [hint for _, hint in encoder._opened.backend._models] == ["THROUGHPUT", "LATENCY"]


def test_batches_come_in_few_shapes_and_padding_changes_nothing(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every shape costs memory for good; lengths 3 to 32 in batches of any size are cut to a few."""
    encoder = load(tiny_model, dtype="float32", batch_tokens=64)
    graph = encoder._opened.backend._graph  # type: ignore[attr-defined]
    shapes: set[tuple[int, int]] = set()
    monkeypatch.setattr(type(encoder._opened.backend), "_of_known_shape", noted(encoder._opened.backend, shapes))
    windows = [[f"{'cat ' * (i % 29)}{'dog' * (i % 3)} {number}" for i in range(number)] for number in range(1, 40)]
    for texts, encoded in zip(windows, encoder.encode_windows(iter(windows)), strict=True):
        np.testing.assert_allclose(encoded.rows[-1], encoder.encode(texts[-1])[0], atol=1e-6)
    widths = {width for _, width in shapes}
    assert widths <= {*range(1, 17), 18, 20, 22, 24, 26, 28, 30, 32}
    assert all(rows in {1, 2, 4, 8, *parts(64 // width)} for rows, width in shapes)
    assert graph.longest == 64


def parts(full: int) -> set[int]:
    """The rows of batches that hold a whole one or a half of a full one."""
    return {full, max(full // 2, 1), max(full // 2, 1) * 2}


@pytest.mark.parametrize(("size", "rows"), [(1, 1), (3, 4), (4, 4), (16, 16)])
def test_a_small_batch_is_not_padded_to_a_large_one(
    tiny_model: Path, size: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load(tiny_model, dtype="float32")
    texts = [f"cat {number}" for number in range(48)]
    expected = encoder.encode(texts)
    shapes: set[tuple[int, int]] = set()
    monkeypatch.setattr(type(encoder._opened.backend), "_of_known_shape", noted(encoder._opened.backend, shapes))
    np.testing.assert_allclose(encoder.encode(texts, batch_size=size), expected, atol=1e-6)
    assert max(most for most, _ in shapes) == rows


def noted(backend: Any, shapes: set[tuple[int, int]]) -> Any:
    """`_of_known_shape`, its results' shapes kept where nobody waits for them."""
    original = type(backend)._of_known_shape

    def known(self: Any, name: str, array: np.ndarray, hint: str) -> np.ndarray:
        padded: np.ndarray = original(self, name, array, hint)
        if hint == "THROUGHPUT":
            shapes.add(padded.shape)  # type: ignore[arg-type]
        return padded

    return known


@pytest.mark.parametrize("product", ["none", "of a constant", "of a gate"])
def test_a_gated_mlp_in_bfloat16_has_two_threads_a_stream(product: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one, OpenVINO ended the process when it compiled a Llama on a CPU with AMX."""
    openvino = import_openvino()
    op = openvino.opset13
    rows = op.parameter([-1, 64], np.float32, name="rows")

    def linear(states: Any, wide: int, width: int) -> Any:
        return op.matmul(states, op.constant(np.ones((width, wide), dtype=np.float32)), False, True)

    inner = op.swish(linear(rows, 64, 128))
    if product != "none":  # by a constant are the scales of int8
        other = linear(rows, 64, 128) if product == "of a gate" else op.constant(np.ones((1, 128), dtype=np.float32))
        inner = op.multiply(inner, other)
    graph = openvino.Model([linear(inner, 128, 64)], [rows], "mlp")
    core = SimpleNamespace(compile_model=lambda _, device, settings: settings)
    monkeypatch.setattr(
        "embedkit.encoders.openvino_backend.import_openvino", lambda: SimpleNamespace(Core=lambda: core)
    )
    assert compiled(graph, "bfloat16", 4, "THROUGHPUT").get("NUM_STREAMS") == (2 if product == "of a gate" else None)
    if product == "of a gate":
        with pytest.raises(RuntimeError, match="two threads or more"):
            compiled(graph, "bfloat16", 1, "LATENCY")
    else:
        assert compiled(graph, "bfloat16", 1, "LATENCY")["INFERENCE_NUM_THREADS"] == 1
