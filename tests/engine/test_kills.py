"""A sample of what `tests/kills.py` does in full: real processes, killed at any moment."""

from __future__ import annotations

import random
from pathlib import Path

from tests.kills import attack, plan


def test_a_killed_job_ends_with_the_bytes_of_an_uninterrupted_one(tmp_path: Path) -> None:
    found = attack(tmp_path, fake=4, real=0, seed=7)
    assert found["fake: kills"] == 4
    assert found["fake: hit in the writing"] + found["fake: hit in the publication"] > 0
    assert {name for name in found if "different" in name or "exit code" in name} == set()
    assert found["fake: same"] > 0


def test_a_plan_spends_all_kills() -> None:

    assert [sum(plan(kills, random.Random(0))) for kills in (0, 1, 5, 180)] == [0, 1, 5, 180]
