"""The judged half of a BEIR folder: queries and qrels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from embedkit.corpus.documents import Fields, read_corpus
from embedkit.corpus.formats import decoded_lines, finite_number, open_bytes
from embedkit.errors import DataError, UsageError
from embedkit.limits import GRADE, shown

Qrels = dict[str, dict[str, int]]  # query id -> document id -> grade
NAMES = ("query-id", "corpus-id", "score")  # in the header of BEIR's files


class Layout(NamedTuple):
    """How a line of judgements is written."""

    cells: Callable[[str], list[str]]
    width: int
    order: Sequence[int]  # the columns of query, document and grade
    expected: str


TREC = Layout(str.split, 4, (0, 2, 3), "query id, iteration, document id and a whole number")


def read_queries(path: Path) -> dict[str, str]:
    """query id -> text, of a jsonl, csv, tsv or parquet file in the corpus layout."""
    return {query.id: query.full_text for query in read_corpus(path, Fields())}


def find(folder: Path, name: str) -> Path:
    """`name` in the folder, or the same as .gz. Raises UsageError when neither is there."""
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.exists():
            return candidate
    raise UsageError(
        f"{folder} is no BEIR folder: {name} (or {name}.gz) is missing; expected corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv."
    )


def read_qrels(folder: Path, split: str) -> Qrels:
    """The judgements of one split: a TSV with the header `query-id corpus-id score`.

    Raises UsageError when the folder has no such split, and what `qrels_of` raises.
    """
    files = sorted(
        {
            path.name.removesuffix(".gz").removesuffix(".tsv")
            for path in (folder / "qrels").glob("*.tsv*")
            if path.name.endswith((".tsv", ".tsv.gz"))
        }
    )
    if split not in files:
        raise UsageError(
            f"{folder} has no judgements for the split {split!r}; it has {', '.join(files) or 'none'}: choose with --split."
        )
    return qrels_of(find(folder / "qrels", f"{split}.tsv"))


def qrels_of(path: Path) -> Qrels:
    """The judgements of one file: a TSV with a header and three columns, or TREC's four (query, iteration, document, grade).

    Raises DataError for a TSV without header, a row of other columns, an id with a blank at an end, which nothing would ever
    match, a grade that is no whole number or beyond GRADE, a pair that is judged twice with two grades.
    """
    qrels: Qrels = {}
    with open_bytes(path) as stream:
        rows: Iterator[tuple[int, str]]
        rows = ((number, line.rstrip("\r\n")) for number, line in decoded_lines(stream, str(path)) if line.strip())
        number, first = next(rows, (1, ""))
        columns = first.split()
        if len(columns) == TREC.width and finite_number(columns[-1]) is not None:
            layout, rows = TREC, itertools.chain([(number, first)], rows)
        else:
            layout = _layout_of(first, f"{path}, line {number}")
        for number, line in rows:
            query, document, grade = _judgement(line, layout, path, number)
            if qrels.setdefault(query, {}).setdefault(document, grade) != grade:
                raise DataError(
                    f"{path}, line {number}: {document!r} was judged {qrels[query][document]} for {query!r} before, and now "
                    f"{grade}; keep the one that holds."
                )
    if not qrels:
        raise DataError(f"{path} holds no judgements; expected at least one row below the header.")
    return qrels


def _layout_of(header: str, where: str) -> Layout:
    columns = tabbed(header)
    if len(columns) == len(NAMES) and finite_number(columns[2]) is not None:
        raise DataError(f"{where}: data came, a header was expected; put 'query-id<TAB>corpus-id<TAB>score' above it.")
    expected = "query id, document id and a whole number, with tabs between"
    return Layout(tabbed, len(NAMES), header_order(columns), expected)


def tabbed(line: str) -> list[str]:
    return line.split("\t")


def header_order(columns: Sequence[str]) -> Sequence[int]:
    """The columns of query, document and grade: by their names where the header has BEIR's, in this order where it has others."""
    names = [name.strip().lower() for name in columns]
    return tuple(map(names.index, NAMES)) if sorted(names) == sorted(NAMES) else (0, 1, 2)


def is_matchable(identifier: str) -> bool:
    """Whether an id has no blank at an end and no line end within: one that has is the id of nothing."""
    return identifier == identifier.strip() != "" and "\r" not in identifier


def _judgement(line: str, layout: Layout, path: Path, number: int) -> tuple[str, str, int]:
    columns = layout.cells(line)
    value = finite_number(columns[layout.order[2]]) if len(columns) == layout.width else None
    if value is None or not value.is_integer():
        raise DataError(f"{path}, line {number}: {shown(columns)} came; expected {layout.expected}.")
    query, document, grade = [columns[place] for place in layout.order]
    if not (is_matchable(query) and is_matchable(document)):
        raise DataError(
            f"{path}, line {number}: the ids {query!r} and {document!r} came; remove the blanks around them, with which they "
            f"match nothing."
        )
    if abs(value) > GRADE:
        raise DataError(
            f"{path}, line {number}: the grade {shown(grade)} came; expected at most {GRADE:,} above or below 0, since "
            f"trec_eval's time grows with its square. Is it the right column?"
        )
    return query, document, int(value)
