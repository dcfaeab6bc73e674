"""Peak memory (RssAnon) of a batch with gradient caching beside a batch of 64: pairs of SNLI, the default model, two steps each.

    python train/memory.py [--batch 8192] [--small 64]

EMBEDKIT_DATA is the folder of the collections. Each run has a process of its own, and appends a row to train/memory.jsonl. Where there
are fewer pairs than a batch takes they are made distinct by a number.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from speed import pairs

ROWS = Path(__file__).with_name("memory.jsonl")
STEPS = 2


def rss_anon() -> int:
    """Bytes of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise OSError("this system does not tell RssAnon")


def measure(size: int, cached: bool) -> dict[str, Any]:
    from embedkit.encoders.default_model import DEFAULT_MODEL
    from embedkit.recipe import fill
    from embedkit.train.settings import TrainingRecipe
    from embedkit.train.trainer import train

    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, rss_anon())
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known = pairs("snli", STEPS * size)
        rows = [
            (f"{i // len(known)} {a}", f"{i // len(known)} {p}")
            for i in range(STEPS * size)
            for a, p in [known[i % len(known)]]
        ]
        (folder / "pairs.jsonl").write_text("\n".join(json.dumps({"anchor": a, "positive": p}) for a, p in rows))
        stage = {
            "data": [{"path": str(folder / "pairs.jsonl")}],
            "loss": [{"name": "info_nce"}],
            "batch": {"size": size, "cached": cached},
            "steps": STEPS,
        }
        watcher.start()
        try:
            train(fill(TrainingRecipe, {"model": DEFAULT_MODEL, "stages": [stage]}), folder / "run", device="cpu")
        finally:
            done.set()
            watcher.join()
    return {"batch": size, "cached": cached, "peak_rss_anon": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--small", type=int, default=64)
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only is None:
        for size in (arguments.small, arguments.batch):
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", str(size)], check=True)
        return
    row = measure(arguments.only, cached=arguments.only == arguments.batch)
    with ROWS.open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    print(json.dumps(row))


if __name__ == "__main__":
    main()
