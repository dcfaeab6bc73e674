"""What an index holds open, and for how long: under close, in forked processes, copies, and where descriptors are out.

Samples by a fixed seed; `tests/index_suites.py churn | closes | readers` are the whole.
"""

from __future__ import annotations

import copy
import functools
import gc
import multiprocessing
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit import storage
from embedkit.errors import DataError, ModelMismatch, Stopped, UsageError
from embedkit.index import Index
from embedkit.index.manifest import manifest_numbers
from embedkit.index.update import changing
from embedkit.jobs import add_to_index, build_index, open_index

from ..index_loads import DIM, MOST_DESCRIPTORS, Hashed, churn, closes, descriptors, readers, rows_of

ROWS = rows_of(300, 1)


class Other(Hashed):
    fingerprint = "e" * 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """With texts and a sparse leg."""
    documents = [{"_id": f"d{n}", "text": f"wa text {n}", "n": n} for n in range(40)]
    build_index(documents, tmp_path / "x", model=Hashed(), sparse="bm25").close()
    return tmp_path / "x"


@contextmanager
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def wrong(found: Any) -> list[str]:
    return [name for name in found if "WRONG" in name]


# --- samples of the suites --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True])
def test_versions_that_are_let_go_leave_nothing_open_without_the_collector(sparse: bool) -> None:
    found = churn(12, 5, sparse)
    assert not wrong(found)
    assert max(value for name, value in found.items() if "descriptors" in name) <= MOST_DESCRIPTORS


def test_an_index_is_closed_while_threads_search_it() -> None:
    found = closes(6, 5)
    assert not wrong(found) and found["closes"] == 6


@pytest.mark.long
def test_readers_beside_a_writer_see_whole_versions() -> None:
    found = readers(2.0, 5, 10.0, say=lambda line: None)
    assert not wrong(found) and found["searches"] and found["commits"]


# --- close ------------------------------------------------------------------------------------------------------------------


def test_all_that_is_open_goes_with_close_and_with_the_last_reference(path: Path) -> None:
    with uncollected():
        before = descriptors()
        kept: list[Any] = []
        for explicitly in (True, False):
            index = Index(path)
            index.search(ROWS[:1], mode="hybrid", sparse_queries=["wa"], where={"n": {"lt": 9}})
            assert descriptors() > before and str(path) in Path("/proc/self/maps").read_text()
            if explicitly:
                with pytest.raises(UsageError) as error:
                    index.search(ROWS[:1], where={"m": 1})
                kept.append(error.value.__traceback__)  # whose frames know what was searched
                index.close()
                index.close()
            else:
                kept.clear()
                del index
            assert descriptors() == before and str(path) not in Path("/proc/self/maps").read_text()


def test_an_addition_that_fails_leaves_nothing_open(path: Path) -> None:
    with uncollected(), Index(path, lambda: Hashed()) as index:  # type: ignore[arg-type, return-value]
        before = descriptors()
        for _ in range(3):
            with pytest.raises(DataError, match="came before"):
                index.add([{"_id": "a", "text": "b"}, {"_id": "a", "text": "c"}])
            with pytest.raises(DataError, match="half of a character"):
                index.add([{"_id": "a", "text": "b"}, {"_id": "b", "text": "\ud800"}])
        assert descriptors() == before


def test_a_search_that_runs_ends_after_close_and_another_one_says_that_it_is_closed(path: Path) -> None:
    index = Index(path)
    with index._opened.taken() as snapshot:
        index.close()
        assert len(snapshot.document_ids(np.arange(3))) == len(snapshot.documents(np.arange(3))) == 3
    asked: list[Callable[[], Any]] = [
        lambda: index.search(ROWS[:1]),
        lambda: index.get(["d1"]),
        lambda: index.add(ROWS[:1], ids=["x"]),
        lambda: index.delete("d1"),
        index.compact,
        index.verify,
        index.info,
        index.__enter__,
        lambda: index.snapshot,
    ]
    for ask in asked:
        with pytest.raises(UsageError, match=r"x is closed; open it again\.$"):
            ask()
    with pytest.raises(UsageError, match="is closed, and cannot be copied"):
        copy.copy(index)
    assert len(index) == 40  # a fact


