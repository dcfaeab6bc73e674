"""Exit codes and sentences: what scripts and people are told when something is wrong."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .conftest import QUESTION, ROWS, Run, flip, listing, write_jsonl


@pytest.fixture
def place(tmp_path: Path, corpus: Path, vectors: Path, index: Path, tiny_model: Path) -> Callable[[str], list[str]]:
    """place("embed {corpus} -o {tmp}/x.npy") -> the words, with what stands in braces filled in."""
    names = {"tmp": tmp_path, "corpus": corpus, "vectors": vectors, "index": index, "model": tiny_model}
    return lambda line: [word.format(**names) for word in line.split()]


WRONG_USE = {  # the call -> words of the sentence that answers it
    "frobnicate": "No such command 'frobnicate'",
    "embed {corpus} -o {tmp}/x.npy --frobnicate": "No such option '--frobnicate'",
    "embed -o {tmp}/x.npy": "Missing argument 'INPUT'",
    "embed {corpus}": "Missing option '-o'",
    "embed {tmp}/no.jsonl -o {tmp}/x.npy --model {model}": "no.jsonl is not there",
    "embed {tmp} -o {tmp}/x.npy --model {model}": "holds no corpus",
    "embed {model}/model.safetensors -o {tmp}/x.npy --model {model}": "files ending in '.safetensors' are not read",
    "embed {corpus} -o {vectors} --model {model}": "corpus.npy is there already",
    "embed {corpus} -o {tmp}/x.bin --model {model}": "NAME.npy",
    "embed {corpus} -o {corpus}/x.npy --model {model}": "corpus.jsonl: File exists",
    "embed {corpus} -o {tmp}/x.npy --model {model} --kind sentence": "'sentence' is not one of 'query', 'document'",
    "embed {corpus} -o {tmp}/x.npy --model {model} --dim 33": "dim=33",
    "embed {corpus} -o {tmp}/x.npy --model {model} --dim 0": "dim=0",
    "embed {corpus} -o {tmp}/x.npy --model {model} --limit 0": "0 is not in the range",
    "embed {corpus} -o {tmp}/x.npy --model {model} --limit many": "'many' is not a valid integer",
    "embed {corpus} -o {tmp}/x.npy --model {model} --dtype float8": "dtype='float8'",
    "embed {corpus} -o {tmp}/x.npy --model {model} --backend abacus": "'abacus' is not one of",
    "embed {corpus} -o {tmp}/x.npy --model {model} --device toaster": "device='toaster'",
    "embed {corpus} -o {tmp}/x.npy --model {model} --prompt-name limerick": "no prompt named 'limerick'",
    "embed {corpus} -o {tmp}/x.npy --model {model} --threads 0": "threads=0",
    "embed {corpus} -o {tmp}/x.npy --model {model} --batch-tokens -1": "batch_tokens=-1",
    "embed {corpus} -o {tmp}/x.npy --model {model} --max-tokens 0": "max_tokens=0",
    "embed {corpus} -o {tmp}/x.npy --model {model} --max-tokens 100000": "takes 64 tokens",
    "index": "Build, change, describe and verify an index",
    "index build {corpus} -o {index} --model {model}": "tiny.index is there already",
    "index build {corpus} -o {tmp}/x --model {model} --metric manhattan": "'manhattan' is not one of",
    "index build {corpus} -o {tmp}/x --model {model} --fine int4": "'int4' is not one of",
    "index build {corpus} -o {tmp}/x --model {model} --coarse banana": "no index of 'banana'",
    "index build {vectors} -o {tmp}/x --coarse PQ7x4": "no index of 'PQ7x4' in 32 dimensions",
    "index build {corpus} -o {tmp}/x --model {model} --documents {corpus}": "--documents belongs to VECTORS",
    "index build {vectors} -o {tmp}/x --model {model}": "leave the options out",
    "index build {vectors} -o {tmp}/x --dtype float32": "leave the options out",
    "index build {tmp}/no.npy -o {tmp}/x": "no.npy is not there",
    "index info {tmp}/no.index": "holds no index",
    "index verify {corpus}": "holds no index",
    "index build {corpus} -o {tmp}/x --model {model} --recall 1": "recall=1.0",
    "index build {corpus} -o {tmp}/x --model {model} --coarse SQ8 --bytes-per-vector 16": "bytes_per_vector is what",
    "index build {corpus} -o {tmp}/x --model {model} --bytes-per-vector 8": "bytes_per_vector=8",
    "index build {corpus} -o {tmp}/x --model {model} --ram much": "expected bytes, such as 500MB",
    "index build {corpus} -o {tmp}/x --model {model} --on-long split": "'split' is not one of",
    "index build {corpus} -o {index} --model {model} --documents {corpus}": "tiny.index is there already",
    "index add {tmp}/no.index {corpus}": "holds no index",
    "index add {index} {tmp}/no.jsonl": "no.jsonl is not there",
    "index add {index} {vectors} --dtype float32": "leave the options out",
    "index delete {tmp}/no.index d1": "holds no index",
    "index delete {index}": "Give ids, --ids FILE or --where JSON",
    "index delete {index} d1 --where {{}}": "Give ids, --ids FILE or --where JSON",
    "index delete {index} --ids {tmp}/no.txt": "no.txt is not there",
    "index compact {tmp}/no.index": "holds no index",
    "search {tmp}/no.index cat": "holds no index",
    "search {index}": "Give a question, --image FILE, --queries FILE or --like ID",
    "search {index} cat --queries {corpus}": "Give a question, --image FILE, --queries FILE or --like ID",
    "search {index} cat --like d1": "Give a question, --image FILE, --queries FILE or --like ID",
    "search {index} cat --where [1]": "expected an object",
    "search {index} cat --where {{year": "--where is no JSON",
    "search {index} cat --group worst": "'worst' is not one of",
    "search {index} --like d99": "holds no document 'd99'",
    "search {index} cat -o {tmp}/run.trec": "-o writes the run of --queries",
    "search {index} --queries {tmp}/no.jsonl": "no.jsonl is not there",
    "search {index} cat -k 0": "k=0",
    "search {index} cat -k many": "'many' is not a valid integer",
    "eval -o {tmp}/results": "Give --data",
    "eval --tasks STS22 --index {index} -o {tmp}/results": "searches no corpus",
    "eval --data {tmp} -o {tmp}/results": "holds no task",
    "demo -o {index}": "tiny.index is there already",
}


@pytest.mark.parametrize("line", WRONG_USE)
def test_wrong_use_is_one_sentence_with_exit_code_2(
    run: Run, place: Callable[[str], list[str]], tmp_path: Path, line: str
) -> None:
    done = run(*place(line))
    if line == "index":  # a group alone is answered with its help
        assert (done.code, done.out) == (2, "")
        assert WRONG_USE[line] in done.err
    else:
        assert WRONG_USE[line] in done.sentence(2)
    assert listing(tmp_path) == set()


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(
            "index build {vectors} -o {tmp}/x --limit -1",
        ),
        pytest.param(
            "index build {vectors} -o {tmp}/x --limit 0",
        ),
        pytest.param(
            "embed {corpus} -o {tmp}/x.npy --model {model} --batch-tokens 0",
        ),
    ],
)
def test_numbers_that_cannot_be_are_wrong_use_everywhere(
    run: Run, place: Callable[[str], list[str]], line: str
) -> None:
    flag, number = line.split()[-2:]
    said = run(*place(line)).sentence(2)
    assert number in said and (flag in said or flag.strip("-").replace("-", "_") in said)


@pytest.mark.parametrize(
    ("package", "line", "extras"),
    [
        (
            "faiss",
            "index build {vectors} -o {tmp}/x --coarse Flat",
            ['pip install -e ".[cpu]"', 'pip install -e ".[gpu]"'],
        ),
        pytest.param(
            "pytrec_eval",
            "eval --data {tmp} --model {model} -o {tmp}/results",
            ['pip install -e ".[eval]"'],
        ),
        ("mteb", "eval --tasks STS22 --model {model} -o {tmp}/results", ['pip install -e ".[eval]"']),
    ],
)
def test_a_missing_extra_is_named_with_the_line_that_brings_it(
    run: Run,
    place: Callable[[str], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    line: str,
    extras: list[str],
) -> None:
    write_beir(tmp_path)
    before = listing(tmp_path)
    for name in {package, "mteb"}:
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    sentence = run(*place(line)).sentence(2)
    assert f"{package} is not installed" in sentence
    assert all(extra in sentence for extra in extras)
    assert listing(tmp_path) == before


def test_folders_are_evaluated_without_mteb(
    run: Run, place: Callable[[str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_beir(tmp_path)
    monkeypatch.setitem(sys.modules, "mteb", None)
    assert run(*place("eval --data {tmp} --model {model} -o {tmp}/results")).code == 0


def write_beir(folder: Path) -> None:
    write_jsonl(folder / "corpus.jsonl", ROWS)
    write_jsonl(folder / "queries.jsonl", [{"_id": "q1", "text": QUESTION}])
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td0\t1\n")


BAD_DATA = {  # file -> (its bytes, words of the sentence)
    "broken.jsonl": (b'{"_id": "a", "text": "cat"}\n{"_id": \n', "line 2: not valid JSON"),
    "list.jsonl": (b'["cat"]\n', "line 1: a JSON list came"),
    "no-id.jsonl": (b'{"text": "cat"}\n', "line 1: no id"),
    "no-text.jsonl": (b'{"_id": "a", "text": "cat"}\n\n{"_id": "b"}\n', "line 3: the field 'text' is missing"),
    "twice.jsonl": (b'{"_id": "a", "text": "cat"}\n{"_id": "a", "text": "dog"}\n', "line 2: the id 'a' came before"),
    "empty.jsonl": (b"", "is empty"),
    "latin.jsonl": (b'{"_id": "a", "text": "caf\xe9"}\n', "line 1: byte 0xe9"),
    "ragged.csv": (b"id,text\na,cat\nb,dog,fish\n", "line 3: 3 columns came"),
    "cut.jsonl.gz": (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x4b", "not a whole gzip file"),
    "cut.parquet": (b"PAR1", "not a whole parquet file"),
}


@pytest.mark.parametrize("name", BAD_DATA)
@pytest.mark.parametrize("line", ["embed {source} -o {target}.npy", "index build {source} -o {target}"])
def test_bad_data_is_named_by_file_and_line_with_exit_code_3(
    run: Run, tmp_path: Path, tiny_model: Path, name: str, line: str
) -> None:
    content, words = BAD_DATA[name]
    source = tmp_path / name
    source.write_bytes(content)
    command = line.format(source=source, target=tmp_path / "x").split()
    sentence = run(*command, "--model", tiny_model).sentence(3)
    assert str(source) in sentence
    assert words in sentence
    assert listing(tmp_path) == {name}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.array([[1.0, np.nan]]), "The vector of '0' is not finite"),
        pytest.param(
            np.array([[1.0, np.inf]]),
            "The vector of '0' is not finite",
        ),
        (np.array([1.0, 2.0]), "expected floats of shape (rows, dim)"),
        (np.array([[1, 2]]), "expected floats of shape (rows, dim)"),
        (np.array([["a", "b"]]), "expected floats of shape (rows, dim)"),
        (np.empty((0, 2)), "no rows to index"),
    ],
    ids=["nan", "infinity", "one dimension", "whole numbers", "texts", "no rows"],
)
def test_arrays_that_are_no_vectors_are_bad_data(run: Run, tmp_path: Path, rows: np.ndarray, words: str) -> None:
    np.save(tmp_path / "x.npy", rows)
    assert words in run("index", "build", tmp_path / "x.npy", "-o", tmp_path / "x.index").sentence(3)
    assert listing(tmp_path) == {"x.npy"}


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (b"a\n", "1 lines"),
        (b"a\nb\nc\n", "3 lines"),
        (b"a\na\n", "the id 'a' came before"),
        pytest.param(
            b"a\n\xff\n",
            "x.ids.txt",
        ),
    ],
    ids=["too few", "too many", "twice", "not utf-8"],
)
def test_ids_that_do_not_fit_their_vectors_are_bad_data(run: Run, tmp_path: Path, ids: bytes, words: str) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 2), np.float32))
    (tmp_path / "x.ids.txt").write_bytes(ids)
    assert words in run("index", "build", tmp_path / "x.npy", "-o", tmp_path / "x.index").sentence(3)
    assert listing(tmp_path) == {"x.npy", "x.ids.txt"}


def test_an_array_of_objects_is_bad_data_and_is_not_unpickled(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[Tripwire()]], dtype=object), allow_pickle=True)
    run("index", "build", tmp_path / "x.npy", "-o", tmp_path / "x.index").sentence(3)
    assert listing(tmp_path) == {"x.npy"}


class Tripwire:
    """Unpickled, it would fail the test."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("an object was unpickled",)


