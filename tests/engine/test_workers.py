"""Several processes: the same bytes as one, and an end in bounded time whatever becomes of a worker."""

from __future__ import annotations

import functools
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedkit.engine.run as run
from embedkit.engine import embed_to_file, open_vectors, workers
from embedkit.errors import EmbedkitError, ModelError, UsageError
from embedkit.types import Document

from .fakes import Plain, Windowed, documents, rows
from .test_job import MANY, contents

PATIENCE = 1.5  # seconds, in place of ten minutes
BOUND = 60  # seconds, of which a busy machine may take most to start two processes


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "WINDOW", 4)


def with_culprit(text: str) -> list[Document]:
    """22 documents, of which the 15th (window 3, position 2) tells the model to misbehave."""
    given = documents(22)
    given[14] = Document("culprit", text)
    return given


def windowed(**options: Any) -> Any:
    return functools.partial(Windowed, **options)


@pytest.mark.parametrize("factory", [functools.partial(Plain), windowed()], ids=["plain", "windowed"])
def test_two_workers_write_what_one_writes(tmp_path: Path, factory: Any) -> None:
    given = [document for document in MANY if "bad" not in document.text] if factory.func is Plain else MANY
    for count in (1, 2):
        (tmp_path / str(count)).mkdir()
        embed_to_file(given, tmp_path / str(count) / "x.npy", factory, workers=count)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert multiprocessing.active_children() == []


def test_workers_with_functions_of_their_own_write_what_one_writes(tmp_path: Path) -> None:
    given = documents(60)
    embed_to_file(given, tmp_path / "x.npy", [functools.partial(Plain)] * 2, workers=2)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), rows(document.full_text for document in given))


def test_workers_that_compute_differently_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"differ in their compute .*'device': 'cuda'.* give devices of one kind"):
        crew = [functools.partial(Plain, device="cpu"), functools.partial(Plain, device="cuda")]
        embed_to_file(documents(2), tmp_path / "x.npy", crew)
    assert not list(tmp_path.iterdir())


def test_windows_come_in_order_however_long_each_takes(tmp_path: Path) -> None:
    given = documents(60)
    embed_to_file(iter(given), tmp_path / "x.npy", functools.partial(Plain, seconds=0.01), workers=3)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), rows(document.full_text for document in given))


FAULTS = {
    "raise": "the model failed with RuntimeError: a screw is loose",
    "nan 2": "NaN",
    "killed": "died (exit code -9)",
    "hang": f"said nothing for {PATIENCE} seconds",
}


@pytest.mark.parametrize("text", FAULTS)
@pytest.mark.parametrize("kind", [Plain, Windowed])
def test_a_worker_that_fails_ends_the_job_with_the_id_and_it_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, kind: Any
) -> None:
    factory, path = functools.partial(kind), tmp_path / "x.npy"
    if text == "hang":
        monkeypatch.setattr(workers, "PATIENCE", PATIENCE)
    start = time.monotonic()
    with pytest.raises(ModelError) as error:
        embed_to_file(with_culprit(text), path, factory, workers=2)
    assert time.monotonic() - start < BOUND
    assert FAULTS[text].lower() in str(error.value).lower()
    # a plain encoder takes the window whole: without a position the first is named, the batch's first of a windowed one
    named = "culprit" if kind is Windowed or text == "nan 2" else "d12"
    assert f"At the document {named!r}" in str(error.value)
    assert multiprocessing.active_children() == []
    given = with_culprit("well again")
    embed_to_file(given, path, factory, workers=2, resume=True)  # the windows before it are done
    limit = Windowed.LONGEST if kind is Windowed else None
    np.testing.assert_array_equal(open_vectors(path).rows, rows(document.full_text[:limit] for document in given))


def cannot_open(error: str) -> Any:
    raise {"model": ModelError("no such model"), "usage": UsageError("no such dtype"), "other": KeyError("dim")}[error]


@pytest.mark.parametrize(
    ("error", "words"), [("model", "no such model"), ("usage", "no such dtype"), ("other", "KeyError")]
)
def test_a_model_that_cannot_be_opened_is_told_as_with_one_worker(tmp_path: Path, error: str, words: str) -> None:
    with pytest.raises(EmbedkitError, match=words) as raised:
        embed_to_file(documents(2), tmp_path / "x.npy", functools.partial(cannot_open, error), workers=2)
    assert raised.value.exit_code == (2 if error == "usage" else 4)
    assert multiprocessing.active_children() == []
    assert not list(tmp_path.iterdir())


def hangs() -> Any:
    time.sleep(1000)


def test_a_model_that_never_opens_ends_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "OPENING", 0.5)
    with pytest.raises(ModelError, match=r"A worker said nothing for 0\.5 seconds before its first batch"):
        embed_to_file(documents(2), tmp_path / "x.npy", hangs, workers=2)
    assert multiprocessing.active_children() == []


def test_what_cannot_be_sent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be sent to another process"):
        embed_to_file(documents(2), tmp_path / "x.npy", lambda: Plain(), workers=2)
    with pytest.raises(UsageError, match="need a function that opens the model"):
        embed_to_file(documents(2), tmp_path / "x.npy", Plain(), workers=2)
    with pytest.raises(UsageError, match="workers=0"):
        embed_to_file(documents(2), tmp_path / "x.npy", Plain(), workers=0)
    assert not list(tmp_path.iterdir())


def test_large_windows_do_not_wait_for_a_worker_that_reads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe holds 64 KiB: whoever wrote into that of a hung worker himself would hang with it."""
    monkeypatch.setattr(workers, "PATIENCE", PATIENCE)
    given = [Document(str(n), f"hang {'x' * 200_000}") for n in range(20)]
    start = time.monotonic()
    with pytest.raises(ModelError, match="At the document '0': A worker said nothing"):
        embed_to_file(given, tmp_path / "x.npy", functools.partial(Plain), workers=2)
    assert time.monotonic() - start < BOUND


def test_the_number_of_workers_stands_in_the_ledger(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        embed_to_file(with_culprit("raise"), tmp_path / "x.npy", functools.partial(Plain), workers=2)
    with pytest.raises(UsageError, match=r"\(workers: 2 then, 1 now\)"):
        embed_to_file(with_culprit(""), tmp_path / "x.npy", Plain(), resume=True)
