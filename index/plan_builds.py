"""One index, built and searched in a process of its own, and what that took: for plan_calibration.py and plan_check.py.

    python index/plan_builds.py ROWS.npy TEXTS.jsonl|none COUNT FOLDER '{"coarse": "auto", "fine": "float16"}' [--grid]

The first COUNT rows of the file; the documents beside them have the texts, or none. Facts go to standard output as JSON, after a line
"imported" and once a line has come in: the parent watches the memory from there. --grid searches with many settings as well.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from million import NOISE, rss_anon

QUERIES, K, ROUNDS = 512, 10, 3
THREADS = 1
EXACT_QUERIES = 64
POLL_SECONDS = 0.02


def documents(texts: str, count: int) -> Iterator[dict[str, str]]:
    """Rows with an id and a text."""
    with Path(texts).open() as lines:
        for row, line in enumerate(islice(lines, count)):
            yield {"_id": str(row), "text": json.loads(line)["text"]}


def seconds_of_a_query(index: Any, queries: np.ndarray, **asked: Any) -> float:
    """Of one thread, which other work on the machine does not lengthen: the processor's time, the median of a few batches."""
    index.search(queries[:8], K, documents=False, **asked)
    took = []
    for _ in range(ROUNDS):
        start = time.process_time()
        index.search(queries, K, documents=False, **asked)
        took.append(time.process_time() - start)
    return float(np.median(took)) / len(queries)


def child(rows: str, texts: str, count: int, folder: str, layout: dict[str, Any], grid: bool) -> None:
    import embedkit
    import embedkit.jobs
    from embedkit.index.faiss_import import import_faiss

    import_faiss().omp_set_num_threads(THREADS)
    assert embedkit.build_index
    vectors = np.load(rows, mmap_mode="r", allow_pickle=False)[:count]
    written = None if texts == "none" else documents(texts, count)
    print("imported", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    embedkit.build_index(vectors, folder, documents=written, **layout).close()
    built = time.perf_counter() - start
    print("built", flush=True)
    sys.stdin.readline()
    draw = np.random.default_rng(1)
    index = embedkit.open_index(folder, threads=THREADS)
    exact = index.manifest.segments[0].coarse is None
    queries = np.array(vectors[draw.choice(count, EXACT_QUERIES if exact else QUERIES, replace=False)], np.float32)
    queries += NOISE * draw.standard_normal(queries.shape).astype(np.float32) / np.sqrt(queries.shape[1])
    record = json.loads((Path(folder) / "segment-0001.built.json").read_text())
    facts = {
        "rows": count,
        "dim": index.dim,
        **index.info()["segments"][0],
        "fine": index.manifest.fine,
        "ram": index.bytes_in_ram(),
        "disk": index.bytes_on_disk(),
        "wall_s": built,
        "query_s": seconds_of_a_query(index, queries),
        **{name: record[name] for name in ("threads", "measured")},
    }
    if grid:
        found = re.search(r"IVF(\d+)", str(facts["coarse"]))
        probes = [8, 32, 128, int(found[1]) // 2] if found else [None] * (not exact)
        asked = [{"probes": p, "shortlist": s} for p in probes for s in (20, 100, 200)]
        facts["grid"] = [{**one, "seconds": seconds_of_a_query(index, queries, **one)} for one in asked]
    print(json.dumps(facts), flush=True)


def measured(
    rows: Path, texts: Path | None, count: int, layout: dict[str, Any], *, grid: bool = False
) -> dict[str, Any]:
    """What the child says, with `peak`, the most anonymous memory while it built, and `process`, what its imports had taken."""
    with tempfile.TemporaryDirectory(dir=rows.parent) as scratch:
        named = [str(rows), "none" if texts is None else str(texts), str(count), f"{scratch}/index", json.dumps(layout)]
        process = subprocess.Popen(
            [sys.executable, __file__, *named, *(["--grid"] if grid else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == b"imported\n"
        before = peak = rss_anon(process.pid)
        _go_on(process)
        while (line := _line(process)) is None:
            peak = max(peak, rss_anon(process.pid))
            time.sleep(POLL_SECONDS)
        if line != b"built\n":
            raise SystemExit(f"{layout} ended with {process.wait()}")
        _go_on(process)
        facts = json.loads(process.stdout.readline())
        process.wait()
    return {**facts, "layout": layout, "peak": peak, "process": before}


def document_costs(count: int = 400_000) -> dict[str, float]:
    """Peak bytes and core-seconds of writing so many documents, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "documents", str(count)], check=True, capture_output=True, text=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def write_documents(count: int) -> None:
    from embedkit.index.documents import DocumentWriter
    from embedkit.index.meter import Meter
    from embedkit.types import Document

    with tempfile.TemporaryDirectory() as scratch:
        meter = Meter()
        with meter.phase("documents"):
            writer = DocumentWriter(Path(scratch) / "documents")
            writer.append((Document(str(row), "a text of some length " * 4) for row in range(count)), texts=True)
            writer.close()
    facts = {"peak": meter.peaks["documents"], "core_seconds": meter.core_seconds["documents"], "count": count}
    print(json.dumps(facts))


def _go_on(process: Any) -> None:
    process.stdin.write(b"\n")
    process.stdin.flush()


def _line(process: Any) -> bytes | None:
    """A line, where one has come or the process has ended."""
    import select

    ready, _, _ = select.select([process.stdout], [], [], 0)
    return process.stdout.readline() if ready else None


if __name__ == "__main__":
    if sys.argv[1] == "documents":
        write_documents(int(sys.argv[2]))
    else:
        rows, texts, count, folder, layout, *grid = sys.argv[1:]
        child(rows, texts, int(count), folder, json.loads(layout), bool(grid))
