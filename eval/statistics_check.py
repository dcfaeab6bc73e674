"""Whether p-values and intervals are what they are called.

1. p of `randomisation_test` beside scipy.stats.permutation_test with 100,000 draws, on paired differences: of the default model at
   384 and at 128 dimensions, of parts of these, and made up. scipy is given the size of the sum, one-sided: its own two-sided p
   doubles the smaller tail and with it the error of the draws.
2. Coverage of 95 % intervals: queries drawn with replacement from those of a collection, 2,000 times; how often the interval of
   the mean nDCG@10 holds the mean over the collection. The way that embedkit uses was chosen on Cranfield and CosQA; SciFact is
   what is reported.

    python eval/statistics_check.py --data FOLDER      # holds scifact, cranfield, cosqa in the BEIR layout

Each row goes to statistics_check.jsonl when it is done (values by query too: each collection is embedded once); run it again to
go on. Metrics are compared with their definitions by tests/eval/test_metrics.py.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import embedkit
from embedkit.corpus import read_corpus
from embedkit.eval.exact import exact_shortlist
from embedkit.eval.metrics import DEPTH, retrieval_scores
from embedkit.eval.report import replace_table
from embedkit.eval.retrieval import read_retrieval
from embedkit.eval.serving import as_run
from embedkit.statistics import SWAPS, bootstrap_interval, randomisation_test
from embedkit.types import Hits
from embedkit.vectors import unit_rows

HERE = Path(__file__).parent
ROWS = HERE / "statistics_check.jsonl"
COLLECTIONS = {"cranfield": "test_graded", "cosqa": "test", "scifact": "test"}  # name -> split
DIMS = (384, 128)
DRAWS, SIZES = 2_000, (300, 50)
Differences = np.ndarray  # (n,) of one query each


# --- values by query ------------------------------------------------------------------------------------------------------


def values_of(folder: Path, name: str) -> dict[str, Any]:
    """nDCG@10 of each query at each of DIMS."""
    task = read_retrieval(folder / name, COLLECTIONS[name])
    encoder = embedkit.load()
    ids, texts = zip(*((document.id, document.full_text) for document in read_corpus(folder / name)), strict=True)
    rows, queries = encoder.encode(texts), encoder.encode(list(task.queries.values()), kind="query")
    found = {}
    for dim in DIMS:
        best, scores = exact_shortlist(unit_rows(queries[:, :dim]), unit_rows(rows[:, :dim]), DEPTH)
        hits = Hits([[ids[row] for row in some if row >= 0] for some in best], scores, None)
        found[str(dim)] = list(
            retrieval_scores(task.qrels, as_run(list(task.queries), hits), ["ndcg@10"])["ndcg@10"].values()
        )
    return {"row": f"values: {name}", "ndcg@10": found, "embedkit": embedkit.__version__}


# --- p-values -------------------------------------------------------------------------------------------------------------


def paired_differences(values: dict[str, dict[str, list[float]]]) -> Iterator[tuple[str, Differences]]:
    """(name, differences), real and made up."""
    draw = np.random.default_rng(0)
    for name, by_dim in values.items():
        whole = np.subtract(by_dim["128"], by_dim["384"])
        yield f"{name}, 128 less 384 dimensions", whole
        for size in (12, 40, 120):
            yield f"{name}, {size} of its queries", draw.choice(whole, size, replace=False)
    for size in (8, 15, 30, 300, 1000):
        yield f"normal, n={size}", draw.normal(1.5 / size**0.5, 1, size)
        yield f"skewed, n={size}", draw.exponential(1, size) - 1
        yield f"heavy tails, n={size}", draw.standard_t(2, size) + 1 / size**0.5
        yield f"wins and losses, n={size}", draw.choice([-1.0, 0.0, 1.0], size, p=[0.2, 0.5, 0.3])


def p_row(name: str, differences: Differences) -> dict[str, Any]:
    import scipy.stats

    theirs = scipy.stats.permutation_test(
        (differences, np.zeros(len(differences))),
        lambda one, other, axis: abs((one - other).sum(axis=axis)),
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
        n_resamples=SWAPS,
        batch=max(1, 3_000_000 // len(differences)),
        rng=np.random.default_rng(1),
    ).pvalue
    ours = randomisation_test(differences)
    return {"row": f"p: {name}", "n": len(differences), "embedkit": ours, "scipy": float(theirs)}


def p_table(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| paired differences | n | p, embedkit | p, scipy | apart |", "|---|---|---|---|---|"]
    for row in rows:
        ours, theirs, name = row["embedkit"], row["scipy"], row["row"].partition(": ")[2]
        lines.append(f"| {name} | {row['n']} | {ours:.4f} | {theirs:.4f} | {abs(ours - theirs):.4f} |")
    return [*lines, "", f"Furthest apart: {max(abs(row['embedkit'] - row['scipy']) for row in rows):.4f}."]


# --- coverage -------------------------------------------------------------------------------------------------------------


def bca(sample: np.ndarray) -> tuple[float, float]:
    import scipy.stats

    if np.ptp(sample) == 0:
        return sample[0], sample[0]
    found = scipy.stats.bootstrap(
        (sample,), np.mean, n_resamples=2_000, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    return found.low, found.high


def student(sample: np.ndarray) -> tuple[float, float]:
    import scipy.stats

    half = scipy.stats.t.ppf(0.975, len(sample) - 1) * sample.std(ddof=1) / len(sample) ** 0.5
    return sample.mean() - half, sample.mean() + half


WAYS: dict[str, Callable[[np.ndarray], tuple[float, float]]] = {
    "percentile bootstrap (embedkit)": bootstrap_interval,
    "BCa bootstrap (scipy)": bca,
    "Student's t": student,
}


def coverage_row(name: str, way: str, size: int, values: np.ndarray) -> dict[str, Any]:
    """The same draws for every way."""
    generator, truth = np.random.default_rng(2), values.mean()
    below = above = 0
    widths = []
    for _ in range(DRAWS):
        low, high = WAYS[way](generator.choice(values, size))
        below, above = below + (truth < low), above + (truth > high)
        widths.append(high - low)
    return {
        "row": f"coverage: {name}, {way}, {size}",
        "name": name,
        "way": way,
        "queries": size,
        "coverage": 1 - (below + above) / DRAWS,
        "below": below / DRAWS,
        "above": above / DRAWS,
        "width": float(np.mean(widths)),
    }


def coverage_table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| collection | interval | queries | coverage | mean lies below | mean lies above | mean width |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['name']} | {row['way']} | {row['queries']} | {row['coverage']:.2%} | {row['below']:.2%} | {row['above']:.2%} "
            f"| {row['width']:.4f} |"
        )
    return lines


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, default=os.environ.get("EMBEDKIT_DATA"))
    folder = arguments.parse_args().data
    if folder is None or not all((Path(folder) / name).is_dir() for name in COLLECTIONS):
        raise SystemExit(f"Skipped: give the folder of {', '.join(COLLECTIONS)} with --data or EMBEDKIT_DATA.")
    rows = {row["row"]: row for row in map(json.loads, ROWS.read_text().splitlines())} if ROWS.exists() else {}

    def row_of(name: str, run: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
        if name not in rows:
            rows[name] = run(*arguments)
            with ROWS.open("a") as stream:
                stream.write(json.dumps(rows[name]) + "\n")
            print(json.dumps(rows[name])[:200], flush=True)
        return rows[name]

    values = {name: row_of(f"values: {name}", values_of, Path(folder), name)["ndcg@10"] for name in COLLECTIONS}
    compared = [row_of(f"p: {name}", p_row, name, some) for name, some in paired_differences(values)]
    replace_table(HERE / "README.md", "p-values", p_table(compared))
    covered = [
        row_of(f"coverage: {name}, {way}, {size}", coverage_row, name, way, size, np.array(values[name]["384"]))
        for name in COLLECTIONS
        for size in SIZES
        for way in WAYS
    ]
    replace_table(HERE / "README.md", "coverage", coverage_table(covered))


if __name__ == "__main__":
    main()
