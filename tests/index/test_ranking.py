"""Ranking, against slow loops over plain lists."""

from __future__ import annotations

import numpy as np
import pytest

from embedkit.index.ranking import Ranked, best_of, cut, grouped
from embedkit.types import Rows

MINUS = -np.inf


def scored(generator: np.random.Generator, queries: int, width: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Lists of different rows with few different scores, best first; some lists end early."""
    scores = -np.sort(-generator.integers(0, 5, (queries, width)).astype(np.float32), axis=1)
    found = np.array([generator.permutation(rows)[:width] for _ in range(queries)])
    for query in range(queries):
        end = generator.integers(0, width + 1)
        scores[query, end:], found[query, end:] = MINUS, -1
    return scores, found


def pairs(scores: np.ndarray, rows: np.ndarray) -> list[tuple[float, int]]:
    return [(float(score), int(row)) for score, row in zip(scores, rows, strict=True) if row >= 0]


@pytest.mark.parametrize("seed", range(5))
def test_several_lists_become_the_one_that_sorting_gives(seed: int) -> None:
    generator = np.random.default_rng(seed)
    lists = [scored(generator, 6, width, 50) for width in (4, 0, 9, 1)]
    bases = [0, 50, 100, 150]
    rows = [np.where(found < 0, -1, found + base) for (_, found), base in zip(lists, bases, strict=True)]
    scores, found = best_of([part for part, _ in lists], rows, 8)
    for query in range(6):
        every = [pair for (part, _), r in zip(lists, rows, strict=True) for pair in pairs(part[query], r[query])]
        expected = sorted(every, key=lambda pair: -pair[0])[:8]  # stable: the earlier list first
        assert pairs(scores[query], found[query]) == expected
        assert np.all(scores[query, len(expected) :] == MINUS)


def test_one_list_is_only_cut() -> None:
    scores, rows = np.array([[3, 2, 1]], np.float32), np.array([[5, 6, 7]])
    assert [part.tolist() for part in best_of([scores], [rows], 2)] == [[[3, 2]], [[5, 6]]]
    nothing = np.array([[3, np.finfo(np.float32).min]], np.float32), np.array([[5, -1]])  # faiss's own mark
    assert best_of([nothing[0]], [nothing[1]], 9)[0].tolist() == [[3, MINUS]]


@pytest.mark.parametrize("seed", range(5))
def test_each_document_stands_once_by_its_first_row(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores, rows = scored(generator, 6, 12, 30)

    def document(row: Rows) -> Rows:
        return row // 4

    ranked = grouped(scores, rows, document)
    for query in range(6):
        expected: dict[int, tuple[float, int]] = {}
        for score, row in pairs(scores[query], rows[query]):
            expected.setdefault(row // 4, (score, row))
        real = ranked.keys[query] >= 0
        assert ranked.keys[query][real].tolist() == list(expected)
        assert pairs(ranked.scores[query], ranked.rows[query]) == list(expected.values())
        assert np.all(ranked.scores[query][~real] == MINUS) and np.all(ranked.rows[query][~real] == -1)


def test_no_rows_are_no_documents() -> None:
    ranked = grouped(np.empty((3, 0), np.float32), np.empty((3, 0), np.int64), lambda rows: rows)
    assert ranked.keys.shape == (3, 0)
    assert grouped(np.full((2, 4), MINUS, np.float32), np.full((2, 4), -1), lambda rows: rows).keys.shape == (2, 0)


NAMES = ["d2", "d10", "d1", "b", "", "é", "z", "d3"]


@pytest.mark.parametrize("k", [1, 2, 5, 8, 20])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("queries", [1, 6])
def test_ties_are_ordered_by_the_larger_id(queries: int, seed: int, k: int) -> None:
    """As Python compares strings."""
    scores, keys = scored(np.random.default_rng(seed), queries, 8, 8)
    ranked = cut(Ranked(scores, keys, keys), k, lambda some: [NAMES[key] for key in some])
    for query in range(queries):
        expected = sorted(((score, NAMES[key], key) for score, key in pairs(scores[query], keys[query])), reverse=True)[
            :k
        ]
        assert pairs(ranked.scores[query], ranked.keys[query]) == [(score, key) for score, _, key in expected]
        assert ranked.rows[query].tolist() == ranked.keys[query].tolist()


def test_names_are_asked_for_only_where_there_are_ties() -> None:
    def never(_: Rows) -> list[str]:
        raise AssertionError("names were asked for")

    scores = np.array([[3, 2, 1, 1], [3, 2, MINUS, MINUS]], np.float32)
    keys = np.array([[0, 1, 2, 3], [0, 1, -1, -1]])
    for part in (slice(0, 1), slice(1, 2), slice(0, 2)):
        assert cut(Ranked(scores[part], keys[part], keys[part]), 2, never).keys.shape[1] == 2


def test_places_can_be_left_out_and_put_in_another_order() -> None:
    ranked = Ranked(np.array([[3, 2]], np.float32), np.array([[7, 8]]), np.array([[70, 80]]))
    assert [part.tolist() for part in ranked.where(np.array([[False, True]]))] == [[[MINUS, 2]], [[-1, 8]], [[-1, 80]]]
    assert [part.tolist() for part in ranked.at(np.array([[1, 0, 1]]))] == [[[2, 3, 2]], [[8, 7, 8]], [[80, 70, 80]]]
