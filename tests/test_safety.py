"""What a run must never do: open a socket, start another process, write into the home folder, or unpickle (conftest.py
watches the whole suite for that)."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from tests import conftest

PROGRAM = """
import sys
sys.modules["trio"] = None  # of selenium (extra dev); httpcore imports it where it is, and it asks ldconfig for a library
told = []
WATCHED = ("socket.", "os.fork", "os.exec", "os.posix_spawn", "subprocess.Popen", "ctypes.dlopen/never")
sys.addaudithook(lambda event, args: told.append(event) if event.startswith(WATCHED) else None)
from embedkit.cli.main import main
for line in {lines}:
    try:
        main(line)
    except SystemExit as end:
        assert not end.code, (line, end.code)
import embedkit
model = {model!r}
if model:
    embedkit.load(model, device="cpu").encode(["cat", "dog dog"])
print("TOLD", sorted(set(told)))
"""


def run(folder: Path, model: str, lines: list[list[str]]) -> str:
    """Runs the program as a user at home would: an empty home folder, and none of the variables that silence telemetry."""
    home = folder / "home"
    home.mkdir()
    silencing = ("CI", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "HF_HOME", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in silencing} | {"HOME": str(home)}
    program = PROGRAM.format(lines=lines, model=model)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert [path.relative_to(home).as_posix() for path in home.rglob("*")] == []
    return done.stdout.partition("TOLD ")[2].strip()


@pytest.mark.model
def test_a_default_run_opens_no_socket_starts_no_process_and_leaves_the_home_folder_alone(
    default_encoder: object, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"id": str(i), "text": f"text {i}"}) + "\n" for i in range(20)))
    lines = [
        ["embed", "corpus.jsonl", "-o", "rows.npy"],
        ["index", "build", "corpus.jsonl", "-o", "corpus.index"],
        ["search", "corpus.index", "which text?"],
    ]
    assert run(tmp_path, "", lines) == "[]"


def test_a_conversion_reports_to_nobody(make_model: object, tmp_path: Path) -> None:
    """OpenVINO's own telemetry posts on import and on conversion, from a forked process, and writes ~/intel."""
    pytest.importorskip("openvino")
    folder = make_model(pooling="max")  # type: ignore[operator]  # not one of the poolings that need no conversion
    assert run(tmp_path, str(folder), []) == "[]"


class Sentinel:
    """Something that only pickle's find_class brings back."""


def test_the_watch_sees_what_is_unpickled() -> None:
    before = len(conftest.UNPICKLED)
    pickle.loads(pickle.dumps(Sentinel()))  # noqa: S301
    assert "Sentinel" in conftest.UNPICKLED[-1]
    del conftest.UNPICKLED[before:]


def test_openvino_is_imported_in_one_place() -> None:
    """Whoever imports it first decides whether it reports to its maker."""
    sources = Path(__file__).parents[1].joinpath("embedkit").rglob("*.py")
    importing = [path.name for path in sources if "import openvino\n" in path.read_text()]
    assert importing == ["openvino_import.py"]
