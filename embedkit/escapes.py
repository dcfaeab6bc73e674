"""Texts of strangers on a terminal: characters that steer it, or that change the order of what is read, become visible escapes.

A document, an id, a file name or a model's name may hold them. Everything that the command line prints passes through
`EscapedStream`, every message of an error and every line of a log through `escaped`, so no caller has to remember.
"""

from __future__ import annotations

import re
from typing import Any

# C0 but tab and line feed, DEL, C1; line and paragraph separator; marks, embeddings, overrides and isolates of direction;
# interlinear annotations, tags (by which text hides in a text), and halves of surrogate pairs
STEERING = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff"
)
_STEERING = re.compile(f"[{STEERING}]")


def escaped(text: str, keep: str = "") -> str:
    """The text with steering characters as JSON writes them (\\u001b), so that JSON stays JSON of the same value. Tabs and line
    feeds stay, and what `keep` holds."""
    return _STEERING.sub(lambda found: found[0] if found[0] in keep else _as_json(found[0]), text)


_MARKUP = re.compile(r"[\\`*\[\]|!#~$]|(?<![^\W_])_|_(?![^\W_])")  # an underscore inside a word is one in Markdown, too


def as_markdown(text: str) -> str:
    """The text as itself in a heading, a table's cell or a line of Markdown: on one line, and no HTML, link, emphasis or code."""
    import html  # which reports alone need: a dictionary of 2,000 names

    marked = _MARKUP.sub(r"\\\g<0>", escaped(" ".join(text.split())))
    return html.escape(marked, quote=False)  # not every Markdown knows \<


def _as_json(character: str) -> str:
    code = ord(character)
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


class EscapedStream:
    """A text stream that escapes what is written to it, and what its encoding cannot hold (a Latin-1 terminal); all else is
    the stream's own. keep: what passes, such as the carriage return of progress bars."""

    def __init__(self, stream: Any, keep: str = "") -> None:
        self._stream, self._keep = stream, keep

    def write(self, text: str) -> int:
        shown = escaped(text, self._keep)
        encoding = self._stream.encoding or "utf-8"
        try:
            shown.encode(encoding)
        except UnicodeEncodeError:
            shown = "".join(one if _fits(one, encoding) else _as_json(one) for one in shown)
        self._stream.write(shown)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _fits(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
