"""Peak memory (RssAnon) of a batch with gradient caching beside a batch of 64: pairs of SNLI, the default model, two steps each.

    python train/memory.py [--batch 8192] [--small 64]

Regenerates a table of train/README.md. EMBEDKIT_DATA is the folder of the collections. Each run has a process of its own, and appends a
row to train/memory.jsonl; what stands there is not run again. Where there are fewer pairs than a batch takes they are made distinct
by a number.
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

from embedkit.eval.report import replace_table

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
        began = time.monotonic()
        try:
            train(fill(TrainingRecipe, {"model": DEFAULT_MODEL, "stages": [stage]}), folder / "run", device="cpu")
        finally:
            done.set()
            watcher.join()
    seconds = round(time.monotonic() - began, 1)
    return {"batch": size, "cached": cached, "peak_rss_anon": peak, "seconds": seconds}


def read_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Each batch beside the smallest."""
    least = min(rows, key=lambda row: row["batch"])["peak_rss_anon"]
    lines = ["| batch | gradient caching | peak RssAnon, MB | times | minutes |", "|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: row["batch"]):
        cells = ("yes" if row["cached"] else "no", row["peak_rss_anon"] / 1e6, row["peak_rss_anon"] / least)
        lines.append("| {:,} | {} | {:,.0f} | {:.2f} | {:.1f} |".format(row["batch"], *cells, row["seconds"] / 60))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--small", type=int, default=64)
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only is None:
        done = {row["batch"] for row in read_rows()}
        for size in (arguments.small, arguments.batch):
            if size not in done:
                subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", str(size)], check=True)
        replace_table(ROWS.with_name("README.md"), "memory", table(read_rows()))
        return
    row = measure(arguments.only, cached=arguments.only == arguments.batch)
    with ROWS.open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    print(json.dumps(row))


if __name__ == "__main__":
    main()
