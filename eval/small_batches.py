"""What a small batch_size costs: CPU a text of `encode`, beside that of the default; regenerates a table of eval/README.md.

    python eval/small_batches.py [--data FOLDER] [--rounds R]

FOLDER (or EMBEDKIT_DATA) holds `wordnet`. The same 256 short texts with each batch_size, in turn, in one process that has met
their shapes before. CPU time is that of all threads together, so other work on the machine does not count. Half a minute.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from encode_speed import texts as read_texts

import embedkit
from embedkit.eval.report import replace_table

README = Path(__file__).parent / "README.md"
COUNT = 256
SIZES = (None, 16, 4, 1)


def cpu_a_text(encoder: embedkit.Encoder, texts: list[str], size: int | None) -> float:
    """Milliseconds."""
    start = time.process_time()
    encoder.encode(texts, batch_size=size)
    return (time.process_time() - start) * 1000 / len(texts)


def rows(dtype: str, texts: list[str], rounds: int) -> list[str]:
    encoder = embedkit.load(dtype=dtype)
    found: dict[int | None, list[float]] = {size: [] for size in SIZES}
    for number in range(rounds + 1):
        for size, seen in found.items():
            cost = cpu_a_text(encoder, texts, size)
            if number:  # the first round meets the shapes
                seen.append(cost)
    default = statistics.median(found[None])
    return [
        f"| {encoder.compute['dtype']} | {size or 'default'} | {(cost := statistics.median(seen)):.2f} ms | {cost / default:.2f} |"
        for size, seen in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("EMBEDKIT_DATA"))
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    texts = read_texts(arguments.data, "short", COUNT)
    lines = ["| dtype | batch_size | CPU a text, median | times the default |", "|---|---|---|---|"]
    lines += [line for dtype in ("float32", "bfloat16") for line in rows(dtype, texts, arguments.rounds)]
    print("\n".join(lines))
    replace_table(README, "small batches", lines)


if __name__ == "__main__":
    main()
