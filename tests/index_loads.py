"""What an index holds open and in memory under load; programs of `tests/index_suites.py`, which tells how they are called."""

from __future__ import annotations

import functools
import gc
import multiprocessing
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from embedkit.errors import UsageError
from embedkit.index import Index
from embedkit.jobs import build_index

ROOT = Path(__file__).resolve().parents[1]
Found = Counter[str]
DIM = 64
MARKERS = 20  # documents that each commit of `readers` replaces, all with one vector: of two versions they would differ
MOST_DESCRIPTORS = 150
WORDS = [f"w{chr(97 + n % 26)}{chr(97 + n // 26 % 26)}" for n in range(400)]


@functools.cache
def row_of(word: str) -> Any:
    return np.random.default_rng(sum(map(ord, word))).standard_normal(DIM, np.float32)


class Hashed:
    """A model whose rows are sums over the words of a text."""

    dim, fingerprint, similarity = DIM, "f" * 64, "cosine"
    compute, settings = {"backend": "fake"}, {}  # type: ignore[var-annotated]

    def encode(self, inputs: Any, *, kind: str = "document", **_: Any) -> Any:
        rows = np.full((len(inputs), DIM), 1e-3, np.float32)
        for number, text in enumerate(inputs):
            for word in str(text).split():
                rows[number] += row_of(word)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def megabytes() -> float:
    """Resident, of this process; pages of files that it maps are in it."""
    with Path("/proc/self/status").open() as stream:
        return next(int(line.split()[1]) / 1024 for line in stream if line.startswith("VmRSS"))


def rows_of(count: int, seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal((count, DIM), np.float32)


def text_of(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randrange(1, 12)))


# --- churn ----------------------------------------------------------------------------------------------------------------


def churn(commits: int, seed: int, sparse: bool) -> Found:
    """Adds, replacements and deletions, with searches between them and the collector of cycles off: descriptors at most."""
    found, draw, most = Counter[str](), random.Random(seed), 0
    kind = "with a sparse leg" if sparse else "dense"
    gc.collect()
    gc.disable()
    try:
        with tempfile.TemporaryDirectory() as base:
            alive = {f"d{n}": text_of(draw) for n in range(2000)}
            documents = [{"_id": name, "text": text} for name, text in alive.items()]
            index = build_index(documents, Path(base) / "x", model=Hashed(), sparse="bm25" if sparse else None)
            for number in range(commits):
                names = draw.sample(sorted(alive), draw.randrange(1, 20))
                if draw.random() < 0.3 and len(alive) > 500:
                    index.delete(names)
                    for name in names:
                        del alive[name]
                else:
                    names = names if draw.random() < 0.5 else [f"n{number}_{n}" for n in range(len(names))]
                    added = {name: text_of(draw) for name in names}
                    index.add([{"_id": name, "text": text} for name, text in added.items()])
                    alive |= added
                most = max(most, descriptors())
                hits = index.search(text_of(draw), k=5, mode="hybrid" if sparse and number % 2 else "dense")
                found["WRONG: a document that is not there"] += any(name not in alive for name in hits.ids[0])
                found["WRONG: a number of documents"] += len(index) != len(alive)
                most = max(most, descriptors())
            index.close()
            found[f"commits, {kind}"] += commits
            found[f"descriptors at most, {kind}"] = most
            found["WRONG: too many descriptors"] += most > MOST_DESCRIPTORS
            left = Path("/proc/self/maps").read_text().count(base)
            found["WRONG: maps after close"] += left
    finally:
        gc.enable()
    return +found


# --- closes ---------------------------------------------------------------------------------------------------------------


def closes(count: int, seed: int, threads: int = 4) -> Found:
    """An index is closed while threads search it: each search ends, or says that the index is closed. (A crash ends all of it.)"""
    found = Counter[str]()
    with tempfile.TemporaryDirectory() as base:
        path = Path(base) / "x"
        draw = random.Random(seed)
        documents = [{"_id": f"d{n}", "text": text_of(draw), "n": n % 7} for n in range(3000)]
        build_index(documents, path, model=Hashed(), sparse="bm25").close()
        queries = rows_of(8, seed)
        asked: list[Callable[[Index], Any]] = [
            lambda index: index.search(queries[:1], k=50),
            lambda index: index.search(queries[:1], k=20, where={"n": {"lt": 3}}, explain=True),
            lambda index: index.search(queries[:1], mode="hybrid", sparse_queries=[WORDS[0]], k=10),
            lambda index: index.get(["d1", "d2"]),
        ]
        before = descriptors()
        for number in range(count):
            index = Index(path)

            def search(place: int, index: Index = index) -> None:
                while True:
                    try:
                        asked[place % len(asked)](index)
                        found["searches beside a close"] += 1
                    except UsageError as error:
                        found["WRONG: another error"] += "is closed" not in str(error)
                        return
                    except BaseException as error:
                        found[f"WRONG: {type(error).__name__}"] += 1
                        return

            running = [threading.Thread(target=search, args=(place,)) for place in range(threads)]
            for thread in running:
                thread.start()
            time.sleep(draw.random() * 0.02)
            index.close()
            for thread in running:
                thread.join()
            found["closes"] += 1
            found["WRONG: descriptors after a close"] += descriptors() > before and number > 0
    return +found


