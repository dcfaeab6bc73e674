"""Two processes are one with the whole batch. In a process of their own, because this one has threads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.train.test_trainer import rows

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_two_processes_train_as_one_does(tiny_model: Path, tmp_path: Path) -> None:
    """Losses of ten steps, gathered rows of every denominator and their gradients."""
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(map(json.dumps, rows())))
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.two_processes", str(tiny_model), str(pairs), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr

    def losses(name: str) -> list[float]:
        return [json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]

    assert len(losses("one")) == 10
    np.testing.assert_allclose(losses("two"), losses("one"), atol=1e-5)
    assert len(set(losses("one"))) == 10
