"""The int8 profile beside bfloat16 and float32, speed and quality: regenerates its table in eval/README.md.

    python eval/int8_profile.py [--data FOLDER] [--threads N]

FOLDER (or EMBEDKIT_DATA) holds `wordnet` (short texts), `scifact` (long ones, and judged queries) and `stsb`. A row each:

  products                 what the matrices of the default model could run at, in float32, bfloat16 and int8, and per token
  speed short, speed long  the same texts in turn, medians of five ratios: by the clock, and by the processor time of all
                           threads, which other programs on the machine disturb less
  scifact, stsb            nDCG@10 on the test queries, Spearman on the test pairs, in int8; the others stand in published.jsonl

The profile is calibrated on the first 256 texts of each collection (STSBenchmark: of its training pairs). A row is written to
int8_profile.jsonl at once and not measured again for this version; remove the file to measure anew. Ten minutes on two
cores while other programs were at work.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from encode_speed import FLOP_PER_TOKEN, folder, texts
from scipy.stats import spearmanr

import embedkit
from embedkit.encoders import int8_profile
from embedkit.encoders.openvino_backend import compiled
from embedkit.eval.report import replace_table
from embedkit.vectors import unit_rows

HERE = Path(__file__).parent
ROWS = HERE / "int8_profile.jsonl"
CALIBRATION = 256
REPEATS, DEPTH, TOKENS = 5, 6, 1024
COUNTS = {"short": 1500, "long": 120}
Row = dict[str, Any]


def fast(sample: list[str], threads: int) -> Any:
    return embedkit.load(profile="fast", calibrate=sample[:CALIBRATION], threads=threads)


def seconds(run: Callable[[], Any]) -> tuple[float, float]:
    """By the clock, and of processor time."""
    clock, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - clock, time.process_time() - processor


def products(data: Path, threads: int) -> Row:
    """GFLOP/s a core of a chain of the model's widest products, best of twenty."""
    op, openvino = int8_profile.op, int8_profile.openvino
    random = np.random.default_rng(0)

    def chain(quantized: bool) -> Any:
        rows = states = op.parameter([-1, 384], np.float32, name="rows")
        for width, inner in ((384, 1536), (1536, 384)) * DEPTH:
            weight: Any = op.constant(random.standard_normal((inner, width), dtype=np.float32) / width**0.5)
            if quantized:
                weight = op.fake_quantize(weight, *map(op.constant, np.float32([-0.2, 0.2, -0.2, 0.2])), 255)
                states = op.fake_quantize(states, *map(op.constant, np.float32([-4, 4, -4, 4])), 256)
            states = op.matmul(states, weight, False, True)
        return openvino.Model([states], [rows], "chain")

    rows = random.standard_normal((TOKENS, 384), dtype=np.float32)
    dtypes = {"float32": "float32", "bfloat16": "bfloat16", "int8": "float32"}
    requests = {
        name: compiled(chain(name == "int8"), dtype, 1, "LATENCY").create_infer_request()
        for name, dtype in dtypes.items()
    }
    taken: dict[str, list[float]] = {name: [] for name in requests}
    for _ in range(20):
        for name, request in requests.items():
            taken[name].append(seconds(lambda request=request: request.infer({"rows": rows}))[1])
    flop = DEPTH * 2 * 2 * TOKENS * 384 * 1536
    return {name: flop / min(some) / 1e9 for name, some in taken.items()}


def speed(data: Path, threads: int, length: str) -> Row:
    sample = texts(data, length, COUNTS[length] + CALIBRATION)
    encoders = {
        "bfloat16": embedkit.load(dtype="bfloat16", threads=threads),
        "float32": embedkit.load(dtype="float32", threads=threads),
        "int8": fast(sample, threads),
    }
    sample = sample[CALIBRATION:]
    vectors = {name: unit_rows(encoder.encode(sample)) for name, encoder in encoders.items()}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in encoders}
    for _ in range(REPEATS):
        for name, encoder in encoders.items():
            taken[name].append(seconds(lambda encoder=encoder: encoder.encode(sample)))
    tokenizer: Any = encoders["int8"]._opened.tokenization
    tokens = sum(piece.length for piece in tokenizer.pieces(sample, ""))
    base = np.array(taken["bfloat16"])
    entries = {}
    for name, some in taken.items():
        ratios = np.median(base / np.array(some), axis=0)
        agreed = int8_profile.agreement(vectors["float32"], vectors[name])
        entries[name] = {
            "texts_s": len(sample) / statistics.median(clock for clock, _ in some),
            "ratio": float(ratios[0]),
            "processor_ratio": float(ratios[1]),
            "processor_us_a_token": 1e6 * statistics.median(used for _, used in some) / tokens,
            **dict(zip(("mean_cosine", "smallest_cosine", "same_nearest"), agreed, strict=True)),
        }
    return {"texts": len(sample), "tokens": tokens, "entries": entries}


