"""Retrieval on a BEIR folder, exact and through an index."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedkit
from embedkit.errors import DataError, UsageError
from embedkit.eval.metrics import without_themselves
from embedkit.eval.retrieval import evaluate_retrieval, read_retrieval
from embedkit.eval.run import find_task
from embedkit.eval.task_file import TaskFile
from embedkit.statistics import bootstrap_interval

CORPUS = [
    {"_id": "d1", "title": "cat", "text": "red"},
    {"_id": "d2", "title": "", "text": "dog dog"},
    {"_id": "d3", "title": "fish", "text": ""},
    {"_id": "d4", "text": "bird one two"},
]
QUERIES = {"q1": "cat red", "q2": "dog", "q3": "fish bird", "q4": "nobody judged this"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "animals"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, CORPUS)))
    (folder / "queries.jsonl").write_text(
        "\n".join(json.dumps({"_id": i, "text": text}) for i, text in QUERIES.items())
    )
    (folder / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td1\t1\nq2\td2\t0\nq3\td4\t2\nq3\td3\t1\n"
    )
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq2\td2\t1\n")
    return folder


def test_the_scores_are_those_of_the_ranking_by_cosine(folder: Path, word_counts: Any) -> None:
    """q1 finds d1 first. q2 scores d2 1 and the rest 0: ties by larger id put d4, d3, d1 behind, so d1 is fourth. q3 scores d3 and
    d4 by 1/sqrt(2) and 1/sqrt(6)."""
    report = embedkit.evaluate(word_counts, folder)
    assert report.per_query["mrr@10"] == {"q1": 1.0, "q2": 0.25, "q3": 1.0}
    assert report.per_query["map"] == {"q1": 1.0, "q2": 0.25, "q3": 1.0}
    gain = (1 + 2 / np.log2(3)) / (2 + 1 / np.log2(3))
    assert report.per_query["ndcg@10"] == pytest.approx({"q1": 1.0, "q2": 1 / np.log2(5), "q3": gain})
    assert report.scores["mrr@10"] == pytest.approx(0.75)
    assert report.intervals["mrr@10"] == bootstrap_interval([1.0, 0.25, 1.0])
    assert report.units == 3


def test_the_context_repeats_the_run(folder: Path, word_counts: Any) -> None:
    context = embedkit.evaluate(word_counts, str(folder)).context
    assert (context["fingerprint"], context["compute"], context["search"]) == (
        word_counts.fingerprint,
        word_counts.compute,
        "exact",
    )
    assert (context["first_query"], context["first_document"]) == ("cat red", "cat red")
    files = {
        "corpus.jsonl": folder / "corpus.jsonl",
        "queries.jsonl": folder / "queries.jsonl",
        "test.tsv": folder / "qrels" / "test.tsv",
    }
    hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    assert context["data"] == {"name": "animals", "split": "test", "sha256": hashes}


def test_the_first_inputs_stand_there_with_their_prompts(folder: Path, make_model: Any) -> None:
    encoder = embedkit.load(make_model(prompts={"query": "query: ", "passage": "one "}))
    context = embedkit.evaluate(encoder, folder).context
    assert (context["first_query"], context["first_document"]) == ("query: cat red", "one cat red")


def test_another_split_has_its_own_queries(folder: Path, word_counts: Any) -> None:
    assert embedkit.evaluate(word_counts, folder, split="dev").per_query["mrr@10"] == {"q2": 1.0}
    with pytest.raises(UsageError, match="has no judgements for the split 'train'; it has dev, test"):
        embedkit.evaluate(word_counts, folder, split="train")


@pytest.mark.parametrize("coarse", ["none", "Flat"])
def test_through_an_index_the_scores_are_the_same(folder: Path, word_counts: Any, tmp_path: Path, coarse: str) -> None:
    index = embedkit.build_index(folder, tmp_path / "x", model=word_counts, coarse=coarse)
    report = embedkit.evaluate(index, folder)
    assert report.per_query == embedkit.evaluate(word_counts, folder).per_query
    assert report.context["fingerprint"] == word_counts.fingerprint
    assert report.context["search"]["coarse"] == coarse


def test_an_index_of_another_corpus_is_noticed(
    folder: Path, word_counts: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = embedkit.build_index(["cat", "dog"], tmp_path / "x", model=word_counts)
    with caplog.at_level(logging.WARNING):
        report = embedkit.evaluate(index, folder)
    assert report.scores["ndcg@10"] == 0
    assert "No judged document of animals was found" in caplog.text


def test_judged_queries_that_are_not_there_are_counted(
    folder: Path, word_counts: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with (folder / "qrels" / "dev.tsv").open("a") as stream:
        stream.write("q8\td2\t1\nq9\td2\t1\n")
    with caplog.at_level(logging.WARNING):
        assert list(read_retrieval(folder, "dev").queries) == ["q2"]
    assert "2 judged queries are not in queries.jsonl and are left out" in caplog.text
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq8\td2\t1\n")
    with pytest.raises(DataError, match=r"No query judged in .*dev.tsv is in"):
        read_retrieval(folder, "dev")


def test_judged_documents_that_are_not_in_the_corpus_are_counted(
    folder: Path, word_counts: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with (folder / "qrels" / "test.tsv").open("a") as file:
        file.write("q1\tD1\t1\nq2\tD1\t1\n")
    with caplog.at_level(logging.WARNING):
        embedkit.evaluate(word_counts, folder)
    assert "animals: 1 judged documents ('D1') are not in the corpus." in caplog.text


def test_judgements_without_anything_relevant_cannot_be_scored(folder: Path, word_counts: Any) -> None:
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq2\td2\t0\n")
    with pytest.raises(DataError, match="has a relevant document; nothing can be scored"):
        embedkit.evaluate(word_counts, folder, split="dev")
    with pytest.raises(DataError, match="has a relevant document; nothing can be scored"):
        find_task(folder, "dev")  # as `train` asks, before its first step


def test_a_dot_product_model_ranks_by_dot_product(folder: Path) -> None:
    class Lengths:
        """d4 is the longest and wins every dot product, whatever the angle."""

        dim, similarity, settings, compute, fingerprint = 2, "dot", {}, {}, "a"  # type: ignore[var-annotated]

        def encode(self, inputs: list[str], *, kind: str = "document") -> np.ndarray:
            return np.array([[10, 10] if "bird one" in text else [1, 0] for text in inputs], np.float32)

    class Far(Lengths):
        similarity = "euclidean"

    dot: Any = Lengths()
    assert embedkit.evaluate(dot, folder).per_query["mrr@10"]["q3"] == 1.0
    assert embedkit.evaluate(dot, folder).per_query["mrr@10"]["q1"] == 0.25
    far: Any = Far()
    with pytest.raises(UsageError, match="compares by euclidean"):
        embedkit.evaluate(far, folder)


def test_a_folder_of_another_kind_is_refused(tmp_path: Path, word_counts: Any) -> None:
    with pytest.raises(UsageError, match="holds no task"):
        embedkit.evaluate(word_counts, tmp_path)


@pytest.mark.data
@pytest.mark.model
def test_a_real_collection_scores_as_with_sentence_transformers(data: Path, default_encoder: Any) -> None:
    """ADI, 82 documents: the ranking of sentence-transformers' own rows, scored by its own evaluator."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    from embedkit.encoders.default_model import default_model_folder

    task = read_retrieval(data / "adi", "test")
    corpus = {document.id: document.full_text for document in embedkit.read_corpus(data / "adi")}
    relevant = {query: {d for d, grade in grades.items() if grade > 0} for query, grades in task.qrels.items()}
    evaluator = InformationRetrievalEvaluator(task.queries, corpus, relevant, map_at_k=[100], name="adi")
    theirs = evaluator(SentenceTransformer(str(default_model_folder()), device="cpu"))
    ours = embedkit.evaluate(default_encoder, data / "adi").scores
    assert ours["ndcg@10"] == pytest.approx(theirs["adi_cosine_ndcg@10"], abs=1e-6)
    assert ours["mrr@10"] == pytest.approx(theirs["adi_cosine_mrr@10"], abs=1e-6)


