"""Streams that are closed or narrow, and what a stranger's text may do to a terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import embedkit
from embedkit.storage import read_json, write_json
from embedkit.types import Document

from .conftest import Run

STEERING = "\x1b]0;T\x07\x9b31m\u202egnp.exe\r"
SHOWN = r"\u001b]0;T\u0007\u009b31m\u202egnp.exe\u000d"


@pytest.fixture
def hostile_index(tmp_path: Path, word_counts: object) -> Path:
    documents = [Document(id=f"evil\x1b[31m{n}", text=f"cat {STEERING}", title=STEERING) for n in range(2)]
    embedkit.build_index(documents, tmp_path / "x", model=word_counts).close()
    return tmp_path / "x"


def test_a_search_shows_what_steers_and_its_json_means_the_same(run: Run, hostile_index: Path) -> None:
    for arguments in ([], ["--json"]):
        done = run("search", hostile_index, "--like", "evil\x1b[31m0", "-k", 1, *arguments)
        assert done.code == 0, done
        assert r"evil\u001b[31m1" in done.out
        assert not set(done.out) & set("\x1b\x07\x9b\u202e\r")
    (hit,) = json.loads(done.out)["hits"]
    assert (hit["id"], hit["title"], hit["text"]) == ("evil\x1b[31m1", STEERING, f"cat {STEERING}")


def test_what_an_index_says_of_itself_is_shown_too(run: Run, hostile_index: Path) -> None:
    path = hostile_index / "manifest-000001.json"
    write_json(path, {**read_json(path), "created": STEERING})
    for arguments in ([], ["--json"]):
        done = run("index", "info", hostile_index, *arguments)
        assert done.code == 0 and r"\u009b31m\u202egnp.exe" in done.out
        assert not set(done.out) & set("\x1b\x07\x9b\u202e\r")


def test_names_of_files_and_the_log_are_shown_too(run: Run, tmp_path: Path) -> None:
    said = run("embed", f"no{STEERING}.jsonl", "-o", tmp_path / "o.npy").sentence(2)
    assert SHOWN in said
    said = run("index", "build", f"no{STEERING}.npy", "-o", tmp_path / "x", "--log", tmp_path / "log").sentence(2)
    assert not set((tmp_path / "log").read_text()) & set("\x1b\x9b\u202e")
    said = run("search", tmp_path, f"--no{STEERING}").err  # click refuses it, in escapes of its own
    assert "--no" in said
    assert not set(said) & set("\x1b\x07\x9b\u202e\r")


COMMANDS = {  # name -> (arguments, redirection, exit code)
    "embed without standard error": ("index build v.npy -o x.index", "2>&-", 0),
    "without any stream": ("index build v.npy -o x.index", "<&- >&- 2>&-", 0),
    "rows from no standard input": ("embed - -o o.npy", "<&-", 2),
    "ids from no standard input": ("index delete kept.index --ids -", "<&-", 2),
    "a narrow terminal": ("index info kept.index", "", 0),
}


@pytest.mark.parametrize(("arguments", "redirection", "code"), COMMANDS.values(), ids=COMMANDS)
def test_streams_that_are_closed_or_narrow(tmp_path: Path, arguments: str, redirection: str, code: int) -> None:
    np.save(tmp_path / "v.npy", np.eye(3, dtype=np.float32))
    embedkit.build_index(tmp_path / "v.npy", tmp_path / "kept.index").close()
    program = "from embedkit.cli.main import main; main()"
    line = f'exec "$0" -c "{program}" {arguments} {redirection}'
    done = subprocess.run(
        ["sh", "-c", line, sys.executable],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    if code:
        assert done.stderr == (
            "Error: Standard input is closed; give it something to read, or name a file instead of '-'.\n"
        )
    elif "build" in arguments:
        assert len(embedkit.open_index(tmp_path / "x.index")) == 3