def scifact(data: Path, threads: int) -> Row:
    encoder = fast(texts(data, "long", CALIBRATION), threads)
    report = embedkit.evaluate(encoder, data / "scifact")
    return {"score": report.scores["ndcg@10"], "interval": report.intervals["ndcg@10"]}


def stsb(data: Path, threads: int) -> Row:
    path = next(p for p in (data / "stsb" / "data.tsv", data / "stsb" / "data.tsv.gz") if p.exists())
    with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as stream:
        pairs = list(csv.DictReader(stream, delimiter="\t"))
    encoder = fast([pair["sentence1"] for pair in pairs if pair["split"] == "train"], threads)
    judged = [pair for pair in pairs if pair["split"] == "test"]
    left, right = (encoder.encode([pair[side] for pair in judged]) for side in ("sentence1", "sentence2"))
    return {"score": float(spearmanr((left * right).sum(axis=1), [float(pair["score"]) for pair in judged]).statistic)}


MEASUREMENTS: dict[str, Callable[[Path, int], Row]] = {
    "products": products,
    "speed short": lambda data, threads: speed(data, threads, "short"),
    "speed long": lambda data, threads: speed(data, threads, "long"),
    "stsb": stsb,
    "scifact": scifact,
}


def published() -> dict[tuple[str, str], float]:
    """(task, dtype) -> score, of the exact search."""
    rows = [json.loads(line) for line in (HERE / "published.jsonl").read_text().splitlines()]
    return {(row["task"], row["compute"]): row["score"] for row in rows if row["search"] in ("exact", "")}


def table(rows: dict[str, Row]) -> list[str]:
    lines = []
    if peak := rows.get("products"):
        lines += [
            f"One core multiplies matrices of these widths at {peak['float32']:.0f} GFLOP/s in float32, {peak['bfloat16']:.0f} in "
            f"bfloat16 and {peak['int8']:.0f} in int8.",
            "",
        ]
    lines += [
        "| texts | dtype | texts/s | x bfloat16, clock | x bfloat16, processor | products alone | mean cosine | smallest | nearest |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for length in COUNTS:
        row = rows.get(f"speed {length}")
        for name, entry in row["entries"].items() if row else ():
            alone = _from_products(peak, row["entries"]["bfloat16"]) if name == "int8" and peak else ""
            lines.append(
                f"| {length}, {row['tokens'] / row['texts']:.0f} tokens | {name} | {entry['texts_s']:,.0f} | {entry['ratio']:.2f} | "
                f"{entry['processor_ratio']:.2f} | {alone} | {entry['mean_cosine']:.4f} | {entry['smallest_cosine']:.4f} | "
                f"{entry['same_nearest']:.1%} |"
            )
    lines += ["", "| task | float32 | bfloat16 | int8 | int8 less float32 |", "|---|---|---|---|---|"]
    known = published()
    for name, task in (("scifact", "SciFact nDCG@10"), ("stsb", "STSBenchmark Spearman")):
        if row := rows.get(name):
            exact = known[task, "float32"]
            scores = f"{exact:.4f} | {known[task, 'bfloat16']:.4f} | {row['score']:.4f} | {row['score'] - exact:+.4f}"
            lines.append(f"| {task} | {scores} |")
    return lines


def _from_products(peak: Row, entry: Row) -> str:
    """x bfloat16, if the products ran at their peak in both and all else took as long as before (Amdahl's law)."""
    share = FLOP_PER_TOKEN / (peak["bfloat16"] * 1e9) / (entry["processor_us_a_token"] / 1e6)
    return f"{1 / (1 - share + share * peak['bfloat16'] / peak['int8']):.2f}"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, default=os.environ.get("EMBEDKIT_DATA"))
    arguments.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = arguments.parse_args()
    if options.data is None or not Path(options.data).is_dir():
        raise SystemExit("Skipped: give the folder of the collections with --data or EMBEDKIT_DATA.")
    folder()
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.INFO)
    stored = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    rows = {row["measurement"]: row for row in stored if row["version"] == embedkit.__version__}
    for name, measure in MEASUREMENTS.items():
        if name not in rows:
            start = time.perf_counter()
            row = {"measurement": name, "version": embedkit.__version__, "threads": options.threads}
            rows[name] = row | measure(Path(options.data), options.threads) | {"cost_s": time.perf_counter() - start}
            with ROWS.open("a") as stream:
                stream.write(json.dumps(rows[name]) + "\n")
            print(json.dumps(rows[name]), flush=True)
    replace_table(HERE / "README.md", "int8", table(rows))


if __name__ == "__main__":
    main()