def test_a_document_with_its_querys_id_is_left_out_where_the_task_says_so(folder: Path, word_counts: Any) -> None:
    """As in ArguAna: q1 is the document q1 itself, which is found first; d1 becomes the first without it."""
    with (folder / "corpus.jsonl").open("a") as corpus:
        corpus.write("\n" + json.dumps({"_id": "q1", "text": "cat red"}))
    task = read_retrieval(folder, "test")
    with_itself = evaluate_retrieval(task, word_counts)
    assert with_itself.per_query["mrr@10"]["q1"] == 0.5  # the larger id of two equal scores
    report = evaluate_retrieval(replace(task, about=TaskFile(ignore_identical_ids=True)), word_counts)
    assert report.per_query["mrr@10"]["q1"] == 1.0
    assert report.context["ignore_identical_ids"] is True and "ignore_identical_ids" not in with_itself.context


def test_without_themselves_the_first_others_are_kept() -> None:
    run = {"a": {"a": 3.0, "b": 2.0, "c": 1.0, "d": 1.0}, "z": {"b": 1.0}}
    assert without_themselves(run, 2) == {"a": {"b": 2.0, "d": 1.0}, "z": {"b": 1.0}}
    assert without_themselves(run) == {"a": {"b": 2.0, "d": 1.0, "c": 1.0}, "z": {"b": 1.0}}


def test_ties_are_told_where_they_move_a_score(folder: Path, word_counts: Any) -> None:
    """q2 scores d1, d3 and d4 0, of which d1 is relevant: it may be second, third or fourth."""
    ties = evaluate_retrieval(read_retrieval(folder, "test"), word_counts).context["ties"]
    expected = (1 / 2 + 1 / 3 + 1 / 4) / 3
    assert ties["mrr@10"] == pytest.approx({"worst": 2.25 / 3, "expected": (2 + expected) / 3, "best": 2.5 / 3})
    assert "ties" not in evaluate_retrieval(read_retrieval(folder, "dev"), word_counts).context


def test_metrics_are_chosen_by_name_and_the_first_one_counts(folder: Path, word_counts: Any) -> None:
    task = replace(read_retrieval(folder, "test"), metrics=("precision@1", "recall@300"))
    report = evaluate_retrieval(task, word_counts)
    assert (report.main, list(report.scores), report.context["depth"]) == (
        "precision@1",
        ["precision@1", "recall@300"],
        300,
    )
    assert report.scores["precision@1"] == pytest.approx(2 / 3)
