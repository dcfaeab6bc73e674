"""The judged half of a BEIR folder: queries and qrels."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embedkit.corpus.documents import Fields, read_corpus
from embedkit.corpus.formats import decoded_lines, open_bytes
from embedkit.errors import DataError, UsageError

Qrels = dict[str, dict[str, int]]  # query id -> document id -> grade


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

    Raises UsageError when the folder has no such split, DataError for a file without header or a grade that is no
    whole number (trec_eval and BEIR would cut it without a word).
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
    return read_qrels_file(find(folder / "qrels", f"{split}.tsv"))


def read_qrels_file(path: Path) -> Qrels:
    """The judgements of a TSV with the header `query-id corpus-id score`. Raises what `read_qrels` raises."""
    if not path.is_file():
        raise UsageError(f"{path} is not there; expected a tsv with the header query-id, corpus-id, score.")
    qrels: Qrels = {}
    with open_bytes(path) as stream:
        lines = (text for _, text in decoded_lines(stream, str(path)))
        table = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        for number, columns in enumerate(_whole(table, path), 1):
            if number == 1 and len(columns) == 3 and _grade(columns[2]) is not None:
                raise DataError(
                    f"{path}, line 1: data came, a header was expected; put 'query-id<TAB>corpus-id<TAB>score' above it."
                )
            if number == 1 or not columns:
                continue
            grade = _grade(columns[2]) if len(columns) == 3 else None
            if grade is None:
                raise DataError(
                    f"{path}, line {number}: {columns} came; expected query id, document id and a whole number, with tabs between."
                )
            qrels.setdefault(columns[0], {})[columns[1]] = grade
    if not qrels:
        raise DataError(f"{path} holds no judgements; expected at least one row below the header.")
    return qrels


def _whole(table: Any, path: Path) -> Iterator[list[str]]:
    try:
        yield from table
    except csv.Error as error:
        raise DataError(f"{path}, line {table.line_num}: {error}; end each line with a line feed.") from None


def _grade(text: str) -> int | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value.is_integer() else None
