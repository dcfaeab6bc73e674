"""Hybrid search against its legs, on four collections: regenerates the table of index/README.md.

    python index/hybrid_fusion.py --data FOLDER

FOLDER holds SciFact, MedQuAD, CoSQA and Cranfield in BEIR layout. The corpora are embedded once by the default model, into NAME.npy beside
this file (ignored by git); an index with both legs is built from them. The weight of a collection is fitted on its training or
development queries and measured on its test queries; Cranfield has one set of queries, so that there each fifth is measured with the weight
that the others choose. The leg that a fusion is compared with is chosen by the same queries as its weight. Rows are written to
hybrid_fusion.jsonl at once; a collection that stands there is not repeated. Costs about ten minutes on two cores, nearly all of it
the embedding.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import embedkit
from embedkit.eval.fusion import DENSE, EQUAL, GRID, SPARSE, best_row, better_leg, grid_scores, in_folds
from embedkit.eval.report import replace_table
from embedkit.eval.retrieval import read_retrieval
from embedkit.index.fusion import Fusion
from embedkit.jobs import embed_corpus
from embedkit.statistics import bootstrap_interval, holm, randomisation_test

HERE = Path(__file__).parent
ROWS = HERE / "hybrid_fusion.jsonl"
FITTED_ON: dict[str, str | None] = {"scifact": "train", "cranfield": None, "cosqa": "dev", "medquad": "dev"}
RECIPROCAL = GRID.index(Fusion("rrf", 0.5))


def vectors(data: Path, name: str) -> Path:
    """The file of the corpus, embedded where it is not here yet."""
    corpus = HERE / f"{name}.npy"
    if not corpus.with_suffix(".manifest.json").exists():
        embed_corpus(data / name, corpus, embedkit.load(), progress=True, overwrite=True)
    return corpus


def scores(index: embedkit.Index, data: Path, split: str) -> np.ndarray:
    """(len(GRID), q) nDCG@10 of the queries of a split that have a relevant document."""
    task = read_retrieval(data, split)
    names = [query for query, grades in task.qrels.items() if any(grade > 0 for grade in grades.values())]
    found = index.candidates([task.queries[name] for name in names], 100)
    return grid_scores(found, names, task.qrels)


def row(data: Path, name: str, fitted_on: str | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        corpus = vectors(data, name)
        built = Path(scratch) / "x.index"
        with embedkit.build_index(corpus, built, documents=data / name, sparse="bm25", coarse="none"):
            pass
        with embedkit.open_index(built) as index:
            tested = scores(index, data / name, "test")
            fit = None if fitted_on is None else scores(index, data / name, fitted_on)
    chosen = None if fit is None else GRID[best_row(fit)]
    tuned, leg = in_folds(tested) if fit is None else (tested[best_row(fit)], tested[better_leg(fit)])
    fusions = {"minmax": tested[EQUAL], "rrf": tested[RECIPROCAL], "tuned": tuned}
    differences = {kind: values - leg for kind, values in fusions.items()}
    return {
        "data": name,
        "queries": tested.shape[1],
        "fitted_on": fitted_on or "folds",
        "fitting_queries": tested.shape[1] if fit is None else fit.shape[1],
        "chosen": None if chosen is None else [chosen.method, chosen.weight],
        "dense": float(tested[DENSE].mean()),
        "sparse": float(tested[SPARSE].mean()),
        "leg": float(leg.mean()),
        **{kind: float(values.mean()) for kind, values in fusions.items()},
        "differences": {
            kind: {
                "mean": float(values.mean()),
                "interval": bootstrap_interval(values),
                "p": randomisation_test(values),
            }
            for kind, values in differences.items()
        },
    }


def table(rows: list[dict[str, Any]]) -> list[str]:
    kinds = ("minmax", "rrf", "tuned")
    adjusted = iter(holm([row["differences"][kind]["p"] for row in rows for kind in kinds]))
    lines = [
        "| collection | queries | fitted on | dense | BM25 | min-max mean | reciprocal ranks | tuned | tuned to "
        "| min-max - better leg | ranks - better leg | tuned - better leg |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["data"], f"{row['queries']}", f"{row['fitted_on']} ({row['fitting_queries']})"]
        cells += [f"{row[name]:.4f}" for name in ("dense", "sparse", *kinds)]
        cells.append("by folds" if row["chosen"] is None else f"{row['chosen'][0]} {row['chosen'][1]:g}")
        for kind in kinds:
            found = row["differences"][kind]
            low, high = found["interval"]
            p = next(adjusted)
            said = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
            cells.append(f"{found['mean']:+.4f} ({low:+.4f} to {high:+.4f}), {said}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, default=os.environ.get("EMBEDKIT_DATA"))
    data = arguments.parse_args().data
    if data is None or not all((Path(data) / name).is_dir() for name in FITTED_ON):
        raise SystemExit("Skipped: give the folder of the collections with --data or EMBEDKIT_DATA.")
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    for name, fitted_on in FITTED_ON.items():
        if name not in {row["data"] for row in rows}:
            rows.append(row(Path(data), name, fitted_on))
            with ROWS.open("a") as stream:
                stream.write(json.dumps(rows[-1]) + "\n")
            print(json.dumps(rows[-1]), flush=True)
    replace_table(HERE / "README.md", "hybrid-fusion", table(rows))


if __name__ == "__main__":
    main()
