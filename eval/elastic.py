"""The first layers of the default model alone: how fast, how good, and whether they are right; regenerates a table of eval/README.md.

    python eval/elastic.py [--data FOLDER] [--threads N] [--only NAME ...]

FOLDER (or EMBEDKIT_DATA) holds `scifact` (long texts) and `stsb` (pairs with grades). The measurements, one row each:

  equal     the largest difference of a unit row's number from transformers with its list of layers cut by hand and a mean
            over tokens, in float32
  speed     texts/s with all six layers and with three, in turn, medians of nine, tokenization inside the clock
  quality   STSBenchmark's Spearman after each layer; the model was not trained to be cut

A row is written to elastic.jsonl at once, and one that stands there for this version of embedkit is not measured again; remove
the file to measure anew. About two minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from encode_speed import folder, texts, timed
from published import stsb

import embedkit
from embedkit.eval.report import replace_table
from embedkit.types import Vectors
from embedkit.vectors import unit_rows

HERE = Path(__file__).parent
ROWS = HERE / "elastic.jsonl"
REPEATS = 9
LAYERS, HALF = 6, 3
BACKENDS = {"embedkit": "auto", "embedkit, no OpenVINO": "torch"}
Row = dict[str, Any]


def by_hand(sample: list[str], layers: int) -> Vectors:
    """Unit rows of transformers alone, one text after the other."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder())
    model = AutoModel.from_pretrained(folder(), dtype=torch.float32).eval()
    model.encoder.layer = model.encoder.layer[:layers]
    rows = []
    with torch.inference_mode():
        for text in sample:
            inputs = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
            rows.append(model(**inputs).last_hidden_state[0].mean(dim=0).numpy())
    return unit_rows(np.stack(rows))


def equal(data: Path, threads: int) -> Row:
    sample = texts(data, "long", 32) + [text[:40] for text in texts(data, "long", 32)]
    expected = by_hand(sample, HALF)
    rows = {
        name: embedkit.load(layers=HALF, dtype="float32", backend=backend, threads=threads).encode(sample)
        for name, backend in BACKENDS.items()
    }
    return {"texts": len(sample), "differences": {name: float(abs(r - expected).max()) for name, r in rows.items()}}


def speed(data: Path, threads: int) -> Row:
    sample = texts(data, "long", 60)
    runs = {
        (name, layers): embedkit.load(layers=layers, backend=backend, threads=threads)
        for name, backend in BACKENDS.items()
        for layers in (LAYERS, HALF)
    }
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in runs}
    for encoder in runs.values():
        encoder.encode(sample)
    for _ in range(REPEATS):  # in turn, so that a drift of the machine's speed meets everybody
        for key, encoder in runs.items():
            seconds[key].append(timed(lambda encoder=encoder: encoder.encode(sample)))
    entries = [
        {
            "name": name,
            "dtype": runs[name, HALF].compute["dtype"],
            "whole": len(sample) / statistics.median(seconds[name, LAYERS]),
            "half": len(sample) / statistics.median(seconds[name, HALF]),
            "ratio": statistics.median(np.divide(seconds[name, LAYERS], seconds[name, HALF])),
        }
        for name in BACKENDS
    ]
    return {"texts": len(sample), "entries": entries}


def quality(data: Path, threads: int) -> Row:
    return {str(layers): stsb(data, "auto", layers=layers)["score"] for layers in range(1, LAYERS + 1)}


MEASUREMENTS: dict[str, Callable[[Path, int], Row]] = {"equal": equal, "speed": speed, "quality": quality}


def table(rows: dict[str, Row]) -> list[str]:
    lines: list[str] = []
    if row := rows.get("speed"):
        differences = rows.get("equal", {}).get("differences", {})
        lines += [
            f"{row['texts']} abstracts of SciFact:",
            "",
            f"| who | dtype | {LAYERS} layers, texts/s | {HALF} layers, texts/s | x | in float32, off transformers by hand |",
            "|---|---|---|---|---|---|",
        ]
        for entry in row["entries"]:
            difference = differences.get(entry["name"])
            shown = "" if difference is None else f"{difference:.1e}"
            figures = "| {name} | {dtype} | {whole:.1f} | {half:.1f} | {ratio:.2f} |".format(**entry)
            lines.append(f"{figures} {shown} |")
    if row := rows.get("quality"):
        layers = [str(number) for number in range(1, LAYERS + 1)]
        lines += ["", f"| layers | {' | '.join(layers)} |", "|---" * (LAYERS + 1) + "|"]
        lines.append(f"| STSBenchmark Spearman | {' | '.join(f'{row[number]:.4f}' for number in layers)} |")
    return lines


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, default=os.environ.get("EMBEDKIT_DATA"))
    arguments.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments.add_argument("--only", nargs="+", choices=list(MEASUREMENTS), default=list(MEASUREMENTS))
    options = arguments.parse_args()
    if options.data is None or not Path(options.data).is_dir():
        raise SystemExit("Skipped: give the folder of the collections with --data or EMBEDKIT_DATA.")
    stored = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    rows = {row["measurement"]: row for row in stored if row["version"] == embedkit.__version__}
    for name in options.only:
        if name not in rows:
            start = time.perf_counter()
            measured = MEASUREMENTS[name](Path(options.data), options.threads)
            row = {"measurement": name, "version": embedkit.__version__, "threads": options.threads} | measured
            rows[name] = row | {"cost_s": time.perf_counter() - start}
            with ROWS.open("a") as stream:
                stream.write(json.dumps(rows[name]) + "\n")
            print(json.dumps(rows[name]), flush=True)
    replace_table(HERE / "README.md", "elastic", table(rows))


if __name__ == "__main__":
    main()
