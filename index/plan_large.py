"""Codes of ten million rows, measured beside what `plan` says: regenerates a line of index/README.md.

    python index/plan_large.py [--rows 10000000] [--disk FOLDER]

What a build does for the rows and the codes, without documents: synthetic rows (as million.py makes them) are made block by block, written
as float16, 768 bytes each, and coded by what `auto` chooses, with one thread; then queries are searched with the settings of a build
without --recall. The bytes of ids and documents, which are exact and known, are added to neither side. Needs 8 GB of disk for ten million
rows, about 1 GB of memory, and a quarter of an hour.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from million import BLOCK, CLUSTERS, LATENT, NOISE
from plan_builds import QUERIES, ROUNDS, THREADS, K
from plan_check import cell

from embedkit.eval.report import replace_table
from embedkit.index.calibration import PROBED_SHARE, VERIFIED_AT_LEAST
from embedkit.index.coarse import Codes, automatic_factory, fill, inverted_lists, sample_size, train, write_codes
from embedkit.index.costs import Task, predict, read_calibration
from embedkit.index.faiss_import import import_faiss
from embedkit.index.fine import FineRows, FineWriter
from embedkit.index.meter import Meter
from embedkit.index.sizes import anatomy, fine_bytes
from embedkit.storage import new_file, sealed_partial
from embedkit.vectors import unit_rows

HERE = Path(__file__).parent
DIM = 384


def write_rows(path: Path, count: int) -> None:
    """Synthetic unit rows, float16."""
    draw = np.random.default_rng(0)
    turn, centres = draw.standard_normal((LATENT, DIM)) / np.sqrt(DIM), draw.standard_normal((CLUSTERS, LATENT))
    turn, centres = turn.astype(np.float32), centres.astype(np.float32)
    with new_file(path) as file:
        writer = FineWriter(file, DIM, "float16")
        for start in range(0, count, BLOCK):
            size = min(BLOCK, count - start)
            latent = centres[draw.integers(CLUSTERS, size=size)] + 0.7 * draw.standard_normal(
                (size, LATENT), np.float32
            )
            noise = draw.standard_normal((size, DIM), np.float32)
            writer.append(unit_rows(latent @ turn + NOISE * noise / np.float32(np.sqrt(DIM))))
        writer.finish()


def measure(count: int, scratch: Path) -> dict[str, Any]:
    import time

    import_faiss().omp_set_num_threads(THREADS)
    factory = str(automatic_factory(count, DIM, None))
    meter = Meter()
    write_rows(scratch / "fine.npy", count)
    fine = FineRows(scratch / "fine.npy", count, DIM, "float16")
    draw = np.random.default_rng(1)
    sample = np.sort(draw.choice(count, sample_size(factory, DIM, count, None), replace=False))
    with meter.phase("train"):
        index = train(factory, DIM, fine.rows, sample)
    with meter.phase("code"):
        fill(index, factory, fine.blocks())
    with meter.phase("write"), sealed_partial(scratch / "codes.faiss") as stream:
        write_codes(index, stream)
    lists = int(inverted_lists(index).nlist)
    codes, queries = Codes(index, fine.kernel, round(PROBED_SHARE * lists)), fine.rows(draw.choice(count, QUERIES))
    took = []
    for _ in range(ROUNDS):
        start = time.process_time()
        codes.search(queries, K, VERIFIED_AT_LEAST)
        took.append(time.process_time() - start)
    return {
        "rows": count,
        "coarse": factory,
        "codes": (scratch / "codes.faiss").stat().st_size,
        "fine": (scratch / "fine.npy").stat().st_size,
        "peak": max(meter.peaks.values()),
        "seconds": meter.seconds,
        "query_s": float(np.median(took)) / QUERIES,
    }


def lines(found: dict[str, Any]) -> list[str]:
    count, factory = found["rows"], found["coarse"]
    parts, calibration = anatomy(factory, DIM), read_calibration()
    assert parts is not None
    said = predict(Task(count, DIM, factory), calibration, THREADS)
    assert said.query_seconds is not None
    memory = round(calibration.slack * parts.codes(count))  # the longest phase: what is held while the lists are filled
    rows = (
        ("codes, MB", cell(parts.codes(count), found["codes"], 1e-6)),
        ("fine rows, MB", cell(fine_bytes(count, DIM, "float16"), found["fine"], 1e-6)),
        ("peak of memory, MB", cell(max(memory, said.build_peak or 0), found["peak"], 1e-6)),
        ("training, s", cell(said.phases["train"], found["seconds"]["train"], 1)),
        ("coding, s", cell(said.phases["code"], found["seconds"]["code"], 1)),
        ("a query, core-ms", cell(said.query_seconds, found["query_s"], 1e3)),
    )
    return [
        f"{count:,} rows, `{factory}`:",
        "",
        "| what | predicted for measured |",
        "|---|---|",
        *(f"| {a} | {b} |" for a, b in rows),
    ]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=10_000_000)
    arguments.add_argument("--disk", default=tempfile.gettempdir())
    asked = arguments.parse_args()
    kept = HERE / "plan_large.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    if found.get("rows") != asked.rows:
        with tempfile.TemporaryDirectory(dir=asked.disk) as scratch:
            found = measure(asked.rows, Path(scratch))
        kept.write_text(json.dumps(found, indent=1) + "\n")
    replace_table(HERE / "README.md", "plan-large", lines(found))
    print("\n".join(lines(found)))


if __name__ == "__main__":
    main()