# --- readers --------------------------------------------------------------------------------------------------------------

DIRECTION = rows_of(1, 10**9)[0]  # a seed that no commit takes: it would add this very row


def markers(version: int) -> Any:
    """All rows the same, and of each version others."""
    own = np.random.default_rng(version).standard_normal(DIM, np.float32)
    return np.tile(10 * DIRECTION + 0.2 * own, (MARKERS, 1))


def read(index: Index, mine: bool, path: Path, ends: float, seed: int, found: Found) -> None:
    """Searches until then; what is not of one version is WRONG. mine: it is opened anew at every so many searches."""
    others, number = rows_of(64, seed), 0
    while time.monotonic() < ends:
        try:
            if mine and number % 20 == 19:
                index.close()
                index = Index(path)
            hits = index.search(DIRECTION[None], k=MARKERS, documents=number % 5 == 0)
            scores = hits.scores[0]
            found["WRONG: two versions at once"] += not (
                len(set(hits.ids[0])) == MARKERS
                and all(name.startswith("m") for name in hits.ids[0])
                and scores.max() - scores.min() < 1e-6
            )
            index.search(others[number % 64][None], k=10)
            if number % 4 == 0:
                index.search(mode="sparse", sparse_queries=[WORDS[number % len(WORDS)]], k=5)
            found["searches"] += 2 + (number % 4 == 0)
        except Exception as error:
            found[f"WRONG: {type(error).__name__}: {error}"[:300]] += 1
            if sum(found.values()) > 10**9:
                break
        number += 1
    if mine:
        index.close()


def process(path: str, mine: bool, seconds: float, seed: int, answers: Any) -> None:
    found = Counter[str]()
    read(Index(path), mine, Path(path), time.monotonic() + seconds, seed, found)
    answers.put(dict(+found))


def readers(seconds: float, seed: int, settled: float, say: Callable[[str], None] = print) -> Found:
    """4 threads and 2 processes search beside a writer. What this process holds in the end is compared with what it held after
    `settled` seconds."""
    found, ctx = Counter[str](), multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as base:
        path, draw = Path(base) / "x", random.Random(seed)
        documents = [{"_id": f"d{n}", "text": text_of(draw)} for n in range(30_000 if seconds > 60 else 1000)]
        writer = build_index(documents, path, model=Hashed(), sparse="bm25")
        writer.add(markers(0), ids=[f"m{n}" for n in range(MARKERS)])
        answers = ctx.Queue()
        kinds = [(True, seed + 1), (False, seed + 2)]
        children = [ctx.Process(target=process, args=(str(path), mine, seconds, own, answers)) for mine, own in kinds]
        for child in children:
            child.start()
        started = time.monotonic()
        ends = started + seconds
        parts = [Counter[str]() for _ in range(4)]
        held = Index(path)
        opened = [(Index(path), True), (held, False), (writer, False), (writer, False)]
        threads = [
            threading.Thread(target=read, args=(index, mine, path, ends, seed + 3 + place, parts[place]))
            for place, (index, mine) in enumerate(opened)
        ]
        for thread in threads:
            thread.start()
        settled_at, most, reported, number, fresh = 0.0, 0, started, 0, 0
        while time.monotonic() < ends:
            number += 1
            count = draw.randrange(1, 40)
            names = [f"m{n}" for n in range(MARKERS)] + [f"z{fresh + n}" for n in range(count)]
            fresh += count
            writer.add(np.concatenate([markers(number), rows_of(count, number)]), ids=names)
            if fresh > 4000:  # as many go as come: what is held does not grow with what is there
                writer.delete([f"z{n}" for n in range(fresh - 4000 - count, fresh - 4000)])
                found["commits"] += 1
            most = max(most, descriptors())
            now = time.monotonic()
            if settled_at == 0.0 and now - started > settled:
                settled_at = megabytes()
            if now - reported > max(seconds / 30, 1):
                reported = now
                say(
                    f"{now - started:6.0f} s: {number} commits, {descriptors()} descriptors, {megabytes():.0f} MB, "
                    f"{sum(part['searches'] for part in parts)} searches of threads"
                )
        for thread in threads:
            thread.join()
        found["commits"] += number
        for part in (*parts, *(answers.get(timeout=120) for _ in children)):
            found.update(part)
        for child in children:
            child.join()
        for index in (writer, held):
            index.close()
        Index(path, check=True).close()
        at_the_end = megabytes()
        found["MB after the first minutes"], found["MB at the end"] = round(settled_at), round(at_the_end)
        found["descriptors at most"], found["descriptors after it"] = most, descriptors()
        found["WRONG: more memory than 10 % beyond"] += bool(settled_at) and at_the_end > 1.1 * settled_at
    return +found
