"""Two processes are one with the whole batch. In processes of their own, because this one has threads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.train.test_trainer import rows
from tests.train.two_processes import RECIPES

ROOT = Path(__file__).parents[2]


def with_negatives_and_scores() -> list[dict[str, Any]]:
    """One to three negatives a row."""
    pairs = rows()
    texts = [row["negative"] for row in pairs]
    return [
        {"anchor": row["anchor"], "positive": row["positive"], "score": i * 7 % 11 / 10}
        | {f"negative_{m + 1}": texts[(i + 5 * m) % len(texts)] for m in range(1 + i % 3)}
        for i, row in enumerate(pairs)
    ]


@pytest.mark.long
def test_two_processes_train_as_one_does(tiny_model: Path, tmp_path: Path) -> None:
    """Losses and lengths of the gradients of ten steps, and gathered rows and their gradients."""
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(map(json.dumps, with_negatives_and_scores())))
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.two_processes", str(tiny_model), str(pairs), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr

    def logged(processes: str, name: str, what: str) -> list[float]:
        lines = (tmp_path / processes / name / "log.jsonl").read_text().splitlines()
        return [json.loads(line)[what] for line in lines]

    for name in RECIPES:
        losses = logged("one", name, "loss")
        assert len(set(losses)) == 10
        np.testing.assert_allclose(logged("two", name, "loss"), losses, atol=1e-5, rtol=0, err_msg=name)
        lengths = logged("one", name, "gradient_norm")
        np.testing.assert_allclose(logged("two", name, "gradient_norm"), lengths, rtol=1e-3, err_msg=name)
