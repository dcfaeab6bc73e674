"""Real processes: signals and a closed pipe. They run side by side, for each takes seconds to import torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Finished, Run, listing, write_jsonl

# SIGINT is ignored by what runs in the background of some shells
CODE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom embedkit.cli.main import main; main()"
ROWS = 6500  # three windows, for an encoder reads ahead, so that some are embedded when the signal comes
CORPUS = [{"_id": str(row), "text": f"cat {row}"} for row in range(ROWS)]
PATIENCE = 120  # seconds


def start(*arguments: object, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CODE, *map(str, arguments)]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # three at once on few cores
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.PIPE, text=True, env=alone)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, index: Path
) -> Iterator[dict[str, tuple[Finished, Path]]]:
    """What three commands left behind: two that were stopped over a slow standard input, one whose reader went away."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("SIGINT", "SIGTERM", "pipe")}
    processes = {
        name: start("embed", "-", "-o", folders[name] / "x.npy", "--model", tiny_model, "--log", folders[name] / "log")
        for name in ("SIGINT", "SIGTERM")
    }
    reader, writer = os.pipe()
    os.close(reader)
    processes["pipe"] = start("search", index, "red cat", stdout=writer)
    os.close(writer)
    try:
        for name in ("SIGINT", "SIGTERM"):
            stdin = processes[name].stdin
            assert stdin is not None
            stdin.write("".join(json.dumps(row) + "\n" for row in CORPUS))
            stdin.flush()  # and it stays open, as of a producer that has not come to its end
        for name in ("SIGINT", "SIGTERM"):
            wait_for_rows(folders[name] / "log", processes[name])
            processes[name].send_signal(getattr(signal, name))
        yield {name: (end(process), folders[name]) for name, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()


def wait_for_rows(log: Path, process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + PATIENCE
    while not (log.exists() and '"rows": 2048' in log.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.05)


def end(process: subprocess.Popen[str]) -> Finished:
    code = process.wait(PATIENCE)  # standard input is still open: a thread may sit in the midst of reading from it
    out, err = process.communicate()
    return Finished(code, out or "", err)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_stopped_command_ends_with_exit_code_75_and_goes_on_with_resume(
    finished: dict[str, tuple[Finished, Path]], name: str, run: Run, tiny_model: Path
) -> None:
    done, folder = finished[name]
    assert "Stopped; what is done is kept: run it again with --resume to go on." in done.sentence(75)
    assert listing(folder) == {"log", "x.npy.partial", "x.ledger"}
    corpus = write_jsonl(folder / "corpus.jsonl", CORPUS)
    again = run("embed", corpus, "-o", folder / "x.npy", "--model", tiny_model, "--resume", "--log", folder / "log")
    assert again.code == 0, again
    assert listing(folder) == {"log", "corpus.jsonl", "x.npy", "x.ids.txt", "x.manifest.json"}
    assert (folder / "x.ids.txt").read_text().split() == [str(row) for row in range(ROWS)]
    manifest = json.loads((folder / "x.manifest.json").read_text())
    assert (manifest["count"], manifest["documents"], manifest["set_aside"]) == (ROWS, ROWS, 0)


def test_a_search_whose_reader_went_away_ends_quietly(finished: dict[str, tuple[Finished, Path]]) -> None:
    done, _ = finished["pipe"]
    assert done.code == 0
    assert "Traceback" not in done.err
    assert "Error" not in done.err
