"""Every storage operation of every change of an index fails once, or is the last before the power goes.

What is read afterwards is the old version or the new one, whole; the new one where the change had returned; and the same
change, run again, ends with the new one. A sample by a fixed seed; `tests/index_suites.py crash` tries every operation.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

import embedkit.engine.run as run
from embedkit.errors import Stopped, UsageError
from embedkit.index import Index
from embedkit.index.calibration import Settings
from embedkit.index.faiss_import import faiss_threads
from embedkit.jobs import add_to_index, build_index, open_index
from embedkit.types import Document

from ..engine.fakes import Windowed
from ..faults import Disk, SimulatedCrash
from ..index_suites import SHAPES, Zygote, files_of, killed_build, killed_life

Content = dict[str, Any] | None  # of an index, None where there is none
ROWS = np.random.default_rng(5).standard_normal((120, 8)).astype(np.float32)
TINY = [1, 2, 0, 3]
EVERYTHING = 500  # more than there are documents
FILTERS = ({"lang": "en"}, {"n": {"gte": 30}}, {"not": {"lang": "en"}})
FAILURES = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC}


def named(numbers: Iterable[int], text: str = "text") -> list[Document]:
    """A document of each number; some texts are so long that they get several passages."""
    return [
        Document(
            f"d{n}",
            f"{text} {n}" + " and more of it" * (n % 4 == 1),
            metadata={"n": n, "lang": "de" if n % 3 else "en"},
        )
        for n in numbers
    ]


class Layer:
    """A place of an index under the fault layer, `path`, in a folder that is put back to the same state each time."""

    def __init__(self, base: Path) -> None:
        self.root, self.kept = base / "disk", base / "kept"
        self.path = self.root / "an.index"

    def keep(self) -> None:
        shutil.copytree(self.root, self.kept)

    def put_back(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self.kept, self.root)

    def disk(self, fault: Callable[[int], BaseException | None] = lambda _: None) -> Disk:
        return Disk(self.root, fault)


Step = Callable[[Path], object]


@dataclass(frozen=True)
class Change:
    """Something that is done to an index; what stands there before; how it is done once more."""

    before: tuple[Step, ...]
    step: Step

    def again(self, path: Path) -> None:
        self.step(path)


def build_vectors(coarse: str, count: int, **options: Any) -> Step:
    def step(path: Path) -> None:
        documents = named(range(count))
        ids = [document.id for document in documents]
        build_index(
            ROWS[:count], path, ids=ids, documents=documents, coarse=coarse, resume=path.exists(), **options
        ).close()

    return step


def build_corpus(path: Path) -> None:
    documents = [*named(range(8)), Document("odd", "bad"), *named([40])]
    layout = {"on_long": "chunk", "fine": "float32", "sparse": "bm25"}
    build_index(documents, path, model=Windowed(), resume=path.exists(), **layout).close()  # type: ignore[arg-type]


def add_vectors(numbers: Iterable[int], shift: int = 0) -> Step:
    """Rows, of which some replace those of the same ids."""
    chosen = list(numbers)

    def step(path: Path) -> None:
        with Index(path) as index:
            index.add(ROWS[[n + shift for n in chosen]], ids=[f"d{n}" for n in chosen])

    return step


def add_corpus(numbers: Iterable[int], text: str) -> Step:
    chosen = [*named(numbers, text), Document(f"odd {text}", "bad")]

    def step(path: Path) -> None:
        add_to_index(path, chosen, model=Windowed(), resume=True)

    return step


def add_at_once(path: Path) -> None:
    with open_index(path, Windowed()) as index:
        index.add(named([3, 50, 51], "new"))


def delete(*ids: str) -> Step:
    def step(path: Path) -> None:
        with Index(path) as index:
            index.delete(ids)

    return step


def delete_where(path: Path) -> None:
    with Index(path) as index:
        index.delete(where={"lang": "en"})


def set_fusion(path: Path) -> None:
    with Index(path) as index:
        index.set_fusion("rrf", 0.25)


def set_settings(path: Path) -> None:
    with Index(path) as index:
        first = index.manifest.segments[0]
        index.set_settings({first.number: Settings(first.probes, 77, (0.5, 0.4))})


def compact(path: Path) -> None:
    with Index(path) as index:
        index.compact()


INT8 = build_vectors("none", 20, fine="int8")
CODES = build_vectors("IVF2,SQ8", 80)  # as many rows as faiss wants for two lists
CHANGES = {
    "build from vectors": Change((), INT8),
    "build with codes": Change((), CODES),
    "build from a corpus": Change((), build_corpus),
    "add": Change((INT8,), add_vectors([3, 30, 31])),
    "add that merges": Change((INT8, add_vectors([3, 30, 31])), add_vectors([3, 32], shift=9)),
    "add a corpus": Change((build_corpus,), add_corpus([2, 3, 60, 61], "new")),
    "add a corpus that merges": Change((build_corpus, add_corpus([60, 61], "old")), add_corpus([3, 61, 62], "new")),
    "add documents at once": Change((build_corpus,), add_at_once),
    "add to codes": Change((CODES,), add_vectors([*range(70, 115)], shift=3)),
    "delete by id": Change((INT8, add_vectors([3, 30])), delete("d3", "d4", "d19")),
    "delete by filter": Change((build_corpus, add_corpus([60], "old")), delete_where),
    "set the fusion": Change((build_corpus, add_corpus([60], "old")), set_fusion),
    "set the settings": Change((CODES, add_vectors([90, 91])), set_settings),
    "compact": Change((build_corpus, add_corpus([60, 61], "old"), delete("d1", "d61")), compact),
    "compact codes": Change((CODES, add_vectors([90, 91]), delete("d5", "d91")), compact),
}


def content(path: Path) -> Content:
    """All that an index tells, and that every byte of it is as it was written; None where there is no index."""
    try:
        index = Index(path, check=True, threads=1)
    except UsageError:
        return None
    with index:
        queries = np.resize(np.float32(TINY), (2, index.dim)) * [[1], [-1]]
        found = {
            str((where, group)): index.search(queries.astype(np.float32), EVERYTHING, where=where, group=group)
            for where in (None, *FILTERS)
            for group in ("best", None)
        }
        whole = found["(None, 'best')"]
        assert whole.documents is not None and len(whole.documents[0]) == len(index)
        if index.manifest.sparse is not None:
            for where in (None, FILTERS[0]):
                hits = index.search(["more text 3 old", "60 61 new"], EVERYTHING, mode="sparse", where=where)
                found[f"terms {where}"] = hits
            vectors, texts = queries.astype(np.float32), ["text", "new"]
            found["both"] = index.search(vectors, EVERYTHING, mode="hybrid", sparse_queries=texts)
        return {
            "fusion": index.manifest.sparse and (index.manifest.sparse.fusion, index.manifest.sparse.weight),
            "settings": [(segment.probes, segment.shortlist) for segment in index.manifest.segments[:1]],
            "documents": {document.id: document for document in whole.documents[0]},
            "hits": {name: hits.ids for name, hits in found.items()},
            "scores": {name: _of_hits(hits.scores) for name, hits in found.items()},
            "passages": whole.passages,
        }


@contextmanager
def small_and_unsynced() -> Iterator[None]:
    """Windows of a few documents, one thread, and no real fsync: what is durable is the layer's to say."""
    with patch.object(run, "WINDOW", 4), patch.object(os, "fsync", lambda _: None), faiss_threads(1):
        yield


