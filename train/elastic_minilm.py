"""Elastic MiniLM: trains the default model by the recipe `elastic` and scores every cell (layers, dims); makes tables of train/README.md.

    python train/elastic_minilm.py [--data FOLDER] [--only RUN ...]
    python train/elastic_minilm.py --data FOLDER [--device cuda] --try optimizer.lr=2e-4 steps=300

FOLDER (or EMBEDKIT_DATA) holds the collections. The runs are `untouched` (the default model) and `seed 0` to `seed 2`; each is trained,
scored on test data once, a row a collection, written to elastic_minilm.jsonl at once; what stands there is not run again. --try changes
settings of the recipe, scores dev data alone (STS-B's dev pairs; on a GPU, where that is quick, queries of SciFact's train and MedQuAD's
dev split, too), and is how the recipe's values were chosen. One thread each, so that two runs fit on two cores: 20 minutes a seed to
train, and RETRIEVAL costs 11 minutes to score.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from grid import DEV, DIMS, LAYERS, STS, Grid, retrieval_grid, sts_grids

from embedkit.encoders.default_model import DEFAULT_MODEL
from embedkit.eval.report import replace_table
from embedkit.eval.run import evaluate_cuts
from embedkit.train.settings import Evaluation, from_environment, read_training_recipe
from embedkit.train.trainer import Cut, train

HERE = Path(__file__).parent
ROWS, PICTURE = HERE / "elastic_minilm.jsonl", HERE / "elastic_minilm.png"
RETRIEVAL = {"SciFact": "scifact", "MedQuAD": "medquad"}
DEV_RETRIEVAL = {"SciFact train": ("scifact", "train"), "MedQuAD dev": ("medquad", "dev")}
BUILT = HERE.parent / "build" / "elastic_minilm"  # the models
UNTOUCHED, SEEDS = "untouched", ("seed 0", "seed 1", "seed 2")
Row = dict[str, Any]


def trained(overrides: Sequence[str], folder: Path, device: str = "cpu") -> tuple[Path, Row]:
    """The model that the recipe makes, and what it cost, both kept in the folder; not what it cost in parts, after a stop."""
    costs, whole = folder / "cost.json", not folder.exists()
    began, used = time.monotonic(), time.process_time()
    recipe = read_training_recipe("elastic", overrides)
    model = train(recipe, folder, resume=True, evaluate=on_dev_pairs, device=device, progress=True)
    if whole:
        cost = {"cpu_minutes": (time.process_time() - used) / 60, "minutes": (time.monotonic() - began) / 60}
        costs.write_text(json.dumps({name: round(value, 2) for name, value in cost.items()}))
    return model, json.loads(costs.read_text()) if costs.exists() else {}


def on_dev_pairs(folder: Path, asked: Evaluation, cuts: Sequence[Cut]) -> list[float]:
    """For the grid of tested cells that the model carries."""
    reports = evaluate_cuts(folder, from_environment(asked.task), cuts, split=asked.split)
    return [report.scores[asked.metric] for report in reports]


def run(name: str, data: Path) -> Iterator[Row]:
    """A row a collection that has none yet."""
    done = {row["collection"] for row in read_rows() if row["run"] == name}
    missing = [one for one in (*STS, *RETRIEVAL) if one not in done]
    if not missing:
        return
    folder, cost = DEFAULT_MODEL, {}
    if name != UNTOUCHED:
        folder, cost = trained([f"seed={name.split()[1]}"], BUILT / name.replace(" ", "-"))
    for collection in missing:
        if collection in STS:
            (grid,) = sts_grids(folder, data, {collection: STS[collection]}).values()
        else:
            grid = retrieval_grid(folder, data / RETRIEVAL[collection])
        yield {"run": name, **cost, "collection": collection, "grid": grid}


def tried(overrides: Sequence[str], data: Path, device: str) -> Iterator[Row]:
    """A row a collection of dev data."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, cost = DEFAULT_MODEL, {}
        if list(overrides) != [UNTOUCHED]:
            folder, cost = trained(overrides, Path(scratch) / "run", device)
        grids = sts_grids(folder, data, DEV, device)
        for collection, (name, split) in DEV_RETRIEVAL.items() if device != "cpu" else ():
            grids[collection] = retrieval_grid(folder, data / name, split, device)
    for collection, grid in grids.items():
        row = {"run": "try", "overrides": list(overrides), "device": device, **cost}
        yield {**row, "collection": collection, "grid": grid}


