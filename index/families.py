"""Which codes for how many bytes: what `auto` chooses by, and the table of index/README.md that shows it.

    python index/families.py VECTORS.npy [--queries 1000] [--threads 2] [--disk FOLDER]

Every family of codes at every size over the same inverted lists, each built by embedkit with settings held to a recall of
0.95: what they reach on rows held out, how fast, and how much they take. One row a family and size, written to
families.jsonl at once; what stands there is not repeated, what cannot be made of the rows is named. Costs about four
minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from vector_rows import rows_and_queries

import embedkit
from embedkit.errors import EmbedkitError
from embedkit.eval.report import replace_table

HERE = Path(__file__).parent
ROWS = HERE / "families.jsonl"
TARGET, K, ROUNDS = 0.95, 10, 5


def families(dim: int, lists: int) -> dict[str, list[str]]:
    """Name -> factory strings, from few bytes a code to many."""
    ivf = f"IVF{lists}"
    return {
        "PCA + 4-bit PQ": [
            f"PCAR{4 * size},{ivf},PQ{2 * size}x4fs" for size in (16, 24, 32, 48, 64, 96) if 4 * size <= dim
        ],
        "4-bit PQ": [f"RR{dim},{ivf},PQ{pieces}x4fs" for pieces in (dim // 4, dim // 2, dim)],
        "PCA + RaBitQ": [f"PCAR{kept},{ivf},RaBitQ" for kept in (dim // 2, dim)],
        "RaBitQ, more bits": [f"RR{dim},{ivf},RaBitQ{bits}" for bits in (2, 4, 8)],
        "RaBitQ fast scan": [f"RR{dim},{ivf},RaBitQfs"],
        "scalars": [f"{ivf},{kind}" for kind in ("SQ4", "SQ8")],
    }


def row(rows: np.ndarray, queries: np.ndarray, truth: np.ndarray, name: str, factory: str, disk: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=disk) as scratch:
        start = time.perf_counter()
        index = embedkit.build_index(rows, Path(scratch) / "x.index", coarse=factory, recall=TARGET)
        built = time.perf_counter() - start
        found = np.array([list(map(int, ids)) for ids in index.search(queries, K, documents=False).ids])
        took = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            index.search(queries, K, documents=False)
            took.append(time.perf_counter() - start)
        segment = index.manifest.segments[0]
        recall = np.mean([len(set(a) & set(b)) for a, b in zip(found, truth, strict=True)]) / K
        return {
            "family": name,
            "factory": factory,
            "ram": index.bytes_in_ram() / len(rows),
            "probes": segment.probes,
            "shortlist": segment.shortlist,
            "recall": float(recall),
            "qps": len(queries) / float(np.median(took)),
            "build_s": built,
        }


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| codes | factory | RAM, bytes/vector | lists visited | verified | recall@10 | queries/s | build s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row["ram"]):
        lines.append(
            f"| {row['family']} | `{row['factory']}` | {row['ram']:.0f} | {row['probes']} | {row['shortlist']} | "
            f"{row['recall']:.4f} | {row['qps']:,.0f} | {row['build_s']:.1f} |"
        )
    return lines


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("vectors", type=Path)
    arguments.add_argument("--queries", type=int, default=1000)
    arguments.add_argument("--threads", type=int, default=os.cpu_count())
    arguments.add_argument("--disk", default=tempfile.gettempdir())
    asked = arguments.parse_args()
    logging.getLogger("embedkit").setLevel(logging.ERROR)
    faiss.omp_set_num_threads(asked.threads)
    rows, queries = rows_and_queries(asked.vectors, asked.queries)
    truth = np.argsort(-(queries @ rows.T), axis=1)[:, :K]
    lists = int(2 ** np.round(np.log2(1.5 * np.sqrt(len(rows)))))
    done = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    for name, factories in families(rows.shape[1], lists).items():
        for factory in factories:
            if factory in {row["factory"] for row in done}:
                continue
            try:
                done.append(row(rows, queries, truth, name, factory, asked.disk))
            except EmbedkitError as error:  # too few rows, a width that does not divide
                print(f"{factory} is left out: {error}", flush=True)
                continue
            with ROWS.open("a") as stream:
                stream.write(json.dumps(done[-1]) + "\n")
            print(json.dumps(done[-1]), flush=True)
    replace_table(HERE / "README.md", "families", table(done))


if __name__ == "__main__":
    main()
