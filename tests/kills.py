"""Is a job that was killed the same in the end? `python tests/kills.py [--fake 180] [--real 20] [--seed 0]`; no test of the suite.

Starts the job as a process of its own and ends it with SIGKILL at a time drawn uniformly over its writing; then resumes
it, and of every three kills one hits the resumed run (or the one resumed after that). At the end every file is compared byte
for byte with those of an uninterrupted run, the manifest but for its block "times". Most kills are of a job with a fake
encoder that starts in a fraction of a second, the rest of `embedkit embed` with the default model. Each job is at once a
line of --rows; the same seed goes on there. Exit code 1 on any difference.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
ROWS, WINDOW, PAUSE = 1200, 40, 0.03  # of the fake job: 30 windows, about a second of writing
REAL_ROWS = 12_000
MISSED = "hit before or behind the writing, not counted"
SHAPES = ("npy", "parquet", "chunks", "workers", "int8")  # what the fake jobs take turns in


def child(folder: str, shape: str) -> None:
    """The job with the fake encoder, in this process."""
    import functools
    import logging

    import embedkit.engine.run as run
    from embedkit.corpus import read_corpus
    from embedkit.engine import embed_to_file

    logging.getLogger("embedkit").setLevel(logging.ERROR)
    run.WINDOW = WINDOW
    name = Path(folder) / ("x.parquet" if shape == "parquet" else "x.npy")
    embed_to_file(
        read_corpus(Path(folder).parent / "corpus.jsonl"),
        name,
        functools.partial(slow),
        on_long="chunk" if shape == "chunks" else "truncate",
        precision="int8" if shape == "int8" else "float32",
        workers=2 if shape == "workers" else 1,
        resume=True,
    )


def slow() -> Any:
    """A WindowEncoder that takes its time; some rows are set aside, some cut."""
    from tests.engine.fakes import Windowed

    class Slow(Windowed):
        def _window(self, *arguments: Any) -> Any:
            time.sleep(PAUSE)
            return super()._window(*arguments)

    return Slow()


def fake_command(folder: Path, shape: str) -> list[str]:
    return [sys.executable, str(Path(__file__).resolve()), "--child", str(folder), shape]


def real_command(folder: Path, _: str) -> list[str]:
    call = "from embedkit.cli.main import main; main()"
    output = ["-o", str(folder / "x.npy"), "--limit", str(REAL_ROWS), "--resume", "-q"]
    return [sys.executable, "-c", call, "embed", str(folder.parent / "corpus.jsonl"), *output]


def contents(folder: Path) -> dict[str, Any]:
    """Every file; of a manifest all but its times."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in [name for name in found if name.endswith(".manifest.json")]:
        found[name] = {key: value for key, value in json.loads(found[name]).items() if key != "times"}
    return found


