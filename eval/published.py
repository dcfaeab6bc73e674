"""Published scores of the default model, reproduced: regenerates the table of eval/README.md.

    python eval/published.py [--data FOLDER]

FOLDER (or EMBEDKIT_DATA) holds `scifact` (BEIR layout) and `stsb` (sentence pairs). One run a row: each is written to
published.jsonl at once, and a run that stands there already, made by the same embedkit and dtype, is not repeated; remove
the file to measure anew. Costs about 12 minutes on two cores.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

import embedkit
from embedkit.eval.report import replace_table

HERE = Path(__file__).parent
ROWS = HERE / "published.jsonl"
PUBLISHED = {"SciFact nDCG@10": 0.6451, "STSBenchmark Spearman": 0.8203}  # the MTEB leaderboard, all-MiniLM-L6-v2
COARSE = "IVF64,SQ8"


def runs(data: Path) -> Iterator[dict[str, Any]]:
    """Each run's name and the function that makes its score."""
    for dtype in ("float32", "auto"):
        yield {
            "task": "SciFact nDCG@10",
            "dtype": dtype,
            "search": "exact",
            "run": lambda d=dtype: scifact(data, d, None),
        }
        yield {
            "task": "SciFact nDCG@10",
            "dtype": dtype,
            "search": f"--coarse {COARSE}",
            "run": lambda d=dtype: scifact(data, d, COARSE),
        }
        yield {"task": "STSBenchmark Spearman", "dtype": dtype, "search": "", "run": lambda d=dtype: stsb(data, d)}


def scifact(data: Path, dtype: str, coarse: str | None) -> dict[str, Any]:
    encoder = embedkit.load(dtype=dtype)
    with tempfile.TemporaryDirectory() as scratch:
        searched: Any = encoder
        if coarse is not None:
            searched = embedkit.build_index(
                data / "scifact", Path(scratch) / "scifact.index", model=encoder, coarse=coarse, progress=True
            )
        report = embedkit.evaluate(searched, data / "scifact", progress=True)
    return {
        "score": report.scores["ndcg@10"],
        "interval": report.intervals["ndcg@10"],
        "compute": encoder.compute["dtype"],
    }


def stsb(data: Path, dtype: str, **options: Any) -> dict[str, Any]:
    """Spearman of the cosines of the 1,379 test pairs. options: those of `load`."""
    path = next(p for p in (data / "stsb" / "data.tsv", data / "stsb" / "data.tsv.gz") if p.exists())
    with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as stream:
        pairs = [row for row in csv.DictReader(stream, delimiter="\t") if row["split"] == "test"]
    encoder = embedkit.load(dtype=dtype, **options)
    left, right = (encoder.encode([pair[side] for pair in pairs]) for side in ("sentence1", "sentence2"))
    score = spearmanr((left * right).sum(axis=1), [float(pair["score"]) for pair in pairs]).statistic
    return {"score": float(score), "interval": None, "compute": encoder.compute["dtype"]}


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| task | dtype | search | published | measured | difference | 95 % interval | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        published = PUBLISHED[row["task"]]
        interval = "" if row["interval"] is None else f"{row['interval'][0]:.4f} to {row['interval'][1]:.4f}"
        dtype = row["dtype"] if row["dtype"] == row["compute"] else f"{row['dtype']} ({row['compute']})"
        difference = f"{row['score'] - published:+.4f}"
        scores = f"{published:.4f} | {row['score']:.4f} | {difference} | {interval}"
        lines.append(f"| {row['task']} | {dtype} | {row['search']} | {scores} | {row['seconds']:.0f} |")
    return lines


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, default=os.environ.get("EMBEDKIT_DATA"))
    data = arguments.parse_args().data
    if data is None or not Path(data).is_dir():
        raise SystemExit("Skipped: give the folder of the collections with --data or EMBEDKIT_DATA.")
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    for run in runs(Path(data)):
        name = {key: run[key] for key in ("task", "dtype", "search")} | {"embedkit": embedkit.__version__}
        if any(name.items() <= row.items() for row in rows):
            continue
        start = time.perf_counter()
        rows.append(name | run["run"]() | {"seconds": time.perf_counter() - start})
        with ROWS.open("a") as stream:
            stream.write(json.dumps(rows[-1]) + "\n")
        print(json.dumps(rows[-1]), flush=True)
    replace_table(HERE / "README.md", "published", table(rows))


if __name__ == "__main__":
    main()
