"""What the fuzzing found once stays mended, and the fuzzing itself sees what it is for."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from embedkit.errors import DataError
from tests import fuzz
from tests.fuzzing import edits
from tests.fuzzing.formats import FORMATS
from tests.fuzzing.watch import Watch

SEEDS: list[fuzz.Case] = [
    json.loads(line) for line in Path(__file__).with_name("fuzz_seeds.jsonl").read_text().splitlines()
]
WATCH = Watch(fuzz.CLEARING)


@pytest.mark.parametrize("name", sorted({case["format"] for case in SEEDS if "command" not in case}))
def test_what_was_found_once_is_mended(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "work" / "tmp"))
    (tmp_path / "bases" / name).mkdir(parents=True)
    FORMATS[name].make(tmp_path / "bases" / name)
    for case in SEEDS:
        if case["format"] == name and "command" not in case:
            assert fuzz.read_once(case, tmp_path / "bases", tmp_path / "work", WATCH) is None, case


def test_the_watch_sees_sockets_processes_and_writes_outside(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    doings = {
        "opens a socket": lambda: socket.socket(socket.AF_INET).close(),
        "starts a process": lambda: subprocess.run(["true"], check=True),
        "opens for writing outside": lambda: (tmp_path / "in" / "link").write_text("x"),
        "os.mkdir outside": (tmp_path / "made").mkdir,
        "os.remove outside": (tmp_path / "out").unlink,
    }
    for wanted, do in doings.items():
        WATCH.wake(tmp_path / "in")
        do()
        assert WATCH.sleep()[0].startswith(wanted)
    WATCH.wake(tmp_path / "in")
    (tmp_path / "in" / "f").write_text("x")
    (tmp_path / "in" / "f").read_text()
    os.stat("/")  # noqa: PTH116
    assert WATCH.sleep() == []


def test_endings_are_judged_as_the_command_line_judges_them() -> None:
    assert fuzz.judged(DataError("said.")) is None
    assert fuzz.judged(OSError(13, "no", "file")) is None
    assert fuzz.judged(MemoryError()) is None
    for defect in (ValueError("x"), OSError("without a file"), KeyError("k"), RecursionError()):
        assert type(defect).__name__ in str(fuzz.judged(defect))


@pytest.mark.parametrize("name", ["beir", "recipes", "vectors", "ledger", "checkpoint", "csv", "gz"])
def test_a_file_that_is_changed_in_one_place_says_the_rest_as_before(name: str, tmp_path: Path) -> None:
    """Every form reads and writes what embedkit wrote: without a change, its readers find the same; sealed again, it is whole."""
    FORMATS[name].make(tmp_path)
    for path in sorted(path for path in tmp_path.rglob("*") if path.suffix in edits.FORMS and path.is_file()):
        read, write = edits.FORMS[path.suffix]
        said: Any = read(path.read_bytes())
        path.write_bytes(write(said))
        assert read(path.read_bytes()) == said, path
    edits.reseal(tmp_path)
    import random

    FORMATS[name].read(tmp_path, random.Random(1))
