"""Every operation of a small job fails once, or is the last before the power goes: resumed, it ends with the same bytes."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import embedkit.engine.run as run
from embedkit.engine import embed_to_file
from embedkit.errors import Stopped
from embedkit.types import Document

from ..faults import Disk, SimulatedCrash
from .fakes import Windowed
from .test_job import contents

ROWS = [
    *[Document(f"d{n}", f"{n}") for n in range(5)],
    Document("odd", "bad"),
    Document("long", "x" * 30),
    Document("last", "y"),
]
JOBS: dict[str, dict[str, Any]] = {
    "npy": {"name": "x.npy", "on_long": "chunk"},
    "parquet": {"name": "x.parquet", "on_long": "truncate"},
    "overwrite by int8": {"name": "x.npy", "on_long": "truncate", "overwrite": True, "precision": "int8"},
}


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "WINDOW", 3)


class Case:
    """A job in a folder of its own, begun in the same state each time."""

    def __init__(self, folder: Path, name: str, overwrite: bool = False, **options: Any) -> None:
        self.folder, self.path, self.options, self.overwrite = folder, folder / name, options, overwrite
        self.whole: dict[str, Any] = {}
        self.lay_out()
        with Disk(folder).watched() as disk:
            self.start()
        self.whole, self.operations, self.log = contents(folder), disk.count, disk.log

    def lay_out(self) -> None:
        """What stands there before: nothing, or an older output of several more files."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        if self.overwrite:
            with Disk(self.folder).watched():
                embed_to_file(
                    [Document("old", "bad"), Document("o2", "z" * 30)], self.path, Windowed(), on_long="chunk"
                )

    def start(self) -> None:
        embed_to_file(ROWS, self.path, Windowed(), overwrite=self.overwrite, **self.options)

    def resume(self) -> None:
        embed_to_file(ROWS, self.path, Windowed(), resume=True, **self.options)

    def end_well(self) -> None:
        """What a user does: run it again with --resume; an old output that was never begun to be replaced, as at first."""
        with Disk(self.folder).watched():
            if self.overwrite and not (self.folder / "x.ledger").exists() and contents(self.folder) != self.whole:
                self.start()
            else:
                self.resume()
        assert contents(self.folder) == self.whole


@pytest.fixture(params=JOBS)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return Case(tmp_path / "job", **JOBS[request.param])


def at(number: int, error: Callable[[], BaseException]) -> Callable[[int], BaseException | None]:
    return lambda k: error() if k == number else None


def fails(code: int) -> Callable[[], OSError]:
    return lambda: OSError(code, os.strerror(code))


def test_the_layer_sees_every_kind_of_operation(case: Case) -> None:
    kinds = {line.split()[0] for line in case.log}
    assert kinds == {"create", "write", "fsync", "truncate", "rename", "unlink"}
    assert case.operations > 40


@pytest.mark.long
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_an_operation_that_fails_is_a_clean_error_and_the_job_goes_on(case: Case, code: int) -> None:
    for k in range(case.operations):
        case.lay_out()
        expected = OSError if code == errno.EIO else Stopped
        with Disk(case.folder, at(k, fails(code))).watched(), pytest.raises(expected) as error:
            case.start()
        if code != errno.EIO:
            assert error.value.exit_code == 75  # type: ignore[attr-defined]
            assert "The disk is full" in str(error.value)
        case.end_well()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2))
def test_a_crash_in_any_operation_costs_nothing_but_time(case: Case, seed: int) -> None:
    for k in range(case.operations):
        case.lay_out()
        disk = Disk(case.folder, at(k, SimulatedCrash))
        with disk.watched(), pytest.raises(SimulatedCrash):
            case.start()
        disk.crash(random.Random(1000 * seed + k))
        case.end_well()


@pytest.mark.long
def test_a_crash_in_any_operation_of_a_resumed_run_and_of_the_one_after(case: Case) -> None:
    draw = random.Random(0)
    for k in range(case.operations):
        case.lay_out()
        for run_of_three in range(3):
            disk = Disk(case.folder, at(k if run_of_three == 1 else draw.randrange(case.operations), SimulatedCrash))
            again = run_of_three and (case.folder / "x.ledger").exists()
            try:
                with disk.watched():
                    case.resume() if again or contents(case.folder) == case.whole else case.start()
            except SimulatedCrash:
                disk.crash(draw)
        case.end_well()
        assert contents(case.folder) == case.whole
