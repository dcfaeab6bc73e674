"""Is this checkout as fast as another one? The two in turn, pass by pass, so that a machine that slows down slows both.

    python eval/side_by_side.py OTHER-CHECKOUT [--data FOLDER] [--rounds 25]

FOLDER (or EMBEDKIT_DATA) holds `wordnet` and `scifact`. Either checkout has one process, in this environment; while one measures, the
other waits. A round is one pass of each measurement in each, after an untimed round:

  embed short   1,024 definitions of WordNet      embed long    64 abstracts of SciFact
  one text      100 calls with a lone question    build         an index over 20,000 rows
  one query     4,000 searches with a vector      queries       20,000 queries in one call
  command       `embedkit search` as a fresh process

Printed is the time of this checkout over the other's, by the clock and by the processors: the median over the rounds with its
bootstrap interval. Above 1 is slower. The processes take turns in who goes first. About 20 seconds a round on two cores, alone.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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


def answer(data: Path, work: Path) -> None:
    """Runs each measurement that a line of standard input names, and prints its seconds: by the clock, by the processors."""
    runs = measurements(data, work)
    print(json.dumps(list(runs)), flush=True)
    for line in sys.stdin:
        start, used = time.perf_counter(), _processor_seconds()
        runs[line.strip()]()
        print(json.dumps([time.perf_counter() - start, _processor_seconds() - used]), flush=True)


def _processor_seconds() -> float:
    return sum(os.times()[:4])


class Checkout:
    """A process that measures a checkout when asked."""

    def __init__(self, folder: Path, data: Path, work: Path) -> None:
        line = [sys.executable, __file__, "--measure", str(work), "--data", str(data), str(folder)]
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

    def run(self, name: str) -> tuple[float, float]:
        assert self.process.stdin is not None
        print(name, file=self.process.stdin, flush=True)
        clock, processors = self._said()
        return clock, processors

    def _said(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--data", type=Path, default=os.environ.get("EMBEDKIT_DATA"))
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.data is None:
        parser.error("give --data FOLDER, or set EMBEDKIT_DATA")
    if asked.measure:
        answer(asked.data, asked.measure)
        return
    from embedkit.statistics import bootstrap_statistic

    ratios: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as work:
        ours = Checkout(ROOT, asked.data.resolve(), Path(work, "ours"))
        other = Checkout(asked.other.resolve(), asked.data.resolve(), Path(work, "other"))
        for number in range(-1, asked.rounds):
            for name in ours.names:
                order = [ours, other] if number % 2 else [other, ours]
                found = {checkout: checkout.run(name) for checkout in order}
                if number >= 0:
                    ratios.setdefault(name, []).append([a / b for a, b in zip(found[ours], found[other], strict=True)])
        for checkout in (ours, other):
            checkout.process.kill()
            checkout.process.wait()
    print("| measurement | time, median (95 % interval) | processors' time |\n|---|---|---|")
    for name, pairs in ratios.items():
        cells = []
        for values in np.array(pairs).T:
            low, high = bootstrap_statistic(np.median, values)
            cells.append(f"{np.median(values):.3f} ({low:.3f} to {high:.3f})")
        print(f"| {name} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