def open_bracket(path: Path) -> None:
    """One changed bit in the header of a .npy file, and numpy ends with an error that is no ValueError."""
    flip(path, path.read_bytes().index(b"}"))


def test_an_array_with_a_damaged_header_is_bad_data(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 2), np.float32))
    open_bracket(tmp_path / "x.npy")
    assert "x.npy" in run("index", "build", tmp_path / "x.npy", "-o", tmp_path / "x.index").sentence(3)


@pytest.mark.parametrize(
    ("model", "words"),
    [("{tmp}", "cannot be opened"), ("{tmp}/a/b", "There is no folder"), ("not-a-model-of-anyone", "cannot be opened")],
    ids=["a folder without a model", "no folder", "an unknown name, without network"],
)
def test_what_is_no_model_ends_with_exit_code_4(run: Run, corpus: Path, tmp_path: Path, model: str, words: str) -> None:
    name = model.format(tmp=tmp_path)
    sentence = run("embed", corpus, "-o", tmp_path / "x.npy", "--model", name).sentence(4)
    assert name in sentence
    assert words in sentence
    assert listing(tmp_path) == set()


def test_weights_that_are_pickles_are_refused(run: Run, corpus: Path, tmp_path: Path, plain_model: Path) -> None:
    """Only safetensors are read: pytorch_model.bin would run code."""
    folder = shutil.copytree(plain_model, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    assert "safetensors" in run("embed", corpus, "-o", tmp_path / "x.npy", "--model", folder).sentence(4)


MANIFEST = "manifest-000001.json"


def fingerprint_of(index: Path) -> str:
    return str(json.loads((index / MANIFEST).read_text())["source"]["fingerprint"])


def test_a_query_from_another_model_is_refused_with_both_fingerprints(
    run: Run, index: Path, prompted_model: Path, tiny_model: Path
) -> None:
    from embedkit.encoders import load

    sentence = run("search", index, QUESTION, "--model", prompted_model).sentence(5)
    assert fingerprint_of(index)[:12] in sentence
    assert load(prompted_model).fingerprint[:12] in sentence
    assert f"--model {tiny_model}" in sentence


@pytest.fixture
def damaged(tmp_path: Path, vectors: Path, run: Run) -> Path:
    """An index, to be damaged."""
    folder = tmp_path / "an.index"
    assert run("index", "build", vectors, "-o", folder, "--coarse", "SQ8").code == 0
    return folder


PARTS = ["fine.npy", "codes.faiss", "documents.sqlite", "ids.npy", "ids.txt"]
FILES = [*(f"segment-0001.{part}" for part in PARTS), MANIFEST]


def test_the_files_of_an_index_are_those_that_are_damaged_below(damaged: Path) -> None:
    assert listing(damaged) == {*FILES, "lock", "segment-0001.built.json"}  # the last is no part of it


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("name", FILES)
def test_verify_names_the_file_with_a_changed_bit(run: Run, damaged: Path, name: str, place: float) -> None:
    path = damaged / name
    flip(path, int(place * path.stat().st_size))
    assert str(path) in run("index", "verify", damaged).sentence(5)


def test_verify_names_the_fine_rows_when_their_header_is_damaged(run: Run, damaged: Path) -> None:
    open_bracket(damaged / FILES[0])
    assert FILES[0] in run("index", "verify", damaged).sentence(5)


@pytest.mark.parametrize("name", FILES[:-1])
@pytest.mark.parametrize("command", ["index verify", "index info", "search"])
def test_a_missing_or_shortened_file_is_named_by_every_command(
    run: Run, damaged: Path, name: str, command: str
) -> None:
    words = [*command.split(), damaged, *([QUESTION] if command == "search" else [])]
    path = damaged / name
    path.write_bytes(path.read_bytes()[:-1])
    assert str(path) in run(*words).sentence(5)
    path.unlink()
    assert f"{path} is missing" in run(*words).sentence(5)


def test_a_changed_bit_in_the_codes_is_found_before_they_are_searched(
    run: Run, damaged: Path, tiny_model: Path
) -> None:
    flip(damaged / FILES[1], 60)
    assert FILES[1] in run("search", damaged, QUESTION).sentence(5)


def test_a_changed_bit_in_the_documents_that_a_search_meets_is_named(run: Run, tmp_path: Path, index: Path) -> None:
    folder = shutil.copytree(index, tmp_path / "an.index")
    flip(folder / FILES[2], (folder / FILES[2]).read_bytes().index(b'{"year": 2001}'))
    assert FILES[2] in run("search", folder, QUESTION).sentence(5)


def test_verify_finds_a_file_that_does_not_belong_there(run: Run, damaged: Path) -> None:
    (damaged / "notes.txt").write_text("mine")
    assert "notes.txt" in run("index", "verify", damaged).sentence(5)


@pytest.mark.parametrize("command", ["index info", "index verify", "search"])
def test_a_newer_format_is_refused_not_misread(run: Run, damaged: Path, command: str) -> None:
    path = damaged / MANIFEST
    body = json.loads(path.read_text())
    del body["checksum"]
    body["version"] = 5
    text = json.dumps(body, sort_keys=True, ensure_ascii=True)
    path.write_text(json.dumps({**body, "checksum": hashlib.sha256(text.encode()).hexdigest()}))
    words = [*command.split(), damaged, *([QUESTION] if command == "search" else [])]
    sentence = run(*words).sentence(5)
    assert "format 5" in sentence
    assert "formats 2 to 4" in sentence
    assert "update embedkit" in sentence


@pytest.mark.parametrize("command", ["index info", "index verify", "index compact", "search"])
def test_an_index_of_the_first_format_is_to_be_built_again(run: Run, tmp_path: Path, command: str) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    np.save(tmp_path / "fine.npy", np.ones((1, 2), np.float16))
    words = [*command.split(), tmp_path, *([QUESTION] if command == "search" else [])]
    sentence = run(*words).sentence(5)
    assert "has index format 1, this embedkit reads formats 2 to 4; build it again" in sentence


@pytest.mark.parametrize("suffix", [".npy", ".ids.txt", ".manifest.json"])
def test_vectors_that_changed_since_they_were_written_are_refused(
    run: Run, tmp_path: Path, vectors: Path, suffix: str
) -> None:
    for path in vectors.parent.iterdir():
        shutil.copy(path, tmp_path)
    path = (tmp_path / vectors.name).with_suffix(suffix)
    flip(path, path.stat().st_size // 2)
    assert path.name in run("index", "build", tmp_path / vectors.name, "-o", tmp_path / "x").sentence(5)


@pytest.mark.parametrize(
    ("target", "lock", "command"), [("x.npy", "x.ledger", "embed"), ("x.index", "x.index/lock", "index build")]
)
def test_a_second_writer_of_the_same_name_is_told_to_wait(
    run: Run, tmp_path: Path, corpus: Path, tiny_model: Path, target: str, lock: str, command: str
) -> None:
    path = tmp_path / lock
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    words = [*command.split(), corpus, "-o", tmp_path / target, "--model", tiny_model, "--resume"]
    before, descriptor = listing(tmp_path), os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        sentence = run(*words).sentence(75)
    finally:
        os.close(descriptor)
    assert f"Another process is writing {tmp_path / target}" in sentence
    assert listing(tmp_path) == before  # it is the other's
    assert run(*words).code == 0  # the other has died
    assert target in listing(tmp_path)


@pytest.mark.parametrize("command", ["index add {0} {1}", "index delete {0} d0", "index compact {0}"])
def test_a_second_writer_of_an_index_is_told_to_wait(
    run: Run, tmp_path: Path, corpus: Path, index: Path, command: str
) -> None:
    folder = shutil.copytree(index, tmp_path / "x.index")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    descriptor = os.open(folder / "lock", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        sentence = run(*command.format(folder, corpus).split()).sentence(75)
    finally:
        os.close(descriptor)
    assert f"Another process is writing {folder}" in sentence
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


WRITING = {
    "embed": "embed {corpus} -o {tmp}/x.npy --model {model}",
    "index build": "index build {corpus} -o {tmp}/x.index --model {model}",
    "codes": "index build {vectors} -o {tmp}/x.index --coarse Flat",
    "search": "search {index} --queries {corpus} -o {tmp}/run.trec",
}


@pytest.mark.parametrize("line", WRITING.values(), ids=WRITING)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG], ids=["full disk", "quota", "file size"])
def test_a_full_disk_ends_with_exit_code_75_and_leaves_nothing(
    run: Run,
    place: Callable[[str], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    number: int,
) -> None:
    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    assert "The disk is full" in run(*place(line)).sentence(75)
    assert listing(tmp_path) == set()


def test_a_disk_that_is_full_for_the_documents_ends_alike(
    run: Run, tmp_path: Path, corpus: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect

    def small(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.execute("PRAGMA max_page_count = 2")  # SQLite's own way to run out of space
        return connection

    monkeypatch.setattr(sqlite3, "connect", small)
    done = run("index", "build", corpus, "-o", tmp_path / "x", "--model", tiny_model)
    assert "The disk is full" in done.sentence(75)
    assert listing(tmp_path) == set()


def test_a_stop_in_the_middle_of_an_index_leaves_nothing(
    run: Run, tmp_path: Path, corpus: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("embedkit.index.document_writer.DocumentWriter.append", interrupted)
    done = run("index", "build", corpus, "-o", tmp_path / "x", "--model", tiny_model)
    assert "Stopped; nothing half-written is left." in done.sentence(75)
    assert listing(tmp_path) == set()


def test_a_defect_shows_where_it_is_and_says_so_with_exit_code_1(
    run: Run, tmp_path: Path, corpus: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a screw is loose")

    monkeypatch.setattr("embedkit.jobs.embed_corpus", broken)
    done = run("embed", corpus, "-o", tmp_path / "x.npy", "--model", tiny_model)
    assert (done.code, done.out) == (1, "")
    assert done.remarks[0].startswith("Traceback")
    assert "RuntimeError: a screw is loose" in done.remarks
    assert done.remarks[-1].startswith("Error: This is a defect of embedkit;")


def test_an_unexpected_end_of_a_file_is_no_ctrl_c(
    run: Run, tmp_path: Path, corpus: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(*_: Any, **__: Any) -> None:
        raise EOFError("no more bytes")

    monkeypatch.setattr("embedkit.jobs.embed_corpus", ends)
    assert run("embed", corpus, "-o", tmp_path / "x.npy", "--model", tiny_model).code == 1


MEMORY, DESCRIPTORS = (
    "out of memory; run it again with fewer --batch-tokens",
    "may open no more files; allow more with: ulimit -n",
)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), MEMORY),
        (RuntimeError("std::bad_alloc"), MEMORY),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), MEMORY),
        (OSError(errno.EMFILE, "Too many open files"), DESCRIPTORS),
        (OSError(errno.ENFILE, "File table overflow", "a name"), DESCRIPTORS),
        (ImportError("libgomp.so.1: cannot open shared object file: Too many open files"), DESCRIPTORS),
    ],
    ids=repr,
)
def test_what_the_system_has_no_more_of_is_told_with_a_way_out(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, expected: str
) -> None:
    def none_left(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("embedkit.index.Index", none_left)
    assert expected in run("index", "info", tmp_path).sentence(75)
