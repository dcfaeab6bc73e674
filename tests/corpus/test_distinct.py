"""Ids that came before are found, in few bytes, and a false alarm fails no run."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedkit.corpus import distinct, read_corpus
from embedkit.corpus.distinct import DistinctIds
from embedkit.errors import DataError


def test_what_a_set_of_python_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distinct, "RECENT", 7)
    draw, found, expected = random.Random(0), DistinctIds(), set[str]()
    for _ in range(5000):
        identifier = str(draw.randrange(2500))
        assert found.add(identifier) == (identifier in expected)
        expected.add(identifier)


def test_memory_is_eight_bytes_a_row_and_never_over_sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distinct, "RECENT", 1024)
    rows = 64 * distinct.RECENT + 5  # just after the largest merge of all
    seen = DistinctIds()
    tracemalloc.start()
    try:
        for row in range(rows):
            seen.add(f"id {row}")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seen.nbytes == 8 * 64 * distinct.RECENT
    assert peak <= 16 * rows + 250_000  # the set of the newest is a constant


ROWS = [{"id": str(row), "text": "a"} for row in range(40)]
FORMS: dict[str, Callable[[Path], Any]] = {
    "file": lambda path: path,
    "list": lambda _: ROWS,
    "iterator": lambda _: iter(ROWS),
}


@pytest.mark.parametrize("form", FORMS)
def test_equal_hashes_of_different_ids_are_confirmed_where_rows_can_be_read_again(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alarms = []

    class Nervous(DistinctIds):
        def add(self, identifier: str) -> bool:
            alarms.append(identifier)
            return super().add(identifier) or identifier == "30"

    path = tmp_path / "c.jsonl"
    path.write_text("".join(f'{{"id": "{row["id"]}", "text": "a"}}\n' for row in ROWS))
    monkeypatch.setattr("embedkit.corpus.documents.DistinctIds", Nervous)
    documents = read_corpus(FORMS[form](path))
    if form == "iterator":  # cannot be read again
        with pytest.raises(DataError, match="row 31: the id '30' came before"):
            list(documents)
    else:
        assert [document.id for document in documents] == [row["id"] for row in ROWS]
    assert "30" in alarms


def test_a_duplicate_is_found_across_runs_after_the_rows_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distinct, "RECENT", 4)
    documents = read_corpus([*ROWS, {"id": "3", "text": "b"}])
    assert [next(documents).id for _ in ROWS] == [row["id"] for row in ROWS]
    with pytest.raises(DataError, match="row 41: the id '3' came before"):
        next(documents)
