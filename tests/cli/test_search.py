"""embedkit search: the ranking of a plain product, printed for people, as JSON, and as a TREC run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval

import embedkit
from embedkit.cli.search import trec_run
from embedkit.types import Hits

from .conftest import IDS, QUESTION, ROWS, TEXTS, Run, listing, write_jsonl

Ranking = Callable[[str], list[tuple[str, float]]]
QUERIES = {"q1": QUESTION, "q2": "blue bird", "q3": "swim"}


def lines_of(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


@pytest.mark.parametrize("k", [1, 3, 50])
def test_a_question_finds_what_a_plain_product_finds(run: Run, index: Path, ranking: Ranking, k: int) -> None:
    done = run("search", index, QUESTION, "-k", k, "--json", "--dtype", "float32")
    hits = done.facts["hits"]
    expected = ranking(QUESTION)[:k]
    assert [hit["id"] for hit in hits] == [identifier for identifier, _ in expected]
    np.testing.assert_allclose([hit["score"] for hit in hits], [score for _, score in expected], atol=1e-5)


def test_json_holds_the_question_and_the_documents_whole(run: Run, index: Path) -> None:
    facts = run("search", index, TEXTS[0], "-k", 1, "--json").facts
    (hit,) = facts["hits"]
    assert facts["query"] == TEXTS[0]
    assert hit.pop("score") == pytest.approx(1, abs=1e-2)  # its own text
    assert hit == {"id": "d0", "title": "cat", "text": "red run", "metadata": {"year": 2001}}


def test_people_get_rank_score_id_and_text(run: Run, index: Path, ranking: Ranking) -> None:
    lines = lines_of(run("search", index, QUESTION, "-k", 2, "--dtype", "float32").out)
    (first, score), (second, _) = ranking(QUESTION)[:2]
    assert lines[0] == ["1", f"{score:.4f}", first]
    assert lines[1] == TEXTS[IDS.index(first)].split()
    assert lines[2][::2] == ["2", second]


def test_ten_hits_are_the_default(run: Run, tmp_path: Path, tiny_model: Path) -> None:
    source = write_jsonl(tmp_path / "c.jsonl", [{"_id": f"d{i}", "text": "cat " * (i + 1)} for i in range(12)])
    run("index", "build", source, "-o", tmp_path / "x", "--model", tiny_model)
    assert len(run("search", tmp_path / "x", "dog", "--json").facts["hits"]) == 10


def test_a_long_text_is_cut_on_the_screen_but_not_in_json(run: Run, tmp_path: Path, tiny_model: Path) -> None:
    text = " ".join(["swim"] * 500)
    source = write_jsonl(tmp_path / "c.jsonl", [{"_id": "long", "text": text}])
    run("index", "build", source, "-o", tmp_path / "x", "--model", tiny_model)
    shown = run("search", tmp_path / "x", "swim").out.splitlines()
    assert max(map(len, shown)) <= 110
    assert (len(shown), shown[-1].endswith("…")) == (4, True)
    assert run("search", tmp_path / "x", "swim", "--json").facts["hits"][0]["text"] == text


def write_queries(folder: Path, form: str) -> Path:
    if form == "jsonl":
        return write_jsonl(folder / "q.jsonl", [{"_id": name, "text": text} for name, text in QUERIES.items()])
    path = folder / "q.tsv"
    path.write_text("id\ttext\n" + "".join(f"{name}\t{text}\n" for name, text in QUERIES.items()))
    return path


@pytest.mark.parametrize("form", ["jsonl", "tsv"])
def test_a_file_of_queries_gives_a_run_that_trec_eval_reads(
    run: Run, index: Path, tmp_path: Path, ranking: Ranking, form: str
) -> None:
    path = write_queries(tmp_path, form)
    done = run("search", index, "--queries", path, "-k", 4, "-o", tmp_path / "run.trec", "--dtype", "float32")
    assert (done.code, done.out) == (0, "")
    lines = lines_of((tmp_path / "run.trec").read_text())
    expected = {name: ranking(text)[:4] for name, text in QUERIES.items()}
    assert [line[0] for line in lines] == [name for name in QUERIES for _ in range(4)]
    assert [line[2] for line in lines] == [identifier for found in expected.values() for identifier, _ in found]
    assert [line[3] for line in lines] == ["1", "2", "3", "4"] * 3
    assert {(line[1], line[5], len(line)) for line in lines} == {("Q0", "embedkit", 6)}
    with (tmp_path / "run.trec").open() as stream:
        read = pytrec_eval.parse_run(stream)
    assert read == {name: pytest.approx(dict(found), abs=1e-5) for name, found in expected.items()}


def test_a_run_is_printed_where_no_file_is_named(run: Run, index: Path, tmp_path: Path) -> None:
    path = write_queries(tmp_path, "jsonl")
    run("search", index, "--queries", path, "-o", tmp_path / "run.trec")
    assert run("search", index, "--queries", path).out == (tmp_path / "run.trec").read_text()


def test_queries_as_json_are_one_object_a_line(run: Run, index: Path, tmp_path: Path) -> None:
    done = run("search", index, "--queries", write_queries(tmp_path, "tsv"), "--json", "-k", 2)
    facts = [json.loads(line) for line in done.out.splitlines()]
    assert {fact["id"]: fact["query"] for fact in facts} == QUERIES
    assert [len(fact["hits"]) for fact in facts] == [2, 2, 2]
    asked = run("search", index, QUESTION, "--json", "-k", 2).facts
    assert [hit["id"] for hit in facts[0]["hits"]] == [hit["id"] for hit in asked["hits"]]


@pytest.mark.parametrize("identifier", ["two words", "a\ttab", " edge", "no\u00a0break"])
@pytest.mark.parametrize("side", ["query", "document"])
def test_an_id_with_white_space_does_not_get_into_a_run(
    run: Run, tmp_path: Path, tiny_model: Path, side: str, identifier: str
) -> None:
    ids = {"query": "q", "document": "d", side: identifier}
    corpus = write_jsonl(tmp_path / "c.jsonl", [{"_id": ids["document"], "text": "cat"}])
    queries = write_jsonl(tmp_path / "q.jsonl", [{"_id": ids["query"], "text": "cat"}])
    run("index", "build", corpus, "-o", tmp_path / "x", "--model", tiny_model)
    before = listing(tmp_path)
    sentence = run("search", tmp_path / "x", "--queries", queries, "-q", "-o", tmp_path / "run.trec").sentence(3)
    assert repr(identifier) in sentence
    assert "--json" in sentence
    assert listing(tmp_path) == before
    facts = run("search", tmp_path / "x", "--queries", queries, "--json").facts  # the way out
    assert (facts["id"], facts["hits"][0]["id"]) == (ids["query"], ids["document"])


def test_a_run_keeps_the_order_of_the_search() -> None:
    """trec_eval orders by score and then by id, so two scores that differ must be written differently."""
    near = np.nextafter(np.float32(0.99), np.float32(0))
    hits = Hits([["a", "b"]], np.array([[0.99, near]], dtype=np.float32), None)
    (scores,) = pytrec_eval.parse_run(trec_run({"q": "cat"}, hits).splitlines()).values()
    assert scores["a"] > scores["b"]
    assert [np.float32(scores["a"]), np.float32(scores["b"])] == list(hits.scores[0])


def test_queries_without_hits_leave_no_padding_in_the_run() -> None:
    hits = Hits([["a"], []], np.array([[0.5, -np.inf], [-np.inf, -np.inf]], dtype=np.float32), None)
    assert trec_run({"q1": "cat", "q2": "dog"}, hits) == "q1 Q0 a 1 0.5 embedkit\n"


def test_the_model_is_found_elsewhere_when_it_is_named(run: Run, tmp_path: Path, index: Path, tiny_model: Path) -> None:
    """The space counts, not the path: a copy of the folder has the same fingerprint."""
    copy = tmp_path / "copy"
    copy.symlink_to(tiny_model)
    asked = ["search", index, QUESTION, "--json"]
    assert run(*asked, "--model", copy).facts == run(*asked).facts


def test_prompt_name_chooses_the_prompt_of_the_question(run: Run, tmp_path: Path, prompted_model: Path) -> None:
    source = write_jsonl(tmp_path / "c.jsonl", ROWS)
    run("index", "build", source, "-o", tmp_path / "x", "--model", prompted_model)
    done = run("search", tmp_path / "x", "cat", "-k", 5, "--prompt-name", "colour", "--json")
    encoder = embedkit.load(prompted_model)
    vector = encoder.encode(encoder.stored_prompts["colour"] + "cat", prompt="")
    expected = embedkit.open_index(tmp_path / "x").search(vector, k=5)
    assert [hit["id"] for hit in done.facts["hits"]] == expected.ids[0]
    assert [hit["score"] for hit in done.facts["hits"]] == pytest.approx(expected.scores[0].tolist(), abs=1e-3)
    plain = run("search", tmp_path / "x", "cat", "-k", 5, "--json").facts["hits"]
    assert [hit["score"] for hit in plain] != [hit["score"] for hit in done.facts["hits"]]


def test_a_run_is_written_or_hits_are_printed_not_both(run: Run, tmp_path: Path, index: Path) -> None:
    queries = write_jsonl(tmp_path / "q.jsonl", [{"_id": "q", "text": "cat"}])
    done = run("search", index, "--queries", queries, "-o", tmp_path / "run.trec", "--json")
    assert done.code == 2 and "give one of them" in done.err
    assert not (tmp_path / "run.trec").exists()


def test_documents_like_a_stored_one(run: Run, index: Path, reference: Callable[..., np.ndarray]) -> None:
    rows = reference(TEXTS)
    scores = rows @ rows[IDS.index("d2")]
    expected = [IDS[row] for row in np.argsort(-scores) if IDS[row] != "d2"][:3]
    facts = run("search", index, "--like", "d2", "-k", 3, "--json").facts
    assert [hit["id"] for hit in facts["hits"]] == expected
    assert facts["query"] == "like d2"


def test_where_leaves_documents_whose_metadata_pass(run: Run, index: Path, ranking: Ranking) -> None:
    done = run(
        "search", index, QUESTION, "--where", '{"year": {"gte": 2003, "lt": 2006}}', "--json", "--dtype", "float32"
    )
    expected = [name for name, _ in ranking(QUESTION) if name in ("d2", "d3", "d4")]
    assert [hit["id"] for hit in done.facts["hits"]] == expected
    assert {hit["metadata"]["year"] for hit in done.facts["hits"]} == {2003, 2004, 2005}
    assert run("search", index, QUESTION, "--where", '{"year": 1}', "--json").facts["hits"] == []
    assert run("search", index, QUESTION, "--where", '{"year": 1}').out == ""


def test_min_score_leaves_out_what_scores_less(run: Run, index: Path, ranking: Ranking) -> None:
    expected = ranking(QUESTION)
    least = (expected[2][1] + expected[3][1]) / 2
    done = run("search", index, QUESTION, "--min-score", least, "--json", "--dtype", "float32")
    assert [hit["id"] for hit in done.facts["hits"]] == [name for name, _ in expected[:3]]


def test_an_explanation_is_printed_and_in_json(run: Run, tmp_path: Path, vectors: Path) -> None:
    run("index", "build", vectors, "-o", tmp_path / "x", "--coarse", "SQ8")
    hits = run("search", tmp_path / "x", QUESTION, "-k", 2, "--explain", "--json").facts["hits"]
    for rank, hit in enumerate(hits, 1):
        said = hit["explanation"]
        assert said["fine"] == {"rank": rank, "score": hit["score"]}
        assert said["coarse"]["score"] == pytest.approx(hit["score"], abs=0.05) and said["segment"] == 1
    lines = [line.strip() for line in run("search", tmp_path / "x", QUESTION, "-k", 1, "--explain").out.splitlines()]
    assert f"fine: rank 1, score {hits[0]['score']:.4f}" in lines
    assert "segment: 1" in lines and any(line.startswith("coarse: rank ") for line in lines)


def test_an_exact_segment_has_no_coarse_score(run: Run, index: Path) -> None:
    hits = run("search", index, QUESTION, "-k", 1, "--explain", "--json").facts["hits"]
    assert hits[0]["explanation"]["coarse"] is None
    assert "coarse: -" in run("search", index, QUESTION, "-k", 1, "--explain").out


def test_filters_go_with_a_file_of_queries(run: Run, index: Path, tmp_path: Path, ranking: Ranking) -> None:
    words = ["--where", '{"year": {"lt": 2003}}', "-k", 5, "--dtype", "float32"]
    done = run("search", index, "--queries", write_queries(tmp_path, "jsonl"), *words)
    expected = [(name, found) for name, text in QUERIES.items() for found, _ in ranking(text) if found in ("d0", "d1")]
    assert [(line[0], line[2]) for line in lines_of(done.out)] == expected
