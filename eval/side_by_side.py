"""Is this checkout as fast as another one? The two in turn, so that a machine that slows down slows both.

    python eval/side_by_side.py OTHER-CHECKOUT [--data FOLDER] [--rounds 9]

FOLDER (or EMBEDKIT_DATA) holds `wordnet` and `scifact`. Each round starts a process for either checkout, in this environment,
and measures in each, after one untimed pass:

  embed short   4,096 definitions of WordNet, texts/s        embed long    256 abstracts of SciFact, texts/s
  one text      a lone question, milliseconds                build         an index over 50,000 rows, seconds
  one query     its search with a vector, microseconds       queries       10,000 queries in one call, queries/s
  command       `embedkit search` as a fresh process, seconds

Printed is the time of this checkout over the other's: the median over the rounds with its bootstrap interval. Above 1 is slower.
The processes of a round take turns in who goes first. About a minute a round on two cores, alone.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]


def measure(data: Path, work: Path) -> dict[str, float]:
    """Seconds of each measurement, in this process."""
    import embedkit

    short = [one["definition"] for one in _rows(data / "wordnet" / "synsets.jsonl.gz", 4096)]
    long = [f"{one['title']} {one['text']}" for one in _rows(data / "scifact" / "corpus.jsonl.gz", 256)]
    encoder = embedkit.load()
    rows = np.random.default_rng(0).standard_normal((50_000, 64)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.save(work / "rows.npy", rows)
    found = {
        "embed short": _timed(lambda: encoder.encode(short)),
        "embed long": _timed(lambda: encoder.encode(long)),
        "one text": _timed(lambda: [encoder.encode(text) for text in short[:100]]),
    }
    place = work / "x.index"
    start = time.perf_counter()
    embedkit.build_index(work / "rows.npy", place, coarse="IVF256,SQ8").close()
    found["build"] = time.perf_counter() - start
    with embedkit.open_index(place) as index:
        found["one query"] = _timed(lambda: [index.search(row, 10) for row in rows[:500]])
        found["queries"] = _timed(lambda: index.search(rows[:10_000], 10))
    documents = [{"_id": str(number), "text": text} for number, text in enumerate(short[:500])]
    embedkit.build_index(documents, work / "t.index").close()
    line = [
        sys.executable,
        "-c",
        "from embedkit.cli.main import main; main()",
        "search",
        str(work / "t.index"),
        "a question",
        "-q",
    ]
    found["command"] = _timed(lambda: subprocess.run(line, check=True, stdout=subprocess.DEVNULL))
    return found


def _rows(file: Path, count: int) -> list[dict[str, str]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in itertools.islice(lines, count)]


def _timed(run: Callable[[], object]) -> float:
    run()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def one_round(checkout: Path, data: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as work:
        line = [sys.executable, __file__, "--measure", work, "--data", str(data), str(checkout)]
        environment = {**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(line, capture_output=True, text=True, check=True, env=environment, cwd=work)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--data", type=Path, default=os.environ.get("EMBEDKIT_DATA"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.data is None:
        parser.error("give --data FOLDER, or set EMBEDKIT_DATA")
    if asked.measure:
        print(json.dumps(measure(asked.data, asked.measure)))
        return
    from embedkit.statistics import bootstrap_statistic

    ratios: dict[str, list[float]] = {}
    for number in range(asked.rounds):
        order = [ROOT, asked.other.resolve()]
        found = {place: one_round(place, asked.data) for place in (order if number % 2 else order[::-1])}
        for name, seconds in found[ROOT].items():
            ratios.setdefault(name, []).append(seconds / found[order[1]][name])
        print(
            f"round {number + 1}",
            {name: round(values[-1], 3) for name, values in ratios.items()},
            file=sys.stderr,
            flush=True,
        )
    print("| measurement | this checkout's time over the other's, median | 95 % interval |\n|---|---|---|")
    for name, values in ratios.items():
        low, high = bootstrap_statistic(np.median, np.array(values))
        print(f"| {name} | {np.median(values):.3f} | {low:.3f} to {high:.3f} |")


if __name__ == "__main__":
    main()