def _of_hits(scores: np.ndarray) -> list[list[float]]:
    """Without the places of no hit: their number follows the rows on disk, deleted ones among them."""
    return [row[np.isfinite(row)].round(5).tolist() for row in scores]


class Case:
    """One change, its states before and after, and the operations that it takes."""

    def __init__(self, base: Path, name: str) -> None:
        self.change, self.layer = CHANGES[name], Layer(base)
        self.layer.root.mkdir(parents=True)
        for step in self.change.before:
            step(self.layer.path)
        self.layer.keep()
        self.before = content(self.layer.path)
        with self.layer.disk().watched() as disk:
            self.change.step(self.layer.path)
        self.after, self.log, self.operations = content(self.layer.path), disk.log, disk.count
        assert (self.after is not None and self.after != self.before) or "compact" in name
        renames = [k for k, what in enumerate(self.log) if what.startswith("rename manifest")]
        self.commit = renames[-1]  # the operation that makes it count
        assert len(renames) == 1

    def fail(self, k: int, code: int, upto: int | None = None) -> str:
        """Operation k fails, and all others until `upto`; what came of it."""
        self.layer.put_back()
        last = k + 1 if upto is None else upto
        disk = self.layer.disk(lambda n: OSError(code, os.strerror(code), "a file") if k <= n < last else None)
        outcome = "returned"
        try:
            with disk.watched():
                self.change.step(self.layer.path)
        except (OSError, Stopped) as error:
            outcome = type(error).__name__ if isinstance(error, Stopped) else "OSError"
        found = content(self.layer.path)
        if outcome == "returned":
            assert found == self.after
        elif k < self.commit:
            assert found == self.before
        else:
            assert found in (self.before, self.after)
        self.end_well()
        self.clear_up()
        return outcome

    def crash(self, k: int, draw: random.Random, fsync_fails: bool = False) -> str:
        """The machine goes down in operation k; or it goes down after operation k, an fsync, has failed."""
        self.layer.put_back()
        error = OSError(errno.EIO, os.strerror(errno.EIO), "a file") if fsync_fails else SimulatedCrash()
        disk = self.layer.disk(lambda n: error if n == k else None)
        outcome = "returned"
        try:
            with disk.watched():
                self.change.step(self.layer.path)
        except (SimulatedCrash, OSError, Stopped):
            outcome = "crashed"
        disk.crash(draw)
        found = content(self.layer.path)
        assert found == self.after or (outcome == "crashed" and found == self.before)
        outcome += ", new" if found == self.after else ", old"
        self.end_well()
        return outcome

    def end_well(self) -> None:
        """What a user does: the same again."""
        self.change.step(self.layer.path)
        assert content(self.layer.path) == self.after
        assert {path.name for path in self.layer.root.iterdir()} == {self.layer.path.name}
        assert not [path for path in self.layer.path.iterdir() if path.name.startswith(("build.", "add."))]

    def clear_up(self) -> None:
        """The next commit leaves nothing there that no version names."""
        with Index(self.layer.path) as index:
            index.delete(index.search(np.ones(index.dim, np.float32), 1).ids[0])
            known = set(index.manifest.named_files())
            names = {path.name for path in self.layer.path.iterdir()}
            known |= names & set(index.manifest.build_records())
            assert names == {"lock", f"manifest-{index.manifest.number:06}.json", *known}

    def sample(self, count: int, draw: random.Random) -> list[int]:
        """Some operations, those around the commit among them."""
        near = {k for k in range(self.commit - 1, self.commit + 3) if k < self.operations}
        others = sorted(set(range(self.operations)) - near)
        return sorted(near | set(draw.sample(others, min(count, len(others)))))


