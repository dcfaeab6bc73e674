"""Recall against queries/s, RAM and build time, beside what faiss alone offers: regenerates the tables of index/README.md.

    python index/frontier.py VECTORS.npy [--queries 2000] [--threads 2] [--disk FOLDER] [--json ROWS.json]

VECTORS.npy: (n, dim) rows, compared by their cosine; the last --queries of a fixed shuffle are taken out as queries. The faiss rows are
factory strings tuned by hand over half floats that faiss maps from disk, and its HNSW and IVFFlat; ours are what `auto`
builds, as it is searched for recall targets of 0.95 and 0.97, and a grid of settings around these. What cannot be made of the rows,
or does not reach a target, is named and left out. All are measured in one
run: the settings take turns, ROUNDS times, with a batch of all queries and with queries alone, and the medians count. `ram`
counts everything that a search must hold but the fine rows, mapped or not; `build_s` is the whole build, of ours with
documents, ids, checksums and the measurement of its settings. Then single queries with the pages of the fine rows dropped
before each. Costs about four minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from vector_rows import rows_and_queries

import embedkit
from embedkit.eval.report import replace_table
from embedkit.index import Index

HERE = Path(__file__).parent
ROUNDS, COLD = 7, 200
SINGLE, WARM_UP = 150, 50  # queries alone a round; those before them meet what the last setting left in the caches
TARGETS = (0.95, 0.97)
K = 10
LIGHT = 80  # bytes a vector in RAM, within which the fastest of ours is looked for
Search = Callable[[np.ndarray], np.ndarray]  # queries (q, dim) -> row numbers (q, K)


@dataclass
class Setting:
    """One way to search, and what it took."""

    peer: str
    setting: str
    search: Search
    ram: float  # bytes a vector
    build_s: float
    recall: float = 0.0
    seconds: list[float] = field(default_factory=list)  # of the whole batch
    single_ms: list[float] = field(default_factory=list)

    def row(self, queries: int) -> dict[str, Any]:
        """In the fields of the peers' script."""
        return {
            "peer": self.peer,
            "setting": self.setting,
            "recall": round(self.recall, 4),
            "qps": round(queries / float(np.median(self.seconds))),
            "ram": round(self.ram, 1),
            "p50_ms": round(float(np.median(self.single_ms)), 3),
            "p99_ms": round(float(np.quantile(self.single_ms, 0.99)), 3),
            "build_s": round(self.build_s, 1),
        }


def faiss_settings(rows: np.ndarray, scratch: Path) -> list[Setting]:
    """The factory strings of the peers' script."""
    count, dim = rows.shape
    half = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    half.train(rows[:1])
    half.add(rows)
    faiss.write_index(half, str(scratch / "fine.faiss"))
    fine = faiss.read_index(str(scratch / "fine.faiss"), faiss.IO_FLAG_MMAP_IFC)
    lists = int(2 ** np.round(np.log2(3 * np.sqrt(count))))
    found = []
    for peer, factory, factors in (
        ("faiss RaBitQ + disk", f"IVF{lists},RaBitQ", (5, 10)),
        ("faiss PCA+PQ48fs + disk", f"PCAR{dim // 2},IVF{lists},PQ{dim // 4}x4fs", (5, 10)),
        ("faiss IVFFlat", f"IVF{lists},Flat", (None,)),
    ):
        try:
            found += _inverted(peer, factory, factors, rows, fine)
        except (RuntimeError, AssertionError) as error:  # too few rows to train on, a width that does not divide
            print(f"{peer} is left out, faiss makes no {factory} of {count:,} rows of {dim}: {error}", flush=True)
    return [*found, *_graph(rows)]


