"""Labels and scores of every type that JSON, a table or parquet may give."""

from __future__ import annotations

from typing import Any

import pytest

from embedkit.corpus.labels import class_label, pair_label, read, score
from embedkit.errors import DataError

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("value", "as_score", "as_pair_label", "as_class"),
    [
        (0, 0.0, 0, "0"),
        (1.0, 1.0, 1, "1"),
        ("1.0", 1.0, 1, "1.0"),
        ("0", 0.0, 0, "0"),
        (True, None, 1, "True"),
        (0.9, 0.9, None, None),
        (-1, -1.0, None, "-1"),
        (2, 2.0, None, "2"),
        ("joy", None, None, "joy"),
        (1e6, 1e6, None, "1000000"),
        (1e7, None, None, "10000000"),
        (10**400, None, None, f"1{'0' * 400}"),
        *[(value, None, None, None) for value in (None, NAN, INF, -INF, "", " ", [], {}, [1], b"1")],
    ],
)
def test_what_a_value_may_be(value: Any, as_score: Any, as_pair_label: Any, as_class: Any) -> None:
    assert (score(value), pair_label(value), class_label(value)) == (as_score, as_pair_label, as_class)


@pytest.mark.parametrize("text", ["nan", "inf", "-Infinity", "1e999"])
def test_words_that_python_takes_for_numbers_are_no_scores(text: str) -> None:
    assert score(text) is pair_label(text) is None


def test_what_cannot_be_is_named_with_its_place() -> None:
    assert read(score, "4.5", "score", "a.tsv, line 2") == 4.5
    with pytest.raises(DataError, match=r"^a\.tsv, line 7: score is nan; expected a finite number, at most 1,000,000 "):
        read(score, NAN, "score", "a.tsv, line 7")
    with pytest.raises(DataError, match=r"line 1: label is 0\.9; expected 0 or 1\.$"):
        read(pair_label, 0.9, "label", "line 1")
    with pytest.raises(DataError, match=r"line 1: label is None; expected a text or a whole number\.$"):
        read(class_label, None, "label", "line 1")
