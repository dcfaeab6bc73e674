"""Three ways to train a model that may be cut, at equal data and steps; regenerates a table of train/README.md.

    python train/matryoshka_2d.py [--data FOLDER] [--only METHOD ...]

FOLDER (or EMBEDKIT_DATA) holds the collections. All methods start from the default model and see the same pairs (captions of one photo,
premise and entailed sentence), without those that stand in an STS collection, in batches of BATCH for STEPS steps of AdamW:

  embedkit               every dim of the last layer and of two others at each step; the target is the untouched model, its
                         similarities for all cells and its rows for whole ones, without dropout, as in the recipe `elastic`
  embedkit, InfoNCE      the same cells; the pairs' labels are the target, as for the peers
  2dmse                  the authors' recipe (Li et al. 2024, their code of 23 February 2024), over InfoNCE
  sentence-transformers  Matryoshka2dLoss over MultipleNegativesRankingLoss, its defaults, in SentenceTransformerTrainer

The learning rate of each is the one of RATES that is best on STS-B's dev pairs (mean over the grid, CHOICE steps, seed 3); then three
seeds are scored on the test data. A row is written to matryoshka_2d.jsonl at once, and what stands there is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from grid import DEV, DIMS, LAYERS, STS, Grid, sts_grids

from embedkit.corpus.formats import file_rows
from embedkit.encoders.default_model import DEFAULT_MODEL
from embedkit.encoders.loading import open_for_training
from embedkit.eval.report import replace_table
from embedkit.recipe import fill
from embedkit.train.data import read_task
from embedkit.train.leaks import without_leaks
from embedkit.train.settings import Data, TrainingRecipe, read_training_recipe
from embedkit.train.trainer import train

HERE = Path(__file__).parent
ROWS = HERE / "matryoshka_2d.jsonl"
BATCH, STEPS, CHOICE, TEMPERATURE = 64, 150, 75, 0.05
RATES = (1.5e-4, 4.5e-4)
SEEDS, CHOICE_SEED = (0, 1, 2), 3
LEAKS = ("stsb", "sts12", "sts15", "sick")
EARLY_LAYERS, SHORT_DIMS = LAYERS[:-1], DIMS[:-1]
Row = dict[str, Any]
Method = Callable[[Path, int, float, int, Path], Path]  # pairs, seed, rate, steps, scratch -> a model folder


def write_pairs(data: Path, target: Path) -> Path:
    """The training pairs that all methods see, as jsonl."""
    raw = target.with_name("raw.jsonl")
    raw.write_text("".join(json.dumps(row) + "\n" for row in _pairs(data)))
    (task,) = without_leaks([read_task(Data(str(raw)))], [str(data / name) for name in LEAKS])
    rows = [{"anchor": one.anchor, "positive": one.positive} for one in task.examples]
    order = np.random.default_rng(0).permutation(len(rows))
    target.write_text("".join(json.dumps(rows[place]) + "\n" for place in order))
    return target


def _pairs(data: Path) -> Iterator[Row]:
    for _, row in file_rows(data / "flickr8k_captions" / "captions.jsonl.gz"):
        if row["split"] == "train":
            for one, other in zip(row["captions"][::2], row["captions"][1::2], strict=False):
                yield {"anchor": one, "positive": other}
    for _, row in file_rows(data / "snli_devtest" / "triplets.jsonl.gz"):
        if row["split"] == "dev":
            yield {"anchor": row["anchor"], "positive": row["positive"]}


def by_embedkit(loss: Sequence[Mapping[str, Any]], elastic: Mapping[str, Any], *, dropout: bool = True) -> Method:
    def method(pairs: Path, seed: int, rate: float, steps: int, scratch: Path) -> Path:
        stage = {
            "data": [{"path": str(pairs)}],
            "loss": list(loss),
            "dropout": dropout,
            "batch": {"size": BATCH},
            "elastic": {"dims": list(SHORT_DIMS), "layers": list(EARLY_LAYERS), **elastic},
            "optimizer": {"lr": rate},
            "steps": steps,
            "checkpoint_every": steps,
        }
        recipe = fill(TrainingRecipe, {"model": DEFAULT_MODEL, "seed": seed, "precision": "float32", "stages": [stage]})
        return train(recipe, scratch / "run", device="cpu", progress=True)

    return method


def by_sentence_transformers(pairs: Path, seed: int, rate: float, steps: int, scratch: Path) -> Path:
    import datasets
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import Matryoshka2dLoss, MultipleNegativesRankingLoss

    model = open_for_training(DEFAULT_MODEL, "cpu")
    rows = [row for _, row in file_rows(pairs)]
    settings = SentenceTransformerTrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=BATCH,
        max_steps=steps,
        learning_rate=rate,
        warmup_steps=steps // 10,
        weight_decay=0.01,
        seed=seed,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        use_cpu=True,
    )
    base = MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)
    SentenceTransformerTrainer(
        model=model,
        args=settings,
        train_dataset=datasets.Dataset.from_list(rows),
        loss=Matryoshka2dLoss(model, base, sorted(DIMS, reverse=True)),
    ).train()
    model.save_pretrained(str(scratch / "model"), create_model_card=False)
    return scratch / "model"


ELASTIC = read_training_recipe("elastic").stages[0]
assert ELASTIC.elastic is not None
CELLS = {"recipe": "embedkit", "layers_per_step": ELASTIC.elastic.layers_per_step}
FROM_PAIRS = [{"name": "info_nce", "temperature": TEMPERATURE}]
METHODS: dict[str, Method] = {
    "embedkit": by_embedkit([asdict(term) for term in ELASTIC.loss], CELLS, dropout=ELASTIC.dropout),
    "embedkit, InfoNCE": by_embedkit(FROM_PAIRS, CELLS),
    "2dmse": by_embedkit(FROM_PAIRS, {"recipe": "2dmse"}),
    "sentence-transformers": by_sentence_transformers,
}


def measured(name: str, seed: int, rate: float, steps: int, data: Path, collections: Mapping[str, Any]) -> Row:
    with tempfile.TemporaryDirectory() as scratch:
        pairs = write_pairs(data, Path(scratch) / "pairs.jsonl")
        began, used = time.monotonic(), time.process_time()
        folder = METHODS[name](pairs, seed, rate, steps, Path(scratch))
        cost = {"cpu_minutes": (time.process_time() - used) / 60, "minutes": (time.monotonic() - began) / 60}
        grids = sts_grids(folder, data, collections)
    cost = {key: round(value, 2) for key, value in cost.items()}
    return {"method": name, "seed": seed, "rate": rate, "steps": steps, **cost, "grids": grids}


def read_rows() -> list[Row]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def mean(grid: Grid) -> float:
    return float(np.mean(list(grid.values())))


def chosen_rate(name: str, rows: Sequence[Row]) -> float:
    """The best on the dev pairs."""
    found = {row["rate"]: mean(row["grids"]["STS-B dev"]) for row in rows if _is_choice(row, name)}
    return max(found, key=found.__getitem__)


def _is_choice(row: Row, name: str) -> bool:
    return bool(row["method"] == name and row["seed"] == CHOICE_SEED)


def run(names: Sequence[str], data: Path) -> None:
    for name in names:
        done = {(row["seed"], row["rate"]) for row in read_rows() if row["method"] == name}
        for rate in RATES:
            if (CHOICE_SEED, rate) not in done:
                write_row(measured(name, CHOICE_SEED, rate, CHOICE, data, DEV))
        best = chosen_rate(name, read_rows())
        for seed in SEEDS:
            if (seed, best) not in done:
                write_row(measured(name, seed, best, STEPS, data, STS))


def write_row(row: Row) -> None:
    with ROWS.open("a") as stream:
        stream.write(json.dumps(row) + "\n")


def interval(values: Sequence[float]) -> str:
    """Mean and the 95 % interval of Student's t over the seeds."""
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / np.sqrt(len(values))
    return f"{np.mean(values):.4f} ± {half:.4f}"