def _inverted(peer: str, factory: str, factors: tuple[Any, ...], rows: np.ndarray, fine: Any) -> list[Setting]:
    index = faiss.index_factory(rows.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    start = time.perf_counter()
    index.train(rows)
    index.add(rows)
    built = time.perf_counter() - start
    ram, inner = len(faiss.serialize_index(index)) / len(rows), faiss.extract_index_ivf(index)
    found = []
    for factor in factors:
        whole = index if factor is None else faiss.IndexRefine(index, fine)
        for probes in (8, 16, 32, 64, 128):

            def search(
                queries: np.ndarray, whole: Any = whole, factor: Any = factor, probes: int = probes
            ) -> np.ndarray:
                inner.nprobe = probes
                if factor is not None:
                    whole.k_factor = factor
                return whole.search(queries, K)[1]

            found.append(Setting(peer, f"nprobe {probes} x{factor or 1}", search, ram, built))
    return found


def _graph(rows: np.ndarray) -> list[Setting]:
    graph = faiss.IndexHNSWFlat(rows.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = 100
    start = time.perf_counter()
    graph.add(rows)
    built = time.perf_counter() - start
    found = []
    for width in (16, 32, 64, 128):

        def search(queries: np.ndarray, width: int = width) -> np.ndarray:
            graph.hnsw.efSearch = width
            return graph.search(queries, K)[1]

        found.append(Setting("faiss HNSW32", f"ef {width}", search, 4 * rows.shape[1] + 272, built))
    return found


def our_settings(rows: np.ndarray, scratch: Path, threads: int) -> tuple[list[Setting], Index]:
    """`auto` without a target and for each, and settings around the last of them."""
    found = []
    for target in (None, *TARGETS):
        start = time.perf_counter()
        index = embedkit.build_index(rows, scratch / f"{target}.index", recall=target)
        built, index.threads = time.perf_counter() - start, threads
        ram = index.bytes_in_ram() / len(index)
        segment = index.manifest.segments[0]
        print(
            f"auto, recall {target}: {segment.coarse}, {segment.probes} lists, shortlist {segment.shortlist}",
            flush=True,
        )
        name = "auto" if target is None else f"auto, recall {target}"
        found.append(_ours(index, name, {}, ram, built))
    for probes in (16, 24, 32, 48, 64, 96):
        for shortlist in (40, 70):
            asked = {"probes": probes, "shortlist": shortlist}
            found.append(_ours(index, f"probes {probes}, shortlist {shortlist}", asked, ram, built))
    return found, index


def _ours(index: Index, name: str, asked: dict[str, int], ram: float, built: float) -> Setting:
    def search(queries: np.ndarray) -> np.ndarray:
        ids = index.search(queries, K, documents=False, **asked).ids
        return np.array([list(map(int, row)) for row in ids])

    def timed(queries: np.ndarray) -> Any:
        return index.search(queries, K, documents=False, **asked)

    setting = Setting("embedkit", name, timed, ram, built)
    setting.recall_search = search  # type: ignore[attr-defined]  # ids as numbers, outside the clock
    return setting


def measure(settings: list[Setting], queries: np.ndarray, truth: np.ndarray) -> None:
    """Recall once, then batches and single queries in turns."""
    for setting in settings:
        found = getattr(setting, "recall_search", setting.search)(queries)
        setting.recall = float(np.mean([len(set(a) & set(b)) for a, b in zip(found, truth, strict=True)])) / K
    for _ in range(ROUNDS):
        for setting in settings:
            setting.search(queries)  # the caches hold what the setting before it, perhaps of another index, left there
            setting.seconds.append(_seconds(setting.search, queries))
            alone = [_seconds(setting.search, queries[row : row + 1]) for row in range(WARM_UP + SINGLE)]
            setting.single_ms += [1e3 * seconds for seconds in alone[WARM_UP:]]


def _seconds(search: Search, queries: np.ndarray) -> float:
    start = time.perf_counter()
    search(queries)
    return time.perf_counter() - start


def cold(index: Index, queries: np.ndarray) -> dict[str, float]:
    """Single queries, the pages of the fine rows dropped before each: milliseconds, and bytes read from disk a query."""
    fine = index._snapshot.segments[0].fine
    descriptor = os.open(fine.path, os.O_RDONLY)
    took, read = [], []
    for row in range(COLD):
        fine._map.madvise(mmap.MADV_DONTNEED)  # pages that are mapped are not dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        before = _bytes_read()
        took.append(1e3 * _seconds(lambda q: index.search(q, K, documents=False), queries[row : row + 1]))
        read.append(_bytes_read() - before)
    os.close(descriptor)
    return {
        "cold_p50_ms": round(float(np.median(took)), 3),
        "cold_p99_ms": round(float(np.quantile(took, 0.99)), 3),
        "cold_bytes": round(float(np.mean(read))),
    }


def _bytes_read() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Ours, and of each peer the fastest row at either target."""
    kept = [row for row in rows if row["peer"] == "embedkit"]
    for floor in TARGETS:
        for peer in dict.fromkeys(row["peer"] for row in rows if row["peer"] != "embedkit"):
            best = _fastest([row for row in rows if row["peer"] == peer], floor)
            if best is not None and best not in kept:
                kept.append(best)
    lines = [
        "| who | settings | recall@10 | queries/s | p50 ms | p99 ms | RAM, bytes/vector | build s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in kept:
        lines.append(
            f"| {row['peer']} | {row['setting']} | {row['recall']:.4f} | {row['qps']:,} | {row['p50_ms']:.3f} | "
            f"{row['p99_ms']:.3f} | {row['ram']:.0f} | {row['build_s']:.1f} |"
        )
    return lines


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """The fastest of ours against the fastest of theirs, at each target; what does not reach it is said."""
    lines = []
    for floor in TARGETS:
        mine = _fastest([row for row in rows if row["peer"] == "embedkit" and row["ram"] <= LIGHT], floor)
        best = _fastest([row for row in rows if row["peer"] != "embedkit"], floor)
        auto = next(row for row in rows if row["setting"] == f"auto, recall {floor}")
        if mine is None:
            said = f"no setting of ours within {LIGHT} bytes a vector in RAM (`auto` takes {auto['ram']:.0f})"
        else:
            said = f"{mine['qps']:,} queries/s ({mine['setting']}, {mine['ram']:.0f} bytes a vector in RAM)"
        if best is None:
            said += ", none of theirs"
        else:
            times = "" if mine is None else f"{mine['qps'] / best['qps']:.2f} x "
            said += f", {times}{best['peer']} ({best['setting']}, {best['qps']:,})"
        times = "" if best is None else f", {auto['qps'] / best['qps']:.2f} x"
        lines.append(
            f"At recall@10 >= {floor}: {said}; as `auto` set itself: recall {auto['recall']:.4f}, {auto['qps']:,} queries/s{times}."
        )
        lines.append("")
    return lines[:-1]


def _fastest(rows: list[dict[str, Any]], floor: float) -> dict[str, Any] | None:
    return max((row for row in rows if row["recall"] >= floor), key=lambda row: row["qps"], default=None)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("vectors", type=Path)
    arguments.add_argument("--queries", type=int, default=2000)
    arguments.add_argument("--threads", type=int, default=os.cpu_count())
    arguments.add_argument(
        "--disk", default=tempfile.gettempdir(), help="where the memory-mapped fine rows are written"
    )
    arguments.add_argument("--json", type=Path, default=HERE / "frontier.json", help="where the rows go")
    asked = arguments.parse_args()
    faiss.omp_set_num_threads(asked.threads)
    rows, queries = rows_and_queries(asked.vectors, asked.queries)
    blocks = [queries[start : start + 500] for start in range(0, len(queries), 500)]
    truth = np.concatenate([np.argsort(-(block @ rows.T), axis=1)[:, :K] for block in blocks])
    with tempfile.TemporaryDirectory(dir=asked.disk) as scratch:
        ours, index = our_settings(rows, Path(scratch), asked.threads)
        settings = [*faiss_settings(rows, Path(scratch)), *ours]
        measure(settings, queries, truth)
        found = [setting.row(len(queries)) for setting in settings]
        dropped = cold(index, queries)
    asked.json.write_text(json.dumps([*found, {"peer": "embedkit", "setting": "cold", **dropped}], indent=1))
    for row in found:
        print(json.dumps(row))
    print(*summary(found), json.dumps(dropped), sep="\n")
    replace_table(HERE / "README.md", "frontier", [*summary(found), "", *table(found)])
    replace_table(
        HERE / "README.md",
        "cold",
        [
            f"One query with none of its rows in memory: p50 {dropped['cold_p50_ms']} ms, p99 {dropped['cold_p99_ms']} ms, "
            f"{dropped['cold_bytes']:,} bytes read from disk."
        ],
    )


if __name__ == "__main__":
    main()
