"""The fitted weight of hybrid search, against a slow search of the grid, and on queries of which only one leg knows the answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedkit.errors import DataError
from embedkit.eval.fusion import DENSE, EQUAL, GRID, LEAST, SPARSE, fitted, grid_scores, in_folds, tune_fusion
from embedkit.eval.metrics import retrieval_scores
from embedkit.eval.serving import as_run
from embedkit.index import Index
from embedkit.jobs import build_index, open_index
from embedkit.types import Document

from ..engine.fakes import Windowed

COUNT = 60


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fusion") / "x"
    corpus = [Document(f"d{n}", f"word{n} common {'rare ' * (n % 3)}") for n in range(COUNT)]
    build_index(corpus, path, model=Windowed(), sparse="bm25").close()
    return path


QUERIES = {f"q{n}": f"word{n} rare" for n in range(COUNT)}
QRELS = {f"q{n}": {f"d{n}": 1} for n in range(COUNT)}


def opened(path: Path) -> Index:
    return open_index(path, Windowed())


def test_the_grid_is_what_hybrid_search_would_score(index: Path) -> None:
    names = list(QUERIES)[:12]
    with opened(index) as searched:
        texts = [QUERIES[name] for name in names]
        scores = grid_scores(searched.candidates(texts, 100), names, QRELS)
        for place in (DENSE, EQUAL, GRID.index(GRID[30])):
            fusion = GRID[place]
            hits = searched.search(texts, 100, mode="hybrid", fusion=fusion.method, weight=fusion.weight)
            expected = retrieval_scores({name: QRELS[name] for name in names}, as_run(names, hits))["ndcg@10"]
            assert scores[place].tolist() == pytest.approx([expected[name] for name in names])
        alone = as_run(names, searched.search(texts, 100, mode="sparse"))
        expected = retrieval_scores({name: QRELS[name] for name in names}, alone)["ndcg@10"]
        assert scores[SPARSE].tolist() == pytest.approx([expected[name] for name in names])


def test_where_only_terms_know_the_answer_fusion_does_not_pay(index: Path) -> None:
    """The rows of these documents follow from hashes: the dense leg guesses."""
    with opened(index) as searched:
        tuned = tune_fusion(searched, QUERIES, QRELS)
    assert tuned.sparse == pytest.approx(1.0) and tuned.dense < 0.5
    assert tuned.held_out == pytest.approx(1.0) and not tuned.pays
    assert "Fusion does not pay here: the sparse leg alone (--mode sparse) is as good." in tuned.sentence()
    assert tuned.facts()["pays"] is False


def test_folds_choose_without_the_queries_that_are_scored() -> None:
    """Each query is answered by a fusion of its own: what the others choose is of no use to it."""
    scores = np.zeros((len(GRID), 40))
    scores[np.arange(40), np.arange(40)] = 1.0
    held_out, _ = in_folds(scores)
    assert held_out.sum() == 0.0 and fitted(scores).fitted == pytest.approx(1 / 40)


def test_a_fusion_that_helps_every_query_pays() -> None:
    scores = np.full((len(GRID), 50), 0.2)
    scores[EQUAL] = 0.5 + np.linspace(0, 0.1, 50)
    tuned = fitted(scores)
    assert (tuned.method, tuned.weight) == ("minmax", 0.5)
    assert tuned.pays and tuned.p < 0.001 and tuned.difference == pytest.approx(0.35)
    assert "does not pay" not in tuned.sentence()


def test_few_judged_queries_are_refused(index: Path) -> None:
    few = {name: QRELS[name] for name in list(QRELS)[: LEAST - 1]}
    with opened(index) as searched, pytest.raises(DataError, match=f"{LEAST - 1} queries have a relevant document"):
        tune_fusion(searched, QUERIES, few)
