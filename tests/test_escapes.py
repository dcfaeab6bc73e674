"""What steers a terminal, by the table of the Unicode database, never passes; JSON stays JSON of the same value."""

from __future__ import annotations

import io
import json
import sys
import unicodedata

import pytest

from embedkit.errors import DataError
from embedkit.escapes import EscapedStream, escaped

STEERING_CATEGORIES = {"Cc", "Cs", "Zl", "Zp"}  # controls, halves of surrogates, line and paragraph separators
DIRECTIONS = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}


def test_every_character_that_steers_is_escaped_and_every_letter_stays() -> None:
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        steers = unicodedata.category(character) in STEERING_CATEGORIES and character not in "\t\n"
        if steers or unicodedata.bidirectional(character) in DIRECTIONS:
            assert escaped(character).startswith("\\u"), f"U+{code:04X}"
        elif unicodedata.category(character)[0] in "LMNPS":
            assert escaped(character) == character, f"U+{code:04X}"


def test_an_escaped_json_means_the_same() -> None:
    value = {"a\x1b": "\x9b31m\u202e\u2028 tag \U000e0041 DEL \x7f é 😀 \t\n"}
    shown = escaped(json.dumps(value, ensure_ascii=False))
    assert json.loads(shown) == value
    assert not set(shown) & set("\x1b\x9b\u202e\u2028\x7f\U000e0041")


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("utf-8", "café ☃ \\u001b[2J"), ("latin-1", "café \\u2603 \\u001b[2J"), ("ascii", "caf\\u00e9 \\u2603 \\u001b[2J")],
)  # fmt: skip
def test_a_stream_escapes_what_steers_and_what_its_encoding_lacks(encoding: str, shown: str) -> None:
    bytes_written = io.BytesIO()
    stream = EscapedStream(io.TextIOWrapper(bytes_written, encoding=encoding))
    assert stream.write("café ☃ \x1b[2J") == 11
    stream.flush()
    assert bytes_written.getvalue().decode(encoding) == shown


def test_a_carriage_return_passes_where_it_is_kept_alone() -> None:
    written = io.StringIO()
    EscapedStream(written, keep="\r").writelines(["\r50 %", "\x1b[A"])
    EscapedStream(written).write("\r")
    assert written.getvalue() == "\r50 %\\u001b[A\\u000d"


def test_the_message_of_an_error_is_escaped() -> None:
    assert str(DataError("no\x1b[31m.jsonl is not there")) == "no\\u001b[31m.jsonl is not there"
