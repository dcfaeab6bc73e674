"""What all commands share: results on standard output, everything else on standard error, a log for machines."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedkit.cli.options import progress_wanted

from .conftest import IDS, QUESTION, ROWS, Run, listing, write_jsonl

COMMANDS = {
    "embed": "embed {corpus} -o {tmp}/x.npy --model {model}",
    "index build": "index build {corpus} -o {tmp}/x.index --model {model}",
    "index info": "index info {index}",
    "index verify": "index verify {index}",
    "search": "search {index} cat",
    "eval": "eval --data {tmp} --model {model} -o {tmp}/results",
}
every_command = pytest.mark.parametrize("name", COMMANDS)
NO_PROMPT = "stores no prompt for queries"  # the remark of a model without prompts


@pytest.fixture
def words(
    tmp_path: Path, corpus: Path, index: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], list[str]]:
    """The words of one of COMMANDS; a BEIR folder stands in {tmp}, and the model is of a family that needs a prompt."""
    monkeypatch.setattr("embedkit.encoders.prompts.FAMILIES", ((f"^{tiny_model.name}$", "query: ", ""),))
    write_jsonl(tmp_path / "corpus.jsonl", ROWS)
    write_jsonl(tmp_path / "queries.jsonl", [{"_id": "q1", "text": QUESTION}])
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td0\t1\n")
    names = {"tmp": tmp_path, "corpus": corpus, "index": index, "model": tiny_model}
    return lambda name: [word.format(**names) for word in COMMANDS[name].split()]


@every_command
def test_json_is_one_value_on_standard_output_alone(run: Run, words: Callable[[str], list[str]], name: str) -> None:
    done = run(*words(name), "--json")
    assert done.code == 0
    assert isinstance(done.facts, dict)
    assert "{" not in done.err


@every_command
def test_results_are_on_standard_output_and_remarks_are_not(
    run: Run, words: Callable[[str], list[str]], name: str
) -> None:
    done = run(*words(name))
    assert done.code == 0
    assert done.out.strip()
    assert NO_PROMPT not in done.out
    assert (NO_PROMPT in done.err) == (name in ("search", "eval"))
    assert "\r" not in done.err, "a progress bar was drawn where there is no terminal"


@every_command
def test_quiet_silences_everything_but_results_and_errors(
    run: Run, words: Callable[[str], list[str]], name: str
) -> None:
    done = run(*words(name), "--quiet")
    assert (done.code, done.err) == (0, "")
    assert done.out.strip()


def test_quiet_does_not_silence_errors(run: Run, tmp_path: Path) -> None:
    assert "holds no index" in run("index", "info", tmp_path, "-q").sentence(2)


def test_a_remark_is_made_once_a_command_however_often_commands_run(
    run: Run, words: Callable[[str], list[str]]
) -> None:
    for _ in range(3):
        assert run(*words("search")).err.count(NO_PROMPT) == 1


@pytest.mark.parametrize("name", ["embed", "index build"])
def test_the_log_has_one_json_object_a_line_with_growing_rows(
    run: Run, words: Callable[[str], list[str]], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedkit.engine.run.WINDOW", 3)
    log = tmp_path / "logs" / "run.jsonl"  # the folder is made
    assert run(*words(name), "--log", log).code == 0
    facts = [json.loads(line) for line in log.read_text().splitlines()]
    assert [fact["rows"] for fact in facts if "rows" in fact] == [3, 6, len(ROWS)]
    assert all({"time", "level", "message"} <= set(fact) for fact in facts)
    assert [fact["time"] for fact in facts] == sorted(fact["time"] for fact in facts)


def test_the_log_is_appended_to_and_keeps_what_quiet_silences(
    run: Run, words: Callable[[str], list[str]], tmp_path: Path
) -> None:
    log = tmp_path / "run.jsonl"
    for times in (1, 2):
        assert run(*words("search"), "-q", "--log", log).err == ""
        facts = [json.loads(line) for line in log.read_text().splitlines()]
        assert [fact["level"] for fact in facts if NO_PROMPT in fact["message"]] == ["warning"] * times


def test_a_log_that_cannot_be_written_is_wrong_use(run: Run, tmp_path: Path, index: Path) -> None:
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in run("index", "info", index, "--log", tmp_path / "file" / "log").sentence(2)
    assert "is a directory" in run("index", "info", index, "--log", tmp_path).sentence(2)


def with_stdout(stream: Any, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    from embedkit.cli.main import main

    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_a_reader_that_goes_away_ends_a_command_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], index: Path
) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as `| head -0` does
    with io.TextIOWrapper(io.FileIO(writer, "w"), write_through=True) as stream:
        assert with_stdout(stream, monkeypatch, "index", "info", index) == 0
    assert capsys.readouterr().err == ""


def test_a_closed_standard_output_is_no_defect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], index: Path
) -> None:
    assert with_stdout(None, monkeypatch, "index", "info", index) == 0  # what Python makes of `>&-`
    assert capsys.readouterr().err == ""


def test_the_order_of_options_and_arguments_does_not_matter(
    run: Run, corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    assert run("embed", "--limit", 2, "-o", tmp_path / "a.npy", "--model", tiny_model, corpus).code == 0
    assert run("embed", corpus, f"--model={tiny_model}", f"--output={tmp_path / 'b.npy'}", "--limit=2").code == 0
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    assert (tmp_path / "a.ids.txt").read_text().split() == IDS[:2]
    assert len(listing(tmp_path)) == 6


@pytest.mark.parametrize(
    ("quiet", "terminal", "shown"), [(False, True, True), (True, True, False), (False, False, False)]
)
def test_progress_is_shown_on_a_terminal_unless_silence_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, quiet: bool, terminal: bool, shown: bool
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    assert progress_wanted(quiet) is shown


# --- --profile: an int8 space, calibrated on the first documents -----------------------------------------------------

LETTERS = "abcdefghijklmnop"
MANY = [
    {"_id": f"{a}{b}", "text": f"{a} cat {b} dog {a} red" + " one" * number}
    for number, b in enumerate("pqr")
    for a in LETTERS
]


@pytest.fixture
def int8() -> Any:
    pytest.importorskip("openvino")
    from embedkit.encoders import int8_profile

    if not int8_profile.int8_is_exact():
        pytest.skip("this CPU's int8 sums overflow")
    return int8_profile


def test_profile_is_calibrated_on_the_first_documents_and_an_index_brings_its_own(
    run: Run, tiny_model: Path, tmp_path: Path, int8: Any
) -> None:
    """Build, embed and search agree on the space; the agreement stands on standard error, before any row is made."""
    source, folder = write_jsonl(tmp_path / "c.jsonl", MANY), tmp_path / "x.index"
    built = run("index", "build", source, "-o", folder, "--model", tiny_model, "--profile", "fast", "--json")
    assert "in int8 against float32, on 24 texts held out: mean cosine" in built.remarks[0]
    embedded = run("embed", source, "-o", tmp_path / "x.npy", "--model", tiny_model, "--profile", "fast", "--json")
    assert embedded.facts["fingerprint"] == built.facts["fingerprint"]
    assert (
        run("embed", source, "-o", tmp_path / "y.npy", "--model", tiny_model, "--json").facts["fingerprint"]
        != (built.facts["fingerprint"])
    )
    found = run("search", folder, MANY[3]["text"], "-k", "1", "--json").facts
    assert (found["hits"][0]["id"], round(found["hits"][0]["score"], 2)) == (MANY[3]["_id"], 1)
    assert run("index", "add", folder, source).code == 0


def test_a_resumed_run_keeps_its_profile(
    run: Run, tiny_model: Path, tmp_path: Path, int8: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the option is given again and other documents stand at the front by now."""
    monkeypatch.setattr("embedkit.engine.run.WINDOW", 8)
    monkeypatch.setattr(int8, "TEXTS", 16)
    source = write_jsonl(tmp_path / "c.jsonl", MANY)
    whole = source.read_text()
    source.write_text("".join(whole.splitlines(keepends=True)[:30]) + "not json\n")
    command = ["embed", source, "-o", tmp_path / "x.npy", "--model", tiny_model, "--profile", "fast"]
    run(*command).sentence(3)
    source.write_text(whole)
    monkeypatch.setattr(int8, "calibrated", None)  # not to be called again
    assert run(*command, "--resume").code == 0
    assert json.loads((tmp_path / "x.manifest.json").read_text())["settings"]["profile"]["name"] == "fast"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("embed - -o {tmp}/x.npy --model {model} --profile fast", "standard input cannot give"),
        ("eval --tasks SciFact --model {model} --profile fast", "--profile goes with --data"),
        ("eval --data {tmp} --index {tmp} --profile fast", "an index brings its own"),
        ("embed {corpus} -o {tmp}/x.npy --model {model} --profile fast", "7 different texts came to calibrate with"),
    ],
)
def test_where_no_profile_can_be_made(
    command: str, message: str, run: Run, corpus: Path, tiny_model: Path, tmp_path: Path, int8: Any
) -> None:
    assert message in run(*command.format(tmp=tmp_path, model=tiny_model, corpus=corpus).split()).sentence(2)
