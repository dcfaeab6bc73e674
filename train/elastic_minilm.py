"""Elastic MiniLM: trains the default model by the recipe `elastic` and scores every cell (layers, dims); makes tables of train/README.md.

    python train/elastic_minilm.py [--data FOLDER] [--only RUN ...]
    python train/elastic_minilm.py --data FOLDER --try optimizer.lr=2e-4 steps=300

FOLDER (or EMBEDKIT_DATA) holds the collections. The runs are `untouched` (the default model) and `seed 0` to `seed 2`; each is trained,
scored on test data once, and written to elastic_minilm.jsonl at once; what stands there is not run again. --try changes
settings of the recipe, scores STS-B's dev pairs alone, and is how the recipe's values were chosen. One thread each, so that two runs fit
on two cores: 20 minutes a seed to train, and RETRIEVAL costs 11 minutes to score.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from grid import DEV, DIMS, LAYERS, STS, Grid, retrieval_grid, sts_grids

from embedkit.encoders.default_model import DEFAULT_MODEL
from embedkit.eval.report import replace_table
from embedkit.train.settings import read_training_recipe
from embedkit.train.trainer import train

HERE = Path(__file__).parent
ROWS, PICTURE = HERE / "elastic_minilm.jsonl", HERE / "elastic_minilm.png"
RETRIEVAL = {"SciFact": "scifact", "MedQuAD": "medquad"}
UNTOUCHED, SEEDS = "untouched", ("seed 0", "seed 1", "seed 2")
Row = dict[str, Any]


def trained(overrides: Sequence[str], scratch: Path) -> tuple[Path, Row]:
    """The model that the recipe makes, and what it cost."""
    began, used = time.monotonic(), time.process_time()
    folder = train(read_training_recipe("elastic", overrides), scratch / "run", device="cpu", progress=True)
    cost = {"cpu_minutes": (time.process_time() - used) / 60, "minutes": (time.monotonic() - began) / 60}
    return folder, {name: round(value, 2) for name, value in cost.items()}


def run(name: str, data: Path, scratch: Path) -> Row:
    folder, cost = (DEFAULT_MODEL, {}) if name == UNTOUCHED else trained([f"seed={name.split()[1]}"], scratch)
    grids = sts_grids(folder, data)
    grids |= {collection: retrieval_grid(folder, data / path) for collection, path in RETRIEVAL.items()}
    return {"run": name, **cost, "grids": grids}


def tried(overrides: Sequence[str], data: Path, scratch: Path) -> Row:
    folder, cost = trained(overrides, scratch)
    return {"run": "try", "overrides": list(overrides), **cost, "grids": sts_grids(folder, data, DEV)}


def read_rows() -> list[Row]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def mean_grid(rows: Sequence[Row], collection: str) -> Grid:
    grids = [row["grids"][collection] for row in rows]
    return {cell: float(np.mean([grid[cell] for grid in grids])) for cell in grids[0]}


def grid_table(before: Grid, after: Sequence[Grid]) -> list[str]:
    """Mean over the seeds, and of the untouched model in brackets."""
    lines = ["| layers | " + " | ".join(f"{dim} dims" for dim in DIMS) + " |", "|---" * (len(DIMS) + 1) + "|"]
    for layer in LAYERS:
        cells = [f"{layer}/{dim}" for dim in DIMS]
        shown = [f"{np.mean([grid[cell] for grid in after]):.3f} ({before[cell]:.3f})" for cell in cells]
        lines.append(f"| {layer} | " + " | ".join(shown) + " |")
    return lines


def goals_table(before: Grid, after: Sequence[Grid]) -> list[str]:
    """The cells that the recipe is held to, a column a seed."""
    lines = ["| layers | dims | untouched | seeds | at least |", "|---|---|---|---|---|"]
    for cell, goal in {"3/128": 0.745, "3/384": 0.76, "6/32": 0.78, "6/384": 0.815}.items():
        layer, dim = cell.split("/")
        seeds = ", ".join(f"{grid[cell]:.4f}" for grid in after)
        lines.append(f"| {layer} | {dim} | {before[cell]:.4f} | {seeds} | {goal} |")
    return lines


def choices_table(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| settings | CPU minutes | 3 layers, 384 | 3 layers, 128 | 6 layers, 32 | 6 layers, 384 | mean of the grid |",
        "|---" * 7 + "|",
    ]
    for row in rows:
        (grid,) = row["grids"].values()
        scores = [grid["3/384"], grid["3/128"], grid["6/32"], grid["6/384"], float(np.mean(list(grid.values())))]
        shown = " | ".join(f"{score:.4f}" for score in scores)
        lines.append(f"| {' '.join(row['overrides']) or 'as it is'} | {row['cpu_minutes']} | {shown} |")
    return lines


def write_tables(rows: Sequence[Row]) -> None:
    readme = HERE / "README.md"
    if choices := [row for row in rows if row["run"] == "try"]:
        replace_table(readme, "elastic choices", choices_table(choices))
    before = [row for row in rows if row["run"] == UNTOUCHED]
    after = [row for row in rows if row["run"] in SEEDS]
    if not before or not after:
        return
    lines: list[str] = []
    for collection in (*STS, *RETRIEVAL):
        grids = [row["grids"][collection] for row in after]
        lines += [f"{collection}:", "", *grid_table(before[0]["grids"][collection], grids), ""]
    replace_table(readme, "elastic grids", lines[:-1])
    sts = [row["grids"]["STS-B"] for row in after]
    replace_table(readme, "elastic goals", goals_table(before[0]["grids"]["STS-B"], sts))
    draw({name: (before[0]["grids"][name], mean_grid(after, name)) for name in (*STS, *RETRIEVAL)})


def draw(grids: Mapping[str, tuple[Grid, Grid]]) -> None:
    """Heat maps of each collection, untouched and trained, on one scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(grids), figsize=(3 * len(grids), 6), layout="constrained")
    for column, (collection, pair) in enumerate(grids.items()):
        low, high = min(min(grid.values()) for grid in pair), max(max(grid.values()) for grid in pair)
        for row, (title, grid) in enumerate(zip(("untouched", "elastic"), pair, strict=True)):
            values = np.array([[grid[f"{layer}/{dim}"] for dim in DIMS] for layer in LAYERS])
            axis = axes[row, column]
            axis.imshow(values, vmin=low, vmax=high, cmap="viridis", origin="lower")
            axis.set(title=f"{collection}, {title}", xlabel="dimensions", ylabel="layers")
            axis.set_xticks(range(len(DIMS)), DIMS)
            axis.set_yticks(range(len(LAYERS)), LAYERS)
            for (y, x), value in np.ndenumerate(values):
                dark = value < (low + high) / 2
                axis.text(x, y, f"{value:.2f}", ha="center", va="center", size=7, color="white" if dark else "black")
    figure.savefig(PICTURE, dpi=80, metadata={"Software": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("EMBEDKIT_DATA"))
    parser.add_argument("--only", nargs="+", choices=[UNTOUCHED, *SEEDS], default=[UNTOUCHED, *SEEDS], metavar="RUN")
    parser.add_argument("--try", nargs="*", dest="overrides", metavar="KEY=VALUE")
    asked = parser.parse_args()
    if asked.data is None or not Path(asked.data).is_dir():
        raise SystemExit("Skipped: give the folder of the collections with --data or EMBEDKIT_DATA.")
    data = Path(asked.data).absolute()
    os.environ["EMBEDKIT_DATA"] = str(data)
    torch.set_num_threads(1)
    done = {row["run"] for row in read_rows()}
    names = ["try"] if asked.overrides is not None else [name for name in asked.only if name not in done]
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            row = tried(asked.overrides, data, Path(scratch)) if name == "try" else run(name, data, Path(scratch))
        with ROWS.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
    write_tables(read_rows())


if __name__ == "__main__":
    main()
