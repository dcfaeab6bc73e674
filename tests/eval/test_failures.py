"""The worst answers of a task: which they are, in which order, and what is shown of them."""

from __future__ import annotations

from embedkit.eval.failures import CUT, WORST, cut, furthest_off, worst_pairings, worst_queries
from embedkit.types import Judged, Report

QRELS = {"good": {"a": 1}, "late": {"a": 2, "b": 1}, "lost": {"c": 1}, "none": {"a": 1}}
RUN = {
    "good": {"a": 0.9, "b": 0.1},
    "late": {"x": 0.9, "y": 0.8, "b": 0.7, "a": 0.7},  # of equal scores the larger id is first, as in trec_eval
    "lost": {"x": 0.5},
}
QUERIES = {query: f"text of {query}" for query in QRELS}


def test_the_lowest_are_first_and_of_equal_ones_those_found_later() -> None:
    values = {"good": 1.0, "late": 0.0, "lost": 0.0, "none": 0.5}
    failures = worst_queries(values, QRELS, RUN, QUERIES, lambda ids: {one: one.upper() for one in ids if one != "y"})
    assert [one.unit for one in failures] == ["lost", "late", "none"]
    late = failures[1]
    assert late.expected == (Judged("a", "A", 2, 4, 0.7), Judged("b", "B", 1, 3, 0.7))
    assert late.found[:2] == (Judged("x", "X", None, 1, 0.9), Judged("y", "", None, 2, 0.8))
    assert failures[0].expected == (Judged("c", "C", 1, None, None),)
    assert (failures[2].found, failures[2].value, failures[2].text) == ((), 0.5, "text of none")


def test_only_the_texts_that_are_shown_are_asked_for_and_all_is_bounded() -> None:
    many = {f"q{n:03}": {"d": 1} for n in range(100)}
    found = {query: {f"x{n}": -n for n in range(100)} for query in many}
    asked: list[set[str]] = []
    texts = lambda ids: asked.append(set(ids)) or {"d": "long " * 1000}  # noqa: E731
    failures = worst_queries(dict.fromkeys(many, 0.0), many, found, {}, texts)
    assert asked == [{"d", "x0", "x1", "x2", "x3", "x4"}]
    assert len(failures) == WORST
    assert len(failures[0].expected[0].text) <= CUT


def test_the_surest_wrong_translation_is_first() -> None:
    found = [{"corpus_id": 1, "score": 0.2}, {"corpus_id": 0, "score": 0.9}, {"corpus_id": 2, "score": 0.99}]
    failures = worst_pairings(["eins", "zwei", "drei"], ["one", "two", "three"], found)
    assert [one.text for one in failures] == ["zwei", "eins"]
    assert failures[0].expected[0].text == "two"
    assert failures[0].found[0] == Judged("0", "one", None, 1, 0.9)


def test_pairs_are_furthest_off_by_their_share_of_lower_ones() -> None:
    predictions = {"a": (0.0, 0.9), "b": (1.0, 0.1), "c": (2.0, 0.2), "d": (3.0, 0.3)}
    report = Report({}, {}, {}, {}, "spearman", "pair", predictions)
    first, *others = furthest_off(report)
    assert first == ("a", 0.0, 0.9, 0.0, 1.0)  # lowest of four by truth, highest by cosine
    assert {unit: round(truth - score, 6) for unit, _, _, truth, score in others} == dict.fromkeys("bcd", 0.333333)
    assert furthest_off(Report({}, {}, {}, {}, predictions={"a": (0.0, 0.9)})) == []


def test_a_text_is_cut_to_one_line() -> None:
    assert cut(" a\n b ") == "a b"
    assert cut("abcdef", 4) == "abc…"
    assert cut("one two three four five", 20) == "one two three four…"
