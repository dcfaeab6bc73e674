"""No line, record, text or image is taken in beyond its limit, however it is packed, and nothing is nested without end."""

from __future__ import annotations

import gzip
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedkit import limits
from embedkit.corpus import Fields, formats, metadata, read_corpus
from embedkit.errors import DataError
from embedkit.types import Document

SMALL = 1000


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "LINE", 2 * SMALL)
    for module in (formats, metadata):
        monkeypatch.setattr(module, "TEXT", SMALL)


def refusal(source: Any) -> str:
    with pytest.raises(DataError) as error:
        list(read_corpus(source))
    return str(error.value)


class Endless(io.RawIOBase):
    """The same bytes for ever, as a packed file of a few bytes may hold them; it counts what is taken."""

    def __init__(self, start: bytes, content: bytes) -> None:
        self._pieces, self.taken = itertools.chain(start, itertools.cycle(content)), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = bytes(itertools.islice(self._pieces, min(len(buffer), 64)))
        buffer[: len(piece)] = piece
        self.taken += len(piece)
        return len(piece)


@pytest.mark.parametrize(
    ("read", "start", "content"),
    [
        (formats.jsonl_rows, b"", b"a"),
        (formats.csv_rows, b"", b"a"),
        (formats.tsv_rows, b"", b"a"),
        (formats.csv_rows, b'"', b"a\n"),  # a quotation mark left open
        (formats.csv_rows, b'"', b'\n","'),  # fields without end, none of them long
    ],
)
def test_a_stream_without_an_end_is_left_soon(read: Callable[..., Any], start: bytes, content: bytes) -> None:
    endless = Endless(start, content)
    with pytest.raises(DataError, match="the most that are read"):
        list(read(io.BufferedReader(endless, 64), "c"))
    assert endless.taken < 3 * SMALL


LONG = "é" * (SMALL // 2 + 1)  # more bytes than SMALL, and fewer characters
FORMS: dict[str, Callable[[Path], Any]] = {
    "jsonl": lambda tmp: written(tmp / "c.jsonl", json.dumps({"id": "a", "text": LONG}, ensure_ascii=False)),
    "jsonl.gz": lambda tmp: packed(tmp / "c.jsonl.gz", json.dumps({"id": "a", "text": LONG}, ensure_ascii=False)),
    "csv": lambda tmp: written(tmp / "c.csv", f"id,text\na,{LONG}\n"),
    "tsv": lambda tmp: written(tmp / "c.tsv", f"id\ttext\na\t{LONG}\n"),
    "txt": lambda tmp: written(tmp / "c.txt", LONG),
    "txt of many lines": lambda tmp: written(tmp / "c.txt", "line\n" * SMALL),
    "txt.gz": lambda tmp: packed(tmp / "c.txt.gz", "line\n" * SMALL),
    "parquet": lambda tmp: parquet(tmp / "c.parquet"),
    "frame": lambda _: frame(),
    "strings": lambda _: [LONG],
    "rows": lambda _: [{"id": "a", "text": LONG}],
    "bytes": lambda _: [{"id": "a", "text": LONG.encode()}],
    "documents": lambda _: [Document("a", LONG)],
    "a title": lambda _: [{"id": "a", "text": "", "title": LONG}],
    "an id": lambda _: [{"id": LONG, "text": ""}],
    "metadata": lambda _: [{"id": "a", "text": "", "m": {"n": [LONG]}}],
    "a name": lambda _: [{"id": "a", "text": "", LONG: 1}],
}


def written(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def packed(path: Path, content: str) -> Path:
    path.write_bytes(gzip.compress(content.encode()))
    return path


def parquet(path: Path) -> Path:
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"id": ["a"], "text": [LONG]}), path)
    return path


def frame() -> Any:
    import pandas

    return pandas.DataFrame({"id": ["a"], "text": [LONG]})


@pytest.mark.parametrize("form", FORMS)
def test_a_text_beyond_the_limit_is_refused_in_a_short_sentence(form: str, tmp_path: Path) -> None:
    message = refusal(FORMS[form](tmp_path))
    assert "1,000" in message or "2,000" in message
    assert len(message) < SMALL + 300


def test_texts_that_are_joined_count_together() -> None:
    row = {"id": "a", "text": "x" * 600, "body": "y" * 600}
    with pytest.raises(DataError, match="1,201 bytes, and at most 1,000"):
        list(read_corpus([row], Fields(text=("text", "body"))))


def test_a_text_at_the_limit_is_read(tmp_path: Path) -> None:
    text = "é" * (SMALL // 2)
    for path in (written(tmp_path / "c.txt", text), written(tmp_path / "c.csv", f"id,text\na,{text}\n")):
        assert [document.text for document in read_corpus(path)] == [text]


def nested(levels: int, kind: str) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value] if kind == "list" else {"a": value}
    return value


@pytest.mark.parametrize("kind", ["list", "dict"])
def test_metadata_is_nested_as_deep_as_json_from_strangers_may_be(kind: str, tmp_path: Path) -> None:
    deepest = {"id": "a", "text": "t", "x": nested(limits.NESTED, kind)}
    assert next(read_corpus([deepest])).metadata == {"x": deepest["x"]}
    for levels in (limits.NESTED + 1, 200):
        path = written(tmp_path / "c.jsonl", json.dumps({"id": "a", "text": "t", "x": nested(levels, kind)}))
        assert refusal(path).startswith(f"{path}, line 1: the field 'x' is nested more than 50 levels")


def test_a_name_that_stands_twice_in_an_object_is_refused(tmp_path: Path) -> None:
    for row in ('{"id": "a", "text": "one", "text": "two"}', '{"id": "a", "text": "t", "m": {"k": 1, "k": 1}}'):
        path = written(tmp_path / "c.jsonl", row)
        assert "stands twice" in refusal(path)
    assert "the name '1' stands twice" in refusal([{"id": "a", "text": "t", 1: "x", "1": "y"}])


@pytest.mark.parametrize("value", [nested(200, "list"), "x" * 5000, 10**400, {"k": "x" * 5000}])
def test_what_came_is_shown_in_a_few_characters(value: Any) -> None:
    row = {"id": value, "text": "t"} if not isinstance(value, str) else {"id": "a\n" + value, "text": "t"}
    if not isinstance(value, int):
        assert len(refusal([row])) < 300
    if not isinstance(value, str):
        assert len(refusal([{"id": "a", "text": value}])) < 300
