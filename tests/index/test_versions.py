"""One writer and many readers: who waits, who is told to come back, what is held, and what is cleared away."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedkit.jobs.indexing as indexing
from embedkit import storage
from embedkit.errors import DataError, IntegrityError, Stopped, UsageError
from embedkit.index import Index, manifest, versions
from embedkit.index.faiss_import import faiss_threads
from embedkit.index.update import changing
from embedkit.jobs import add_to_index, build_index, open_index
from embedkit.types import Document

from ..engine.fakes import Windowed

ROOT = Path(__file__).parents[2]
ROWS = np.random.default_rng(2).standard_normal((200, 6)).astype(np.float32)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with faiss_threads(1):
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An index of two segments."""
    path = tmp_path / "an.index"
    build_index(ROWS[:30], path).close()
    add(path, range(100, 105))
    return path


def add(path: Path, numbers: range) -> None:
    with Index(path) as index:
        index.add(ROWS[list(numbers)], ids=[str(number) for number in numbers])


def answer(index: Index) -> Any:
    hits = index.search(ROWS[:3], 50)
    return hits.ids, hits.scores.tolist(), hits.documents, len(index)


def names(path: Path) -> set[str]:
    """Of its files, but for what the builds took, which no version names."""
    return {entry.name for entry in path.iterdir() if not entry.name.endswith(".built.json")}


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Python in a process of its own; `ready()` in it writes a line that `readline` waits for."""
    preamble = (
        "import sys, os, time\nfrom pathlib import Path\nimport numpy as np\nfrom embedkit.index import Index\n"
        "from embedkit.index.update import changing\npath = Path(sys.argv[1])\n"
        "def ready(): print('ready', flush=True)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", preamble + code, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


# --- writers --------------------------------------------------------------------------------------------------------------


def test_of_two_writers_in_threads_one_goes_on_and_the_other_is_told_to_come_back(path: Path) -> None:
    both_began = threading.Barrier(2)

    def write(number: int) -> str:
        index = Index(path)
        both_began.wait()
        try:
            with changing(path) as change:
                try:
                    both_have_tried.wait()
                    change.delete([str(number)])
                    change.commit()
                finally:
                    index.close()
            return "wrote"
        except Stopped as error:
            assert error.exit_code == 75
            assert (
                str(error)
                == f"Another thread of this process is writing {path}; wait for it to end, then run this again."
            )
            both_have_tried.wait()
            return "stopped"

    both_have_tried = threading.Barrier(2)
    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(write, (1, 2))) == ["stopped", "wrote"]
    with Index(path, check=True) as index:
        assert len(index) == 34


def test_a_writer_in_another_process_keeps_others_out_until_it_ends_however_it_does(path: Path) -> None:
    holder = child("with changing(path): ready(); sys.stdin.read()", path)
    assert holder.stdout is not None and holder.stdout.readline() == "ready\n"
    with Index(path) as index:
        before = answer(index)
        for change in (
            lambda: index.delete("1"),
            lambda: index.add(ROWS[:1], ids=["x"]),
            lambda: add_to_index(path, ROWS[:1], ids=["x"]),
            lambda: build_index(ROWS[:1], path, resume=True).delete("2"),
        ):
            with pytest.raises(Stopped, match="Another process is writing"):
                change()
        assert answer(index) == before
        code = "from embedkit.cli.main import main; main()"
        command = [sys.executable, "-c", code, "index", "delete", str(path), "1"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 75 and "Another process is writing" in done.stderr
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert index.delete("1") == 1


def test_two_builds_of_the_same_path(tmp_path: Path) -> None:
    began, go = threading.Event(), threading.Event()

    class Slow(Windowed):
        def _window(self, *arguments: Any) -> Any:
            began.set()
            go.wait()
            return super()._window(*arguments)

    def build() -> int:
        with build_index([Document("a", "one")], tmp_path / "x", model=Slow()) as index:
            return len(index)

    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(build)
        began.wait()
        with pytest.raises(Stopped):
            build_index([Document("a", "two")], tmp_path / "x", model=Windowed(), resume=True)
        with pytest.raises(UsageError, match="was begun"):
            build_index([Document("a", "two")], tmp_path / "x", model=Windowed())
        go.set()
        assert first.result() == 1
    Index(tmp_path / "x", check=True).close()


def test_an_index_that_is_behind_changes_the_newest_version(path: Path) -> None:
    with Index(path) as behind:
        add(path, range(110, 112))
        assert len(behind) == 35
        assert behind.delete("110") == 1
        assert len(behind) == 36
    with Index(path, check=True) as index:
        assert {"111", "3"} <= set(index.search(ROWS[0], 100).ids[0])


# --- readers --------------------------------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Path], object]] = {
    "add": lambda path: add(path, range(3, 9)),
    "delete": lambda path: Index(path).delete([str(n) for n in range(25)]),
    "compact": lambda path: Index(path).compact(),
    "all of them": lambda path: [CHANGES[name](path) for name in ("add", "delete", "compact")],
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("coarse", ["none", "IVF2,SQ8"])
def test_a_reader_keeps_the_version_that_it_opened(tmp_path: Path, name: str, coarse: str) -> None:
    path = tmp_path / "an.index"
    build_index(ROWS[:30], path, coarse=coarse, fine="int8").close()
    add(path, range(100, 105))
    with Index(path) as reader:
        number, before, files = reader.manifest.number, answer(reader), set(reader.manifest.named_files())
        CHANGES[name](path)
        assert answer(reader) == before
        reader.verify()
        assert files | {f"manifest-{number:06}.json"} <= names(path)
    with Index(path, check=True) as newest:
        assert newest.manifest.number > number
        assert files | {f"manifest-{number:06}.json"} <= names(path), "they go with the next commit"
        newest.add(ROWS[:1], ids=["new"])
        assert names(path) == {"lock", f"manifest-{newest.manifest.number:06}.json", *newest.manifest.named_files()}


@pytest.mark.parametrize("name", CHANGES)
def test_a_reader_keeps_the_terms_and_statistics_that_it_opened(tmp_path: Path, name: str) -> None:
    path = tmp_path / "an.index"
    corpus = [Document(str(n), f"word{n % 7} common {'rare' * (n % 3 == 0)}") for n in range(30)]
    build_index(ROWS[:30], path, documents=corpus, sparse="bm25").close()
    add(path, range(100, 105))

    def by_terms(index: Index) -> Any:
        hits = index.search(["word3 rare", "common"], 50, mode="sparse")
        both = index.search(ROWS[:2], 50, mode="hybrid", sparse_queries=["word3 rare", "common"])
        return hits.ids, hits.scores.tolist(), both.ids, both.scores.tolist()

    with Index(path) as asked_before, Index(path) as asked_after:
        before = by_terms(asked_before)
        CHANGES[name](path)
        assert by_terms(asked_before) == by_terms(asked_after) == before  # one of them opens its terms only now
        asked_after.verify()
    with Index(path, check=True) as newest:
        assert newest.manifest.number > 2
        assert by_terms(newest) != before or name == "compact"


def test_threads_search_by_terms_while_the_index_is_changed(tmp_path: Path) -> None:
    """Scores are those of one version: the five documents of an addition are all counted, or none is."""
    path = tmp_path / "an.index"
    build_index(ROWS[:4], path, documents=[Document(str(n), "base") for n in range(4)], sparse="bm25").close()
    index, stop, wrong = Index(path), threading.Event(), list[Any]()
    # idf of a term that all N documents of length 1 hold, with a frequency part of 1 / (1 + k1)
    possible = {round(float(np.log(1 + 0.5 / (n + 0.5)) / 1.9), 5): n for n in range(4, 80, 5)}

    def search() -> int:
        count = 0
        while not stop.is_set() or count == 0:
            hits = index.search("base", 100, mode="sparse")
            scores = {round(float(score), 5) for score in hits.scores[0][: len(hits.ids[0])]}
            wrong.extend([scores] if len(scores) != 1 or possible.get(*scores) != len(hits.ids[0]) else [])
            count += 1
        return count

    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(search) for _ in range(2)]
        for n in range(6):
            some = [Document(f"g{n}-{m}", "base") for m in range(5)]
            add_to_index(path, ROWS[:5], ids=[document.id for document in some], documents=some)
            index.delete(f"nobody{n}")
            index = Index(path)
        stop.set()
        assert min(future.result() for future in running) > 0
    assert wrong == []


def test_a_reader_in_another_process_keeps_its_files_until_it_dies(path: Path) -> None:
    with Index(path) as index:
        old = set(index.manifest.named_files())
    reader = child(
        "i = Index(path); b = i.search(np.ones(6, np.float32), 50).ids; ready(); sys.stdin.readline()\n"
        "i.verify(); assert i.search(np.ones(6, np.float32), 50).ids == b; ready(); sys.stdin.readline()",
        path,
    )
    assert reader.stdin is not None and reader.stdout is not None
    assert reader.stdout.readline() == "ready\n"
    CHANGES["all of them"](path)
    assert old <= names(path)
    reader.stdin.write("\n")
    reader.stdin.flush()
    assert reader.stdout.readline() == "ready\n"
    reader.kill()
    reader.wait()
    add(path, range(120, 121))
    assert not {name for name in old if "fine.npy" in name} & names(path)


def test_several_held_versions_keep_each_its_own(path: Path) -> None:
    held = [(index := Index(path), answer(index))]
    for number in range(4):
        add(path, range(110 + number, 111 + number))
        held.append((index := Index(path), answer(index)))
    for index, _ in held[::2]:
        index.close()
    add(path, range(130, 131))
    for index, before in held[1::2]:
        assert answer(index) == before
        index.verify()
        index.close()
    add(path, range(131, 132))
    assert len([name for name in names(path) if name.startswith("manifest")]) == 1


def test_an_index_that_nobody_closes_lets_its_version_go_with_it(path: Path) -> None:
    index = Index(path)
    old = index.manifest.number
    del index
    add(path, range(140, 141))
    assert f"manifest-{old:06}.json" not in names(path)


def test_a_reader_that_comes_while_its_version_is_removed_gets_the_next(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer publishes and removes just when the reader has read the name of the old version, or has just opened it."""
    real, calls = fcntl.flock, list[int]()

    def flock(descriptor: int, how: int) -> None:
        if how & fcntl.LOCK_SH and not calls:
            calls.append(how)
            monkeypatch.setattr(fcntl, "flock", real)
            add(path, range(150, 151))
            monkeypatch.setattr(fcntl, "flock", flock)
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with Index(path, check=True) as index:
        assert len(index) == 36 and calls
    newest = manifest.newest_number(path)
    stale = iter([newest - 1])
    monkeypatch.setattr(versions, "newest_number", lambda folder: next(stale, newest))
    with Index(path) as index:
        assert len(index) == 36
    stale = iter([newest - 1])
    monkeypatch.setattr(manifest, "newest_number", lambda folder: next(stale, newest))
    assert manifest.read_manifest(path).number == newest


