"""Memory that really runs out: a process whose address space is limited, and batches that do not fit into it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource
import numpy as np
import embedkit
texts = [f"some words number {i} " + "and more words " * 60 for i in range(600)]
encoder = embedkit.load(backend="BACKEND", batch_tokens=200_000, dtype="float32", threads=2)
encoder.encode(texts[:2])
used = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (used + 600_000_000, -1))
(encoded,) = encoder.encode_windows([texts])
assert encoded.halvings and not encoded.failed and len(encoded.rows) == 600, encoded
expected = embedkit.load(backend="BACKEND", dtype="float32", threads=2).encode(texts[:40])
np.testing.assert_allclose(encoded.rows[:40], expected, atol=1e-6)
"""


@pytest.mark.model
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc and limits the address space")
@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_batches_are_halved_and_the_rows_are_right(default_encoder: object, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("BACKEND", backend)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
