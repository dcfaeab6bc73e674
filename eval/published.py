"""Published scores of the default model, reproduced: regenerates the table of eval/README.md.

    python eval/published.py [--data FOLDER]

FOLDER (or EMBEDKIT_DATA) holds the collections of COLLECTIONS. Each block of the table is one command with one report, `embedkit eval
--data scifact stsb sick:all ...`: in float32, in the default dtype, and of SciFact through an index in both. The command is printed, its
report lies beside this file in published/, and it takes what it kept there: an interrupted run goes on, remove the folder to measure
anew. Costs about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

import embedkit
from embedkit.eval.report import read_reports, replace_table

HERE = Path(__file__).parent
ROWS, RESULTS = HERE / "published.jsonl", HERE / "published"
COMMAND = str(Path(sys.executable).with_name("embedkit"))
COARSE = "IVF64,SQ8"
# what is given to --data -> (the row's name, metric, the MTEB leaderboard's value for all-MiniLM-L6-v2, distance allowed)
COLLECTIONS = {
    "scifact": ("SciFact nDCG@10", "ndcg@10", 0.6451, 0.002),
    "stsb": ("STSBenchmark Spearman", "spearman", 0.8203, 0.002),
    "sick:all": ("SICK-R Spearman", "spearman", 0.7758, 0.002),
    "sts12/data_senteval.tsv": ("STS12 Spearman", "spearman", 0.7237, 0.002),
    "sts15/data_senteval.tsv": ("STS15 Spearman", "spearman", 0.8539, 0.002),
    "banking77": ("Banking77 accuracy", "accuracy", 0.8004, 0.01),
    "xquad/en": ("XQuAD en nDCG@10", "ndcg@10", 0.9436, 0.002),
}


def run(data: Path, dtype: str, coarse: str | None) -> list[dict[str, Any]]:
    """One command; the rows of its report."""
    chosen = list(COLLECTIONS) if coarse is None else ["scifact"]
    places = [name if (data / name.split(":")[0]).exists() else f"{name}.gz" for name in chosen]
    output = RESULTS / (dtype if coarse is None else f"{dtype}-index")
    words = [COMMAND, "eval", "--data", *places, "--dtype", dtype, "-o", str(output.absolute())]
    words += ["--index", coarse] if coarse is not None else []
    print(shlex.join(["embedkit", *words[1:]]), flush=True)
    subprocess.run(words, cwd=data, check=True)
    reports = read_reports(output).values()  # in the order of the command
    rows = []
    for name, report in zip(chosen, reports, strict=True):
        task, metric, _, _ = COLLECTIONS[name]
        rows.append(
            {
                "task": task,
                "dtype": dtype,
                "search": f"--coarse {coarse}" if coarse else "exact" if metric == "ndcg@10" else "",
                "embedkit": report.context["embedkit"],
                "score": report.scores[metric],
                "interval": report.intervals[metric],
                "unit": report.unit,
                "compute": report.context["compute"]["dtype"],
            }
        )
    return rows


def stsb(data: Path, dtype: str, **options: Any) -> dict[str, Any]:
    """Spearman of the cosines of the 1,379 test pairs, by hand; for programs beside this one. options: those of `load`."""
    path = next(p for p in (data / "stsb" / "data.tsv", data / "stsb" / "data.tsv.gz") if p.exists())
    with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as stream:
        pairs = [row for row in csv.DictReader(stream, delimiter="\t") if row["split"] == "test"]
    encoder = embedkit.load(dtype=dtype, **options)
    left, right = (encoder.encode([pair[side] for pair in pairs]) for side in ("sentence1", "sentence2"))
    score = spearmanr((left * right).sum(axis=1), [float(pair["score"]) for pair in pairs]).statistic
    return {"score": float(score), "interval": None, "compute": encoder.compute["dtype"]}


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| task | dtype | search | published | measured | difference | 95 % interval, over |",
        "|---|---|---|---|---|---|---|",
    ]
    known = {task: (value, allowed) for task, _, value, allowed in COLLECTIONS.values()}
    for row in rows:
        value, allowed = known[row["task"]]
        off = row["score"] - value
        low, high = row["interval"]
        dtype = row["dtype"] if row["dtype"] == row["compute"] else f"{row['dtype']} ({row['compute']})"
        difference = f"{off:+.4f}" + ("" if abs(off) <= allowed else " (too far)")
        scores = f"{value:.4f} | {row['score']:.4f} | {difference} | {low:.4f} to {high:.4f}, {row['unit']}"
        lines.append(f"| {row['task']} | {dtype} | {row['search']} | {scores} |")
    return lines


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, default=os.environ.get("EMBEDKIT_DATA"))
    data = arguments.parse_args().data
    if data is None or not Path(data).is_dir():
        raise SystemExit("Skipped: give the folder of the collections with --data or EMBEDKIT_DATA.")
    runs = [(dtype, coarse) for dtype in ("float32", "auto") for coarse in (None, COARSE)]
    rows = [row for dtype, coarse in runs for row in run(Path(data), dtype, coarse)]
    ROWS.write_text("".join(json.dumps(row) + "\n" for row in rows))
    replace_table(HERE / "README.md", "published", table(rows))
    if too_far := [row["task"] for row in rows if "too far" in table([row])[-1]]:
        raise SystemExit(f"Further from the published value than allowed: {', '.join(too_far)}.")


if __name__ == "__main__":
    main()