def test_a_reader_waits_while_a_writer_is_about_to_remove_its_version(path: Path) -> None:
    """Without waiting it would hold a manifest whose files go."""
    name = path / f"manifest-{manifest.newest_number(path):06}.json"
    descriptor = os.open(name, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    asked, got = threading.Event(), list[Any]()

    def read() -> None:
        asked.set()
        got.append(storage.shared_hold(name))

    thread = threading.Thread(target=read)
    thread.start()
    asked.wait()
    kept = name.read_bytes()
    name.unlink()
    os.close(descriptor)
    thread.join()
    assert got == [None]
    name.write_bytes(kept)


def test_threads_search_while_the_index_is_changed(path: Path) -> None:
    """Each answer is that of one version: all documents of an addition, or none."""
    index, stop, wrong = Index(path), threading.Event(), list[str]()

    def search() -> int:
        count = 0
        while not stop.is_set() or count == 0:
            found = set(index.search(ROWS[:2], 100).ids[0])
            groups = {f"g{n}": {name for name in found if name.startswith(f"g{n}-")} for n in range(8)}
            wrong.extend(name for name, members in groups.items() if len(members) not in (0, 3))
            count += 1
        return count

    with ThreadPoolExecutor(3) as threads:
        running = [threads.submit(search) for _ in range(3)]
        for n in range(8):
            index.add(ROWS[:3], ids=[f"g{n}-{m}" for m in range(3)])
            if n % 3 == 2:
                index.compact()
                index.delete([f"g{n - 1}-{m}" for m in range(3)])
        stop.set()
        assert min(future.result() for future in running) > 0
    assert wrong == []
    index.verify()
    index.close()


# --- places ---------------------------------------------------------------------------------------------------------------


def test_an_index_moves_with_its_folder_and_a_copy_is_another(path: Path, tmp_path: Path) -> None:
    with Index(path) as index:
        before = answer(index)
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(path, copy)
    moved = path.rename(tmp_path / "moved")
    for place in (copy, moved):
        with Index(place, check=True) as index:
            assert answer(index) == before
    add(copy, range(150, 152))
    with Index(moved, check=True) as index:
        assert answer(index) == before


def test_a_folder_without_its_lock_file_is_an_index_too(path: Path) -> None:
    (path / "lock").unlink()
    with Index(path, check=True) as index:
        assert index.delete("3") == 1


def test_a_folder_that_cannot_be_written_to_is_read_and_refuses_changes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a read-only file system does it; permissions do not stop root."""
    real = os.open

    def refuse(name: Any, flags: int, *rest: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and str(path) in str(name):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(name))
        return real(name, flags, *rest, **named)

    monkeypatch.setattr(os, "open", refuse)
    with Index(path, check=True) as index:
        assert len(index.search(ROWS[0], 50).ids[0]) == 35
        with pytest.raises(UsageError, match=r"cannot be written to \(Read-only file system\); copy the index"):
            index.delete("1")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_permission_to_write_is_read_and_refuses_changes(path: Path) -> None:
    for entry in (*path.iterdir(), path):
        entry.chmod(0o555 if entry.is_dir() else 0o444)
    try:
        with Index(path, check=True) as index, pytest.raises(UsageError, match="cannot be written to"):
            index.delete("1")
    finally:
        path.chmod(0o755)


# --- what writers leave ---------------------------------------------------------------------------------------------------


def test_what_a_dead_writer_left_is_no_damage_and_goes_with_the_next_commit(path: Path) -> None:
    left = [
        "segment-0003.fine.npy",
        "segment-0003.documents.sqlite",
        "segment-0003.documents.sqlite.sorting",
        "segment-0001.deleted-000099.npy",
        "ranges-000003.npy",
        "manifest-000003.json.partial",
        "add.npy.partial",
        "add.ledger",
        "add.rows",
        "build.npy",
    ]
    for name in left:
        (path / name).write_bytes(b"half of it")
    with Index(path, check=True) as index:
        index.delete("5")
        assert not set(left) & names(path)
        index.verify()


def killed(path: Path, *, after: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the next call of a function of `indexing` end as if the process had died behind it."""
    real = getattr(indexing, after)

    class Killed(BaseException):
        pass

    def and_die(*arguments: Any, **named: Any) -> Any:
        real(*arguments, **named)
        raise Killed

    monkeypatch.setattr(indexing, after, and_die)
    try:
        add_to_index(path, [Document("a", "ant"), Document("b", "bee")], model=Windowed())
    except Killed:
        monkeypatch.setattr(indexing, after, real)


def test_an_addition_that_is_gone_on_with_takes_no_documents_of_another_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All vectors were there; then another change wrote its own documents under the same number, and failed."""
    path = tmp_path / "x"
    build_index([Document("c", "cat"), Document("d", "dog")], path, model=Windowed()).close()
    killed(path, after="embed_to_file", monkeypatch=monkeypatch)
    with Index(path) as index, pytest.raises(DataError, match="not finite"):
        index.add(np.full((2, Windowed.dim), np.nan, np.float32), ids=["x", "y"])
    add_to_index(path, [Document("a", "ant"), Document("b", "bee")], model=Windowed(), resume=True)
    with open_index(path, Windowed(), check=True) as index:
        assert index.search("ant", 1).ids == [["a"]]
        assert [document.text for document in index.get(["a", "b", "c"])] == ["ant", "bee", "cat"]


def test_an_addition_that_is_gone_on_with_another_corpus_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    build_index([Document("c", "cat")], path, model=Windowed()).close()
    killed(path, after="embed_to_file", monkeypatch=monkeypatch)
    for corpus in ("az", "a", "abc"):
        with pytest.raises((DataError, IntegrityError)):
            add_to_index(path, [Document(name, "x") for name in corpus], model=Windowed(), resume=True)
    with Index(path, check=True) as index:
        assert len(index) == 1
    add_to_index(path, [Document(name, "x") for name in "az"], model=Windowed())
    with Index(path, check=True) as index:
        assert len(index) == 3


def test_a_build_goes_on_in_nothing_but_its_own_folder(tmp_path: Path) -> None:
    """A folder of a person that holds a file named lock is none, and nothing in it is removed when the build fails."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "lock").write_text("")
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="is there already"):
        build_index(np.full((2, 2), np.nan, np.float32), mine, resume=True)
    assert (mine / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="is there already"):
        build_index(ROWS, tmp_path / "empty")
    build_index(ROWS, tmp_path / "empty", resume=True).close()


