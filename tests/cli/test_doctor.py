"""embedkit doctor: what it prints, and the exit code that a script goes by."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.encoders import patients

from .conftest import Run

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return patients.encoder(tmp_path_factory.mktemp("healthy"), prompts={"query": "query : ", "document": "dog "})


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return patients.prompt_of_another_name(tmp_path_factory.mktemp("faulty"))


def test_a_healthy_model_ends_with_0_and_says_what_was_seen(run: Run, healthy: Path) -> None:
    done = run("doctor", healthy)
    assert done.code == 0
    lines = done.out.splitlines()
    assert len(lines) == 12 and all(line.startswith("well  ") for line in lines)
    assert "a query takes 'query : '; a document takes 'dog '" in done.out


def test_a_finding_ends_with_4_and_stands_first(run: Run, faulty: Path) -> None:
    done = run("doctor", "--model", faulty, "-q")
    assert (done.code, done.err) == (4, "")
    name, evidence, fix, *rest = done.out.splitlines()
    assert name == "found       prompt-never-applied"
    assert "'search_query'" in evidence and "--prompt-name search_query" in fix
    assert len(rest) == 11


def test_the_way_out_that_is_named_is_one(run: Run, faulty: Path) -> None:
    assert run("doctor", faulty, "--prompt-name", "search_query").code == 0


def test_json_holds_findings_what_was_seen_and_what_was_not_checked(run: Run, faulty: Path) -> None:
    done = run("doctor", faulty, "--json")
    assert done.code == 4
    assert set(done.facts) == {"model", "findings", "seen", "not_checked"}
    assert [set(finding) for finding in done.facts["findings"]] == [{"name", "evidence", "fix"}]
    assert len(done.facts["seen"]) == 11


def test_two_backends_are_compared(run: Run, healthy: Path) -> None:
    done = run("doctor", healthy, "--against", "sentence-transformers", "--json")
    assert (done.code, done.facts["findings"], done.facts["agreement"]) == (0, [], 1.0)
    assert done.facts["cosine"] == pytest.approx(1.0, abs=1e-5)


def test_another_side_that_differs_ends_with_4(run: Run, healthy: Path, faulty: Path) -> None:
    done = run("doctor", healthy, "--against", faulty)
    assert done.code == 4
    assert done.out.splitlines()[2] == "found       no-prompt"
    assert "tried       pooling-cls" in done.out


@pytest.mark.parametrize(
    ("line", "code", "sentence"),
    [
        ("doctor ./missing", 4, "There is no folder"),
        ("doctor {healthy} --model {healthy}", 2, "MODEL and --model name the same thing"),
        ("doctor {healthy} --against ./missing", 4, "There is no folder"),
        ("doctor {healthy} --prompt-name limerick", 2, "no prompt named 'limerick'"),
        ("doctor {healthy} --dtype float8", 2, "dtype='float8'"),
    ],
)
def test_wrong_use_is_one_sentence(run: Run, healthy: Path, line: str, code: int, sentence: str) -> None:
    done = run(*line.format(healthy=healthy).split())
    assert sentence in done.sentence(code)


def test_a_url_is_the_only_thing_that_uses_the_network(run: Run, healthy: Path) -> None:
    """`run` refuses every connection."""
    with pytest.raises(AssertionError, match="the network was used"):
        from embedkit.encoders.doctor.parity import parity

        parity(healthy, "http://127.0.0.1:9")
