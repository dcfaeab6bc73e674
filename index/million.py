"""A million rows in little memory, and filters over them: regenerates two tables of index/README.md.

    python index/million.py [--rows 1000000] [--dim 384] [--threads 2] [--disk FOLDER]

The rows are synthetic: Gaussian clusters in 32 dimensions, turned into --dim by a random matrix, with noise; each document has four
fields whose values single out 1, 0.1, 0.01 and 0.0001 of all. A process of its own builds the index with `auto` from the file of
rows, then searches it; its anonymous memory (RssAnon) is read every 50 ms, and what it has after its imports is taken off. Filters
are compared with a plain product over the documents that pass. Costs about two minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from embedkit.eval.report import replace_table

HERE = Path(__file__).parent
SHARES = {"all": 1.0, "tenth": 0.1, "hundredth": 0.01, "rare": 0.0001}
QUERIES, REPEATS, K = 200, 20, 10
LATENT, CLUSTERS, NOISE = 32, 1000, 0.05
BLOCK = 20_000
POLL_SECONDS = 0.05


def make_rows(path: Path, count: int, dim: int) -> None:
    """(count, dim) float32, written block by block."""
    draw = np.random.default_rng(0)
    turn, centres = draw.standard_normal((LATENT, dim)) / np.sqrt(dim), draw.standard_normal((CLUSTERS, LATENT))
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, dim))
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        latent = centres[draw.integers(CLUSTERS, size=size)] + 0.7 * draw.standard_normal((size, LATENT))
        rows[start : start + size] = latent @ turn + NOISE * draw.standard_normal((size, dim)) / np.sqrt(dim)
    rows.flush()


def documents(count: int) -> Iterator[dict[str, Any]]:
    """One a row; the value "yes" of each field stands in its share of them, spread evenly."""
    for row in range(count):
        fields = {name: "yes" if row % round(1 / share) == 0 else "no" for name, share in SHARES.items()}
        yield {"_id": str(row), "text": "", **fields}


def child(rows: Path, folder: Path, threads: int) -> None:
    """Builds and searches; says on standard output what was measured. The parent watches the memory."""
    import faiss

    import embedkit
    import embedkit.jobs  # everything is imported before the first reading
    from embedkit.index import Index

    assert embedkit.build_index
    faiss.omp_set_num_threads(threads)
    print("imported", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    count = len(np.load(rows, mmap_mode="r", allow_pickle=False))
    embedkit.build_index(rows, folder, documents=documents(count)).close()
    built = time.perf_counter() - start
    index = Index(folder, threads=threads)
    vectors = np.load(rows, mmap_mode="r", allow_pickle=False)
    queries = np.array(vectors[np.random.default_rng(1).choice(count, QUERIES, replace=False)])
    queries += (
        NOISE * np.random.default_rng(2).standard_normal(queries.shape).astype(np.float32) / np.sqrt(queries.shape[1])
    )
    index.search(queries, K, documents=False)
    start = time.perf_counter()
    index.search(queries, K, documents=False)
    batch = time.perf_counter() - start
    found = [filtered(index, queries, name) for name in SHARES]
    facts = {
        "rows": count,
        "build_s": built,
        "qps": QUERIES / batch,
        "ram": index.bytes_in_ram() / count,
        "filters": found,
    }
    print(json.dumps(facts | {"segment": index.info()["segments"][0]}), flush=True)


def filtered(index: Any, queries: np.ndarray, name: str) -> dict[str, Any]:
    """The first search with a filter, later ones, and what they find, against a product over all that pass."""
    where = {name: "yes"}
    start = time.perf_counter()
    index.search(queries[0], K, where=where, documents=False)
    first = time.perf_counter() - start
    took, hits = [], []
    for query in queries[:REPEATS]:
        start = time.perf_counter()
        hits.append(index.search(query, K, where=where, documents=False).ids[0])
        took.append(time.perf_counter() - start)
    step = round(1 / SHARES[name])
    wrong = sum(int(identifier) % step != 0 for row in hits for identifier in row)
    missing = sum(K - len(row) for row in hits)
    fine = index._snapshot.segments[0].fine
    passing = np.arange(0, fine.count, step)
    kept = 0
    for query, row in zip(queries, hits, strict=False):
        unit = query / np.linalg.norm(query)
        blocks = (fine.rows(passing[start : start + BLOCK]) @ unit for start in range(0, len(passing), BLOCK))
        scores = np.concatenate(list(blocks))
        kept += len(set(map(int, row)) & set(passing[np.argsort(-scores)[:K]].tolist()))
    return {
        "field": name,
        "share": SHARES[name],
        "first_ms": 1e3 * first,
        "p50_ms": 1e3 * float(np.median(took)),
        "wrong": wrong,
        "missing": missing,
        "recall": kept / (K * REPEATS),
    }


def rss_anon(process: int) -> int:
    """Bytes."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def watched(command: list[str]) -> dict[str, Any]:
    """What the child says, with the peak of its anonymous memory above that after its imports."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdin is not None
    process.stdout.readline()
    before = peak = rss_anon(process.pid)
    process.stdin.write("\n")
    process.stdin.flush()
    while process.poll() is None:
        try:
            peak = max(peak, rss_anon(process.pid))
        except (FileNotFoundError, StopIteration):
            break
        time.sleep(POLL_SECONDS)
    if process.wait():
        raise SystemExit(process.returncode)
    return {**json.loads(process.stdout.readline()), "peak_anon": peak - before}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=1_000_000)
    arguments.add_argument("--dim", type=int, default=384)
    arguments.add_argument("--threads", type=int, default=os.cpu_count())
    arguments.add_argument("--disk", default=tempfile.gettempdir())
    arguments.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.child:
        child(*asked.child, asked.threads)
        return
    with tempfile.TemporaryDirectory(dir=asked.disk) as scratch:
        rows = Path(scratch) / "rows.npy"
        make_rows(rows, asked.rows, asked.dim)
        command = [sys.executable, __file__, "--threads", str(asked.threads), "--child", str(rows), f"{scratch}/index"]
        facts = watched(command)
    (HERE / "million.json").write_text(json.dumps(facts, indent=1))
    print(json.dumps(facts, indent=1))
    segment = facts["segment"]
    replace_table(
        HERE / "README.md",
        "million",
        [
            f"{facts['rows']:,} rows of {asked.dim} dimensions: `{segment['coarse']}`, {segment['probes']} lists visited, "
            f"{segment['shortlist']} rows verified, built in {facts['build_s']:.0f} s; {facts['qps']:,.0f} queries/s, "
            f"{facts['ram']:.0f} bytes a row in RAM; peak of anonymous memory {facts['peak_anon'] / 1e6:.0f} MB above the imports."
        ],
    )
    lines = [
        "| share that passes | first ms | later p50 ms | hits that do not pass | hits missing | recall@10 |",
        "|---|---|---|---|---|---|",
    ]
    for row in facts["filters"]:
        lines.append(
            f"| {row['share']:g} | {row['first_ms']:.1f} | {row['p50_ms']:.2f} | {row['wrong']} | {row['missing']} | "
            f"{row['recall']:.3f} |"
        )
    replace_table(HERE / "README.md", "filters", lines)


if __name__ == "__main__":
    main()
