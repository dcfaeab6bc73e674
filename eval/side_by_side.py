"""Is this checkout as fast as another one? The two in turn, pass by pass, so that a machine that slows down slows both.

    python eval/side_by_side.py OTHER-CHECKOUT [--data FOLDER | --vectors FILE.npy] [--rounds 25]

FOLDER (or EMBEDKIT_DATA) holds `wordnet` and `scifact`. Either checkout has one process, in this environment; while one measures, the
other waits. A round is one pass of each measurement in each, after an untimed round:

  embed short   1,024 definitions of WordNet      embed long    64 abstracts of SciFact
  one text      100 calls with a lone question    build         an index over 20,000 rows
  one query     4,000 searches with a vector      queries       20,000 queries in one call
  command       `embedkit search` as a fresh process

With --vectors, what an index over them costs: queries one by one and together; and in its less usual states: 50 queries whose filter
passes 2 to 50 % of the rows, 50 of an index of which 75 % is deleted, 10 commits of 10 rows, these beside four searching threads,
and 100,000 queries in one call.

Printed is the time of this checkout over the other's, by the clock and by the processors: the median over the rounds with its
bootstrap interval. Above 1 is slower. Then the medians themselves, and by how much a pass raised the resident memory at its peak
(Linux). The processes take turns in who goes first. About 20 seconds a round on two cores, alone.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import itertools
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]


def measurements(data: Path, work: Path) -> dict[str, Callable[[], object]]:
    """What is measured, by name, everything that it needs made."""
    import embedkit

    short = [one["definition"] for one in _rows(data / "wordnet" / "synsets.jsonl.gz", 1024)]
    long = [f"{one['title']} {one['text']}" for one in _rows(data / "scifact" / "corpus.jsonl.gz", 64)]
    encoder = embedkit.load()
    rows = np.random.default_rng(0).standard_normal((20_000, 64)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.save(work / "rows.npy", rows)

    def build(place: Path = work / "again.index") -> None:
        shutil.rmtree(place, ignore_errors=True)
        embedkit.build_index(work / "rows.npy", place, coarse="IVF256,SQ8").close()

    build(work / "x.index")
    index = embedkit.open_index(work / "x.index")
    documents = [{"_id": str(number), "text": text} for number, text in enumerate(short[:500])]
    embedkit.build_index(documents, work / "t.index").close()
    program = ["-c", "from embedkit.cli.main import main; main()"]
    line = [sys.executable, *program, "search", str(work / "t.index"), "a question", "-q"]
    return {
        "embed short": lambda: encoder.encode(short),
        "embed long": lambda: encoder.encode(long),
        "one text": lambda: [encoder.encode(text) for text in short[:100]],
        "build": build,
        "one query": lambda: [index.search(row, 10) for row in rows[:4000]],
        "queries": lambda: index.search(rows, 10),
        "command": lambda: subprocess.run(line, check=True, stdout=subprocess.DEVNULL),
    }


def _rows(file: Path, count: int) -> list[dict[str, str]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in itertools.islice(lines, count)]


def measurements_of_index(vectors: Path, work: Path) -> dict[str, Callable[[], object]]:
    """The same for an index over these rows."""
    import embedkit

    rows = np.load(vectors).astype(np.float32)
    places = np.random.default_rng(0).permutation(len(rows))
    names = [str(number) for number in range(len(rows))]
    documents = [{"_id": name, "text": "", "place": int(place)} for name, place in zip(names, places, strict=True)]
    index = embedkit.build_index(rows, work / "x.index", ids=names, documents=documents)
    for name in ("thin", "growing"):
        shutil.copytree(work / "x.index", work / f"{name}.index")
    thin, growing = (embedkit.open_index(work / f"{name}.index") for name in ("thin", "growing"))
    thin.delete(where={"place": {"lt": len(rows) * 3 // 4}})
    many = np.resize(rows, (100_000, rows.shape[1]))
    fresh = itertools.count()

    def queries(searched: Any, **how: Any) -> Callable[[], object]:
        return lambda: [searched.search(row, 10, documents=False, **how) for row in rows[:50]]

    def add() -> None:
        for _ in range(10):
            growing.add(rows[:10], ids=[f"new-{next(fresh)}" for _ in range(10)])

    def add_beside_threads() -> None:
        ended = threading.Event()

        def search() -> None:
            for row in itertools.cycle(rows[:1000]):
                growing.search(row, 10)
                if ended.is_set():
                    return

        threads = [threading.Thread(target=search) for _ in range(4)]
        for thread in threads:
            thread.start()
        add()
        ended.set()
        for thread in threads:
            thread.join()

    return {
        "2,000 queries one by one": lambda: [index.search(row, 10, documents=False) for row in rows[:2000]],
        "20,000 queries": lambda: index.search(many[:20_000], 10, documents=False),
        **{
            f"filter, {share} %": queries(index, where={"place": {"lt": len(rows) * share // 100}})
            for share in (2, 5, 10, 20, 25, 35, 50)
        },
        "75 % deleted": queries(thin),
        "10 commits": add,
        "10 commits beside 4 threads": add_beside_threads,
        "100,000 queries": lambda: index.search(many, 10, documents=False),
    }


def answer(runs: dict[str, Callable[[], object]]) -> None:
    """Runs each measurement that a line of standard input names, and prints what it took: seconds by the clock, seconds of the
    processors, MB of memory."""
    print(json.dumps(list(runs)), flush=True)
    for line in sys.stdin:
        gc.collect()
        before = _memory("VmRSS")
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        start, used = time.perf_counter(), _processor_seconds()
        runs[line.strip()]()
        took = time.perf_counter() - start, _processor_seconds() - used
        print(json.dumps([*took, _memory("VmHWM") - before]), flush=True)


def _processor_seconds() -> float:
    used = (resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def _memory(name: str) -> float:
    """MB, 0 where the system does not say."""
    try:
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    return int(found[1]) / 1000 if found else 0.0


class Checkout:
    """A process that measures a checkout when asked."""

    def __init__(self, folder: Path, given: Sequence[str], work: Path) -> None:
        line = [sys.executable, __file__, "--measure", str(work), *given, str(folder)]
        environment = {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
        environment |= {
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": f"{work}-compiled",
        }  # as after an installation
        work.mkdir()
        self.process = subprocess.Popen(
            line, env=environment, cwd=work, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.names: list[str] = self._said()

    def run(self, name: str) -> list[float]:
        """Seconds by the clock and of the processors, MB."""
        assert self.process.stdin is not None
        print(name, file=self.process.stdin, flush=True)
        took: list[float] = self._said()
        return took

    def _said(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--data", type=Path, default=os.environ.get("EMBEDKIT_DATA"))
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.data is None and asked.vectors is None:
        parser.error("give --data FOLDER or --vectors FILE, or set EMBEDKIT_DATA")
    if asked.measure:
        by_vectors = asked.vectors is not None
        answer(
            measurements_of_index(asked.vectors, asked.measure)
            if by_vectors
            else measurements(asked.data, asked.measure)
        )
        return
    given = ["--vectors", asked.vectors] if asked.vectors else ["--data", asked.data]
    took = in_turn(asked.other.resolve(), [given[0], str(given[1].resolve())], asked.rounds)
    print(
        "| measurement | time, median (95 % interval) | processors' time | seconds, other and this | MB, other and this |"
    )
    print("|---|---|---|---|---|")
    for name, rounds in took.items():
        print(f"| {name} | {' | '.join(cells(np.array(rounds)))} |")


def in_turn(other: Path, given: Sequence[str], rounds: int) -> dict[str, list[list[list[float]]]]:
    """measurement -> rounds of (this checkout, the other) of what a pass took."""
    took: dict[str, list[list[list[float]]]] = {}
    with tempfile.TemporaryDirectory() as work:
        pair = [
            Checkout(folder, given, Path(work, name)) for folder, name in ((ROOT, "ours"), (other.resolve(), "other"))
        ]
        for number in range(-1, rounds):
            for name in pair[0].names:
                order = pair if number % 2 else pair[::-1]
                found = {checkout: checkout.run(name) for checkout in order}
                if number >= 0:
                    took.setdefault(name, []).append([found[checkout] for checkout in pair])
        for checkout in pair:
            checkout.process.kill()
            checkout.process.wait()
    return took


def cells(rounds: np.ndarray) -> list[str]:
    """rounds: (r, 2, 3)"""
    from embedkit.statistics import bootstrap_statistic

    shown = []
    for place in (0, 1):
        ratios = rounds[:, 0, place] / rounds[:, 1, place]
        low, high = bootstrap_statistic(np.median, ratios)
        shown.append(f"{np.median(ratios):.3f} ({low:.3f} to {high:.3f})")
    ours, other = np.median(rounds, axis=0)
    return [*shown, f"{other[0]:.4f}, {ours[0]:.4f}", f"{other[2]:.0f}, {ours[2]:.0f}"]


if __name__ == "__main__":
    main()
