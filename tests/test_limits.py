"""Files that are no files, files that are too long, values that are too large to be written out."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from embedkit import limits
from embedkit.errors import DataError, UsageError
from embedkit.limits import SHOWN, open_regular, read_at_most, shown


def test_a_pipe_a_device_and_a_folder_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "pipe"), (Path("/dev/zero"), "device"), (tmp_path, "folder")):
        with pytest.raises(DataError, match=f"is a {kind}; expected a regular file"), open_regular(path, DataError):
            pass


def test_the_system_s_own_refusals_stay_its_own(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_at_most(tmp_path / "absent", 5)


def test_a_file_is_read_whole_up_to_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(file)
    assert read_at_most(tmp_path / "link", 5) == b"12345"
    with pytest.raises(UsageError, match="has more than 4 bytes"):
        read_at_most(file, 4)


def test_a_value_in_a_message_is_short_and_made_in_no_time() -> None:
    laughs: list[object] = ["l"] * 10
    for _ in range(12):  # 10^13 entries, written out
        laughs = [laughs] * 10
    start = time.process_time()
    assert max(len(shown(value)) for value in (laughs, "x" * 10**6, 10**5000, {"a": laughs})) <= SHOWN + 3
    assert time.process_time() - start < 5  # it would not end
    assert shown("short") == "'short'"


def test_the_page_lists_every_limit() -> None:
    page = Path(__file__).parents[1].joinpath("docs", "security.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| [^|]+ \| ([^|]+) \| `([A-Z_]+)` \|$", page, re.MULTILINE)
    listed = {name: _number(text) for text, name in found}
    assert listed == {name: value for name, value in vars(limits).items() if name.isupper() and isinstance(value, int)}


def _number(text: str) -> int:
    """ "16 MiB" -> 16 << 20."""
    number, unit = re.match(r"([\d,]+) ?([KMG]iB)?", text).groups()  # type: ignore[union-attr]
    return int(number.replace(",", "")) << {None: 0, "KiB": 10, "MiB": 20, "GiB": 30}[unit]
