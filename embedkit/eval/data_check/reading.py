"""Rows read so that a bad one is a finding and the next one is read all the same."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from embedkit.corpus.formats import RecordLines, file_rows, holds_a_row, open_bytes, raw_lines
from embedkit.eval.data_check.findings import Findings
from embedkit.types import is_unicode

BOM = "\ufeff"
# C0 and C1 without tab, line feed and carriage return; what is no character
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")
# the first byte of a UTF-8 sequence and what follows it, each read as Latin-1 or Windows-1252. Of those of two bytes only the
# frequent ones, without closing quotes and dashes behind them, which stand in texts as they are
SPECIALS = (
    "\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u2022\u2026\u2030\u2039\u203a\u20ac\u2122"
)
MOJIBAKE = re.compile(
    f"[\u00c2\u00c3][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2020-\u2022\u2030\u2039\u20ac\u2122]"
    f"|(?:[\u00d0\u00d1][\u0080-\u00bf{SPECIALS}]){{3}}|[\u00e2\u00e3\u00ef][\u0080-\u00bf{SPECIALS}]{{2}}|\u00f0[\u0080-\u00bf{SPECIALS}]{{3}}"
)
DAMAGES = {"control-characters": CONTROL, "replacement-character": re.compile("\ufffd"), "mojibake": MOJIBAKE}


class Placed(NamedTuple):
    line: int  # of the file, or the row, where the format has no lines
    row: dict[str, Any]


class Source(NamedTuple):
    """A file, and how it is called in findings."""

    path: Path
    name: str  # "qrels/test.tsv"

    @property
    def unit(self) -> str:
        return "row" if self.path.suffix == ".parquet" else "line"

    def at(self, line: int) -> str:
        return f"{self.name}, {self.unit} {line}"

    def rows(self, findings: Findings) -> Iterator[Placed]:
        """Every row that can be read; what cannot is a finding. Raises DataError for a file that is none at all, and for
        a line or a record longer than limits.LINE."""
        kind = "".join(self.path.suffixes[-2:] if self.path.suffix == ".gz" else self.path.suffixes[-1:])
        if kind.startswith((".jsonl", ".ndjson")):
            yield from self._json_rows(findings)
        elif kind.startswith((".tsv", ".csv")):
            yield from self._table_rows("\t" if kind.startswith(".tsv") else ",", findings)
        else:
            for number, (_, row) in enumerate(file_rows(self.path), 1):
                yield Placed(number, dict(row))

    def lines(self, findings: Findings) -> Iterator[tuple[int, str]]:
        with open_bytes(self.path) as stream:
            for number, raw in raw_lines(stream, str(self.path)):
                try:
                    text = raw.decode("utf-8")
                except UnicodeDecodeError:
                    findings.add("not-utf8", self.at(number), text := raw.decode("latin-1"))
                if number == 1 and text.startswith(BOM):
                    findings.add("byte-order-mark", self.name)
                    text = text.removeprefix(BOM)
                yield number, text

    def _json_rows(self, findings: Findings) -> Iterator[Placed]:
        for number, line in self.lines(findings):
            if line.isspace():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                yield Placed(number, row)
            else:
                findings.add("unreadable-row", self.at(number), line)

    def _table_rows(self, delimiter: str, findings: Findings) -> Iterator[Placed]:
        lines = RecordLines(self.lines(findings), str(self.path))
        table = csv.reader(lines, delimiter=delimiter)
        header: list[str] | None = None
        while True:
            try:
                values = next(table)
            except StopIteration:
                return
            except csv.Error as error:  # a carriage return within a line
                findings.add("unreadable-row", self.at(lines.number), str(error))
                values = []
            if header is None:
                header = values
            elif len(values) == len(header) and not any(holds_a_row(value, len(header)) for value in values):
                yield Placed(lines.number, dict(zip(header, values, strict=True)))
            elif values:  # not a blank line, and not several rows that a quotation mark joins
                findings.add("unreadable-row", self.at(lines.number), delimiter.join(values))
            lines.begins(table.line_num + 1)

    def rows_at(self, lines: Collection[int]) -> dict[int, dict[str, Any]]:
        """The rows of these lines, read once more."""
        wanted, found = set(lines), {}
        if wanted:
            for line, row in self.rows(Findings()):
                if line in wanted:
                    found[line] = row
                if line >= max(wanted):
                    break
        return found


def check_characters(text: str, where: str, findings: Findings) -> None:
    if text.isascii() and text.isprintable():
        return
    if not is_unicode(text):
        findings.add("control-characters", where, ascii(text))
        return
    for name, pattern in DAMAGES.items():
        if match := pattern.search(text):
            findings.add(name, where, text[max(0, match.start() - 25) : match.end() + 25].strip("\n"))
            return


def key_of(text: str) -> int:
    """64 bits; two of a million different texts have the same with probability 3e-8."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def text_key(text: str) -> int:
    """The same for texts that differ in white space only."""
    return key_of(" ".join(text.split()))