@pytest.fixture(autouse=True)
def fast_and_small() -> Iterator[None]:
    with small_and_unsynced():
        yield


@pytest.fixture(params=CHANGES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return Case(tmp_path, request.param)


@pytest.mark.long
def test_an_operation_that_fails_is_a_clean_error_and_the_same_again_ends_well(case: Case) -> None:
    draw = random.Random(1)
    found = Counter(case.fail(k, draw.choice([*FAILURES.values()])) for k in case.sample(2, draw))
    assert found["OSError"] + found["Stopped"] > 0
    assert {name.split()[0] for name in case.log} >= {"create", "write", "fsync", "rename", "unlink"}


@pytest.mark.long
def test_a_disk_that_stays_broken_costs_nothing_that_was_there(case: Case) -> None:
    outcomes = [case.fail(k, errno.EIO, upto=10_000) for k in case.sample(0, random.Random(2))[::2]]
    assert set(outcomes) <= {"OSError", "returned"} and "OSError" in outcomes  # the contents are compared in `fail`


@pytest.mark.long
def test_a_failed_fsync_is_not_taken_for_a_good_one(case: Case) -> None:
    draw = random.Random(3)
    fsyncs = [k for k, what in enumerate(case.log) if what == "fsync" and k <= case.commit + 1]
    for k in draw.sample(fsyncs, min(2, len(fsyncs))):
        assert "returned" not in case.crash(k, draw, fsync_fails=True)


@pytest.mark.long
def test_a_crash_in_any_operation_leaves_the_old_version_or_the_new_one(case: Case) -> None:
    draw = random.Random(4)
    outcomes = {case.crash(k, draw) for k in case.sample(3, draw)}  # which compares the contents with both
    assert outcomes <= {"crashed, old", "crashed, new", "returned, new"} and outcomes != {"returned, new"}


@pytest.mark.long
def test_what_has_returned_outlives_any_crash(case: Case) -> None:
    for seed in range(2):
        assert case.crash(case.operations, random.Random(seed)) == "returned, new"


# --- real processes, killed at any moment; `tests/index_suites.py kills` in full --------------------------------------------


def test_an_index_that_is_changed_by_a_process_that_is_killed_has_lost_nothing(tmp_path: Path) -> None:
    with Zygote() as parent:
        found = killed_life(parent, tmp_path / "life", "sample", most=10)
    kills = found["kills of a changing index"]
    assert kills == 10 or (kills and found["lives that were lived to the end"])  # as fast as the machine is
    assert not [name for name in found if "WRONG" in name]


@pytest.mark.long
@pytest.mark.parametrize("shape", SHAPES)
def test_a_build_that_is_killed_ends_with_the_bytes_of_an_uninterrupted_one(tmp_path: Path, shape: str) -> None:
    with Zygote() as parent:
        (tmp_path / "whole").mkdir()
        assert parent.run("build", tmp_path / "whole", shape) == (0, False)
        whole = files_of(tmp_path / "whole" / "an.index")
        assert {"lock", "manifest-000001.json"} < set(whole) and not any("build" in name for name in whole)
        for number in range(2):
            found = killed_build(parent, tmp_path / str(number), ["sample", number], shape, whole, seconds=0.5)
            assert found["builds that end with the same bytes"] == 1