# --- a full disk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1000, 5000, 20_000, 60_000])
def test_a_file_that_may_grow_no_further_stops_a_change_cleanly(path: Path, limit: int) -> None:
    """RLIMIT_FSIZE is met by SQLite's writes, too, which no layer in Python sees."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))\n"
        "import json\nfrom embedkit.types import Document\nfrom embedkit.errors import Stopped\n"
        "from tests.engine.fakes import Windowed\nfrom embedkit.jobs import add_to_index, build_index\n"
        "corpus = [Document(f'd{n}', f'{n} ' * 30, metadata={'n': n}) for n in range(400)]\n"
        "found = []\n"
        "for change in (lambda: Index(path).add(np.ones((3000, 6), np.float32), ids=[f'n{n}' for n in range(3000)]),\n"
        "               lambda: build_index(corpus, path.with_name('new'), model=Windowed())):\n"
        "    try: change(); found.append('done')\n"
        "    except (OSError, Stopped) as error: found.append(f'{type(error).__name__}: {error}')\n"
        "print(json.dumps(found))"
    )
    before = Index(path)
    expected = answer(before)
    done = subprocess.run(
        [sys.executable, "-c", "import sys\nfrom pathlib import Path\nimport numpy as np\nfrom embedkit.index import Index\n"
         "path = Path(sys.argv[1])\n" + code, str(path), str(limit)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 2 and "done" not in found, done.stderr
    with Index(path, check=True) as index:
        assert answer(index) == expected
        assert index.delete("3") == 1
    before.close()
    if path.with_name("new").exists():
        corpus = [Document(f"d{n}", f"{n} " * 30, metadata={"n": n}) for n in range(400)]
        with build_index(corpus, path.with_name("new"), model=Windowed(), resume=True) as index:
            assert len(index) == 400
