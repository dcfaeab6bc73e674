"""What a coarse level costs and what it keeps: regenerates the table of index/README.md.

    python index/coarse_levels.py [--data FOLDER]

FOLDER (or EMBEDKIT_DATA) holds `scifact` in BEIR layout. The corpus and the test queries are embedded once by the default model
into `scifact.npy` and `queries.npy` beside this file (ignored by git); each coarse level is then built from those vectors,
and its row written to coarse_levels.jsonl at once. A level that stands there already is not repeated; remove the file to
measure anew. Costs about two minutes on two cores, nearly all of it the embedding.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import embedkit
from embedkit.eval.report import replace_table
from embedkit.eval.retrieval import Retrieval, read_retrieval
from embedkit.eval.serving import measure

HERE = Path(__file__).parent
ROWS = HERE / "coarse_levels.jsonl"
LEVELS = ("none", "SQ8", "IVF64,SQ8", "HNSW32", "PQ96x4fs", "PQ48x4fs", "PQ24x4fs", "PCAR192,PQ96x4fs")


def vectors(data: Path, task: Retrieval) -> tuple[Path, np.ndarray]:
    """The file of the corpus and the rows of the queries, embedded where they are not here yet."""
    corpus, queries = HERE / "scifact.npy", HERE / "queries.npy"
    if not corpus.with_suffix(".manifest.json").exists() or not queries.exists():
        from embedkit.jobs import embed_corpus

        encoder = embedkit.load()
        embed_corpus(data / "scifact", corpus, encoder, progress=True, overwrite=True)
        np.save(queries, encoder.encode(list(task.queries.values()), kind="query"))
    return corpus, np.load(queries)


def row(corpus: Path, queries: np.ndarray, task: Retrieval, coarse: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        index = embedkit.build_index(corpus, Path(scratch) / "x.index", coarse=coarse)
        built = time.perf_counter() - start
        served = measure(index, queries, list(task.qrels.values()))
        settings = {name: index.info()["segments"][0][name] for name in ("probes", "shortlist")}
    return {"coarse": coarse, "documents": len(index), "build_s": built, **settings, **asdict(served)}


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| coarse level | lists visited | verified | nDCG@10 | 95 % interval | RAM, bytes/document | disk, bytes/document | queries/s "
        "| p50 ms | p99 ms | build s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["interval"]
        ram, disk = (row[name] / row["documents"] for name in ("bytes_in_ram", "bytes_on_disk"))
        verified = "" if row["coarse"] == "none" else row["shortlist"]
        lines.append(
            f"| `{row['coarse']}` | {row['probes'] or ''} | {verified} | {row['ndcg']:.4f} | {low:.4f} to {high:.4f} | {ram:.0f} "
            f"| {disk:.0f} | {row['queries_per_second']:,.0f} | {row['p50_ms']:.2f} | {row['p99_ms']:.2f} | {row['build_s']:.1f} |"
        )
    return lines


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, default=os.environ.get("EMBEDKIT_DATA"))
    data = arguments.parse_args().data
    if data is None or not (Path(data) / "scifact").is_dir():
        raise SystemExit("Skipped: give the folder of the collections with --data or EMBEDKIT_DATA.")
    task = read_retrieval(Path(data) / "scifact", "test")
    corpus, queries = vectors(Path(data), task)
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    for coarse in LEVELS:
        if coarse not in {row["coarse"] for row in rows}:
            rows.append(row(corpus, queries, task, coarse))
            with ROWS.open("a") as stream:
                stream.write(json.dumps(rows[-1]) + "\n")
            print(json.dumps(rows[-1]), flush=True)
    replace_table(HERE / "README.md", "coarse-levels", table(rows))


if __name__ == "__main__":
    main()