def read_rows() -> list[Row]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def mean_grid(grids: Sequence[Grid]) -> Grid:
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
    lines = ["| layers | dims | untouched | seeds | mean | at least |", "|---|---|---|---|---|---|"]
    for cell, goal in {"3/128": 0.745, "3/384": 0.76, "6/32": 0.78, "6/384": 0.815}.items():
        layer, dim = cell.split("/")
        scores = [grid[cell] for grid in after]
        seeds = ", ".join(f"{score:.4f}" for score in scores)
        lines.append(f"| {layer} | {dim} | {before[cell]:.4f} | {seeds} | {np.mean(scores):.4f} | {goal} |")
    return lines


def choices_table(rows: Sequence[Row]) -> list[str]:
    """STS-B's dev pairs at four cells (layers/dims) and over the grid; whole rows on the dev queries."""
    lines = [
        "| settings | device | 3/384 | 3/128 | 6/32 | 6/384 | mean of the grid | SciFact train | MedQuAD dev |",
        "|---" * 9 + "|",
    ]
    tries: dict[tuple[str, str], dict[str, Grid]] = {}
    for row in rows:
        tries.setdefault((" ".join(row["overrides"]) or "as it is", row["device"]), {})[row["collection"]] = row["grid"]
    for (settings, device), grids in tries.items():
        pairs = grids["STS-B dev"]
        scores = [pairs[cell] for cell in ("3/384", "3/128", "6/32", "6/384")] + [float(np.mean(list(pairs.values())))]
        retrieval = [f"{grids[name]['6/384']:.3f}" if name in grids else "" for name in DEV_RETRIEVAL]
        lines.append(f"| {settings} | {device} | {' | '.join([*(f'{score:.4f}' for score in scores), *retrieval])} |")
    return lines


def write_tables(rows: Sequence[Row]) -> None:
    """Of all collections that the untouched model and some seeds have been scored on."""
    readme = HERE / "README.md"
    if choices := [row for row in rows if row["run"] == "try"]:
        replace_table(readme, "elastic choices", choices_table(choices))
    before = {row["collection"]: row["grid"] for row in rows if row["run"] == UNTOUCHED}
    after: dict[str, list[Grid]] = {}
    for row in rows:
        if row["run"] in SEEDS and row["collection"] in before:
            after.setdefault(row["collection"], []).append(row["grid"])
    if not after:
        return
    lines: list[str] = []
    for collection, grids in after.items():
        seeds = f"{len(grids)} seed" + ("s" if len(grids) > 1 else "")
        lines += [f"{collection}, {seeds}:", "", *grid_table(before[collection], grids), ""]
    replace_table(readme, "elastic grids", lines[:-1])
    replace_table(readme, "elastic goals", goals_table(before["STS-B"], after["STS-B"]))
    draw({name: (before[name], mean_grid(grids)) for name, grids in after.items()})


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
    parser.add_argument("--device", default="cpu", help="of --try")
    parser.add_argument("--try", nargs="*", dest="overrides", metavar="KEY=VALUE")
    asked = parser.parse_args()
    if asked.data is None or not Path(asked.data).is_dir():
        raise SystemExit("Skipped: give the folder of the collections with --data or EMBEDKIT_DATA.")
    if asked.device != "cpu" and asked.overrides is None:
        raise SystemExit("--device is of --try: the runs that are reported are the CPU's.")
    data = Path(asked.data).absolute()
    os.environ["EMBEDKIT_DATA"] = str(data)
    torch.set_num_threads(1)
    rows = (
        tried(asked.overrides, data, asked.device)
        if asked.overrides is not None
        else chain(*(run(name, data) for name in asked.only))
    )
    for row in rows:
        with ROWS.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
    write_tables(read_rows())


if __name__ == "__main__":
    main()