def test_the_folder_of_an_open_index_is_gone_or_another(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for how in ("moved", "removed", "built again"):
        build_index(ROWS, path, coarse="IVF4,SQ8").close()
        index = Index(path)
        shutil.rmtree(path) if how != "moved" else path.rename(tmp_path / "y")
        if how == "built again":
            build_index(ROWS[::-1].copy(), path, coarse="IVF4,SQ8").close()
        for ask in (functools.partial(index.search, ROWS[:1]), index.verify):
            with pytest.raises(UsageError, match="was moved, removed or built again since it was opened"):
                ask()
        index.close()
        shutil.rmtree(path, ignore_errors=True)


# --- whose index ------------------------------------------------------------------------------------------------------------


def test_an_index_that_another_model_has_built_again_takes_nothing_of_the_first(path: Path) -> None:
    index = open_index(path, Hashed())  # type: ignore[arg-type]
    shutil.rmtree(path)
    build_index([{"_id": "a", "text": "other"}], path, model=Other()).close()
    for add in (lambda: index.add([{"_id": "b", "text": "x"}]), lambda: index.add(rows_of(1, 2), ids=["b"])):
        with pytest.raises(
            ModelMismatch, match=r"built again since it was opened: by eeeeeeeeeeee .* not by ffffffffffff"
        ):
            add()
    with Index(path, check=True) as now:
        assert len(now) == 1


def test_a_lone_text_is_one_id(path: Path) -> None:
    with Index(path) as index:
        assert index.add(rows_of(1, 2), ids="abc") == 1
        assert [document.id for document in index.get("abc")] == ["abc"]
        with pytest.raises(UsageError, match="1 ids came with 2 vectors"):
            index.add(rows_of(2, 2), ids="ab")
        assert index.delete("abc") == 1
    assert add_to_index(path, rows_of(1, 2), ids="abc").documents == 1


# --- processes and threads --------------------------------------------------------------------------------------------------


def in_a_child(act: Callable[[], Any], seconds: float = 20) -> None:
    """Fails unless a forked process ends well."""
    if (pid := os.fork()) == 0:
        try:
            act()
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    ends = time.monotonic() + seconds
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > ends:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            pytest.fail("the child hangs")
        time.sleep(0.005)
    assert ended[1] == 0


def test_a_forked_process_searches_and_adds(path: Path) -> None:
    with Index(path) as index:
        expected = index.search(ROWS[:64], k=3).ids  # the threads of OpenMP are there
        searching = threading.Event()

        def search() -> None:
            while not searching.is_set():
                index.search(ROWS[:1], k=20)

        thread = threading.Thread(target=search)
        thread.start()
        try:
            for _ in range(5):
                in_a_child(lambda: index.search(ROWS[:64], k=3).ids == expected or os._exit(2))
            in_a_child(lambda: open_index(path, threads=2).search(ROWS[:64], k=3))
            in_a_child(lambda: Index(path).add(ROWS[:40], ids=[f"c{n}" for n in range(40)]))
        finally:
            searching.set()
            thread.join()
        assert index.add(ROWS[:1], ids=["p"]) == 1 and len(index) == 81


def test_a_lock_does_not_outlive_its_write_in_a_forked_process(tmp_path: Path) -> None:
    lock, ready = tmp_path / "lock", os.pipe()
    with storage.lock(lock, tmp_path):
        if (pid := os.fork()) == 0:
            os.write(ready[1], b"x")
            time.sleep(60)
            os._exit(0)
        assert os.read(ready[0], 1) == b"x"
        with (
            pytest.raises(Stopped, match="Another thread of this process is writing"),
            storage.lock(lock, tmp_path),
        ):
            pass
    try:
        with storage.lock(lock, tmp_path):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def found_by(index: Index, answers: Any) -> None:
    answers.put(index.search("wa text 3", k=1).ids)


@pytest.mark.long
def test_an_index_goes_to_a_process_by_its_path(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with open_index(path, Hashed()) as index:  # type: ignore[arg-type]
        process = context.Process(target=found_by, args=(index, answers))
        process.start()
        assert answers.get(timeout=60) == index.search("wa text 3", k=1).ids
        process.join()


def test_a_copy_is_an_index_of_its_own_at_the_same_path(path: Path) -> None:
    encoder = Other()
    with Index(path, threads=1) as index:
        for other in (copy.copy(index), copy.deepcopy(index)):
            assert other.threads == 1 and other.snapshot is not index.snapshot
            other.close()
        assert index.search(ROWS[:1]).ids
    with pytest.raises(ModelMismatch):
        copy.deepcopy(open_index(path, encoder)).encoder()
    assert (Index.__reduce__(open_index(path, encoder))[1][1]()) is encoder


# --- descriptors ------------------------------------------------------------------------------------------------------------


def test_too_few_descriptors_are_no_damage_and_no_error_after_the_commit(tmp_path: Path) -> None:
    path = tmp_path / "x"
    index = build_index(rows_of(100, 1), path, ids=[f"d{n}" for n in range(100)])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 40, limits[1]))
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        for number in range(30):
            os.close(held.pop())
            before = manifest_numbers(path)[-1] if held[1:] and number > 1 else 1
            try:
                index.add(rows_of(1, 2), ids=[f"n{number}"])
            except OSError as error:
                assert "Too many open files" in str(error) and len(index) == 100
                assert number <= 1 or manifest_numbers(path)[-1] == before
            else:
                break
        assert number > 2 and len(index) == 101
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in held:
            os.close(descriptor)
    assert index.search(rows_of(1, 2), k=1).ids == [[f"n{number}"]]
    index.close()


def test_settings_that_were_measured_on_an_index_are_of_no_use_to_another(tmp_path: Path) -> None:
    from embedkit.index.calibration import Settings

    path = tmp_path / "x"
    index = build_index(ROWS, path, coarse="IVF4,SQ8")
    record = index.manifest.segments[0]
    shutil.rmtree(path)
    build_index(ROWS[::-1].copy(), path, coarse="IVF4,SQ8").close()
    with pytest.raises(Stopped, match="changed since its settings were measured"):
        index.set_settings({record.number: Settings(*(getattr(record, name) for name in Settings._fields))})
    with changing(path) as change:
        assert change.old.number == 1
    assert ROWS.shape[1] == DIM
