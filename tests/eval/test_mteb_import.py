"""The first import of mteb leaves the home folder alone, and mteb's own default where it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import inspect, os
from embedkit.eval.mteb_import import import_mteb
mteb = import_mteb()
assert import_mteb() is mteb
print(inspect.signature(mteb.evaluate).parameters["cache"].default.cache_path, os.environ.get("MTEB_CACHE"))
"""


@pytest.mark.long
@pytest.mark.parametrize("asked", [None, "own"])
def test_nothing_is_made_in_the_home_folder(tmp_path: Path, asked: str | None) -> None:
    own = str(tmp_path / "own")
    environment = {name: value for name, value in os.environ.items() if name != "MTEB_CACHE"}
    environment |= {"HOME": str(tmp_path)} | ({} if asked is None else {"MTEB_CACHE": own})
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    expected = f"{tmp_path}/.cache/mteb None" if asked is None else f"{own} {own}"
    assert done.stdout.split("\n")[0] == expected, done.stderr
    assert list(tmp_path.iterdir()) == []