class Job:
    """One kind of job: how it is started, what it makes uninterrupted, and when it writes."""

    def __init__(self, base: Path, command: Any, shape: str, texts: Sequence[str]) -> None:
        self.base, self.command, self.shape = base, command, shape
        base.mkdir(parents=True)
        lines = (json.dumps({"_id": f"d{number}", "text": text}) + "\n" for number, text in enumerate(texts))
        (base / "corpus.jsonl").write_text("".join(lines))
        folder = base / "whole"
        folder.mkdir()
        started = time.monotonic()
        process = self.start(folder)
        while not (folder / "x.ledger").exists() and process.poll() is None:
            time.sleep(0.002)
        self.begins = time.monotonic() - started
        if process.wait():
            raise SystemExit(f"The uninterrupted run ended with exit code {process.returncode}.")
        self.ends = time.monotonic() - started
        self.whole = contents(folder)

    def start(self, folder: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.command(folder, self.shape), cwd=ROOT, stdout=subprocess.DEVNULL)

    def killed(self, kills: int, draw: random.Random) -> Counter[str]:
        """A run that is killed so many times, each time resumed; what was hit, and whether the end is the same."""
        folder = Path(tempfile.mkdtemp(dir=self.base))
        found: Counter[str] = Counter()
        while found["kills"] < kills:
            begun = any(folder.iterdir())
            process = self.start(folder)
            left = self._left(folder) if begun else 1.0
            try:
                process.wait(self.begins + draw.random() * left * (self.ends - self.begins))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                moment = self._moment(folder)
                found[moment] += 1
                if moment != MISSED:
                    found["kills"] += 1
                    found["of a resumed run"] += begun
                continue
            process.wait()
            if process.returncode:
                found[f"exit code {process.returncode}"] += 1
                return found
            found["ended before the kill"] += 1
            shutil.rmtree(folder)  # it was too fast; once more from the start
            folder.mkdir()
        code = self.start(folder).wait()
        found["same" if code == 0 and contents(folder) == self.whole else "different"] += 1
        shutil.rmtree(folder, ignore_errors=found["different"] == 0)
        return found

    def _left(self, folder: Path) -> float:
        """The share of the work that a resumed run has before it, by the size of its ledger."""
        from embedkit.engine.ledger import Ledger
        from embedkit.storage import positional_file

        if not (folder / "x.ledger").exists():
            return 1.0
        with positional_file(folder / "x.ledger") as file:
            done = sum("documents" in record for _, record in Ledger(file))
        return max(0.05, 1 - done / self.windows)

    @property
    def windows(self) -> int:
        return ROWS // WINDOW if self.command is fake_command else -(-REAL_ROWS // 2048)

    @staticmethod
    def _moment(folder: Path) -> str:
        names = {path.name for path in folder.iterdir()}
        if not any(name.endswith(".ledger") for name in names):
            return MISSED
        return "hit in the publication" if len(names) > 2 else "hit in the writing"


def plan(kills: int, draw: random.Random) -> list[int]:
    """How many kills each run gets; those behind the first hit a resumed one, about a third of all where some come too late."""
    runs: list[int] = []
    while sum(runs) < kills:
        runs.append(min(draw.choice([1, 2, 2, 3]), kills - sum(runs)))
    return runs


def texts(kind: str, count: int) -> list[str]:
    if kind == "real":
        words = ["river", "stone", "light", "engine", "market", "theory", "garden", "signal", "winter", "method"]
        return [f"{words[n % 10]} {words[n // 10 % 10]} {n}" for n in range(count)]
    return ["bad" if n % 97 == 5 else f"text {n}" + " and more" * (n % 13 == 0) for n in range(count)]


def attack(base: Path, fake: int, real: int, seed: int, rows: Path | None = None) -> Counter[str]:
    """All kills; the sum of what was found. What stands in `rows` already is not done again."""
    done = [json.loads(line) for line in rows.read_text().splitlines()] if rows is not None and rows.exists() else []
    total: Counter[str] = Counter()
    for kind, kills, command, shapes, count in (
        ("fake", fake, fake_command, SHAPES, ROWS),
        ("real", real, real_command, ("npy",), REAL_ROWS),
    ):
        draw, jobs = random.Random(seed), dict[str, Job]()
        for number, wanted in enumerate(plan(kills, draw)):
            shape, own = shapes[number % len(shapes)], draw.random()
            known = next((row for row in done if row["run"] == [seed, kind, number, wanted]), None)
            if known is None:
                if shape not in jobs:
                    jobs[shape] = Job(base / f"{kind}-{shape}", command, shape, texts(kind, count))
                known = {"run": [seed, kind, number, wanted], **jobs[shape].killed(wanted, random.Random(own))}
                if rows is not None:
                    with rows.open("a") as stream:
                        stream.write(json.dumps(known) + "\n")
            total.update({f"{kind}: {name}": value for name, value in known.items() if name != "run"})
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fake", type=int, default=180, help="kills of the job with the fake encoder")
    parser.add_argument("--real", type=int, default=20, help="kills of embedkit embed with the default model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=Path, default=Path("kills.jsonl"), help="a line a run; goes on where it ends")
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "SHAPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as base:
        total = attack(Path(base), options.fake, options.real, options.seed, options.rows)
    for name, value in sorted(total.items()):
        print(f"{value:5}  {name}")
    print(f"{time.monotonic() - started:5.0f}  seconds")
    wrong = sum(value for name, value in total.items() if "different" in name or "exit code" in name)
    return int(bool(wrong))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