def table(rows: Sequence[Row]) -> list[str]:
    """The mean over the grid; the last column is that of all collections less that of `embedkit`, seed by seed."""
    final = {
        name: sorted(
            (row for row in rows if row["method"] == name and row["seed"] in SEEDS), key=lambda row: row["seed"]
        )
        for name in METHODS
    }
    final = {name: some for name, some in final.items() if len(some) == len(SEEDS)}
    lines = [
        f"| method | learning rate | CPU minutes | {' | '.join(STS)} | all four | less embedkit's |",
        "|---" * (len(STS) + 5) + "|",
    ]
    whole = {
        name: [float(np.mean([mean(row["grids"][one]) for one in STS])) for row in some] for name, some in final.items()
    }
    for name, some in final.items():
        columns = [interval([mean(row["grids"][one]) for row in some]) for one in STS]
        away = "" if name == "embedkit" else interval(np.subtract(whole[name], whole["embedkit"]).tolist())
        minutes = np.mean([row["cpu_minutes"] for row in some])
        lines.append(
            f"| {name} | {some[0]['rate']:g} | {minutes:.1f} | {' | '.join(columns)} | {interval(whole[name])} | {away} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("EMBEDKIT_DATA"))
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    asked = parser.parse_args()
    if asked.data is None or not Path(asked.data).is_dir():
        raise SystemExit("Skipped: give the folder of the collections with --data or EMBEDKIT_DATA.")
    torch.set_num_threads(1)
    run(asked.only, Path(asked.data).absolute())
    if any(row["seed"] in SEEDS and row["method"] == "embedkit" for row in read_rows()):
        replace_table(HERE / "README.md", "matryoshka_2d", table(read_rows()))


if __name__ == "__main__":
    main()
