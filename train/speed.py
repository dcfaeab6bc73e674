"""Examples a second of `embedkit train` and of SentenceTransformerTrainer, of the same model, data and loss; a table of train/README.md.

    python train/speed.py --data snli|medquad [--defaults] [--steps 20] [--rounds 3] [--threads 2] [--device cuda]

EMBEDKIT_DATA is the folder of the collections. Both have batches of BATCH pairs in float32 or, with --defaults, whatever they do where
nothing but model, data, loss and steps is said. Each run trains `steps` steps after three that are not counted, in a process of
its own, the two in turn, and appends a row to train/speed.jsonl; rounds that stand there are not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from embedkit.eval.report import replace_table

WARM, BATCH = 3, 64
DATA = {"snli": "$EMBEDKIT_DATA/snli_devtest/triplets.jsonl.gz", "medquad": "$EMBEDKIT_DATA/medquad"}
ROWS = Path(__file__).with_name("speed.jsonl")
TEMPERATURE, RATE = 0.05, 2e-5


def pairs(name: str, count: int) -> list[tuple[str, str]]:
    from embedkit.train.data import read_task
    from embedkit.train.settings import Data

    return [(one.anchor, one.positive) for one in read_task(Data(DATA[name])).examples][:count]


def ours(arguments: argparse.Namespace, folder: Path) -> float:
    """Examples a second."""
    from embedkit.encoders.default_model import DEFAULT_MODEL
    from embedkit.recipe import fill
    from embedkit.train.settings import Batch, TrainingRecipe
    from embedkit.train.trainer import train

    steps = WARM + arguments.steps
    size = Batch().size if arguments.defaults else BATCH
    rows = pairs(arguments.data, steps * size)
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps({"anchor": a, "positive": p}) for a, p in rows))
    stage: dict[str, Any] = {
        "data": [{"path": str(folder / "pairs.jsonl")}],
        "loss": [{"name": "info_nce", "temperature": TEMPERATURE, "denominator": "inbatch_pos"}],
        "steps": steps,
    }
    if not arguments.defaults:
        stage |= {"batch": {"size": size}, "optimizer": {"lr": RATE}, "checkpoint_every": steps}
    recipe = {"model": DEFAULT_MODEL, "stages": [stage], **({} if arguments.defaults else {"precision": "float32"})}
    train(fill(TrainingRecipe, recipe), folder / "run", device=arguments.device)
    lines = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    return arguments.steps * size / sum(line["seconds"] for line in lines[WARM:])


def theirs(arguments: argparse.Namespace, folder: Path) -> float:
    """Examples a second."""
    import datasets
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from transformers import TrainerCallback

    from embedkit.encoders.default_model import DEFAULT_MODEL
    from embedkit.encoders.loading import open_for_training

    model: Any = open_for_training(DEFAULT_MODEL, arguments.device)
    steps, times = WARM + arguments.steps, []
    # neither reporting nor saving is in the clock
    quiet = {"report_to": [], "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    quiet["use_cpu"] = arguments.device == "cpu"
    chosen = {} if arguments.defaults else {"per_device_train_batch_size": BATCH, "learning_rate": RATE}
    settings = SentenceTransformerTrainingArguments(output_dir=str(folder), max_steps=steps, **quiet, **chosen)
    size = settings.per_device_train_batch_size
    rows = pairs(arguments.data, steps * size)

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.monotonic())

    SentenceTransformerTrainer(
        model=model,
        args=settings,
        train_dataset=datasets.Dataset.from_dict({"anchor": [a for a, _ in rows], "positive": [p for _, p in rows]}),
        loss=MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE),
        callbacks=[Clock()],
    ).train()
    return arguments.steps * size / (times[-1] - times[WARM - 1])


def read_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def rounds(data: str, defaults: bool, device: str, name: str) -> list[tuple[int, float]]:
    """(steps, examples a second) of each round that was run."""
    asked = (data, defaults, device, name)
    rows = (row for row in read_rows() if (row["data"], row["defaults"], row["device"], row["only"]) == asked)
    return [(row["steps"], row["examples_a_second"]) for row in rows]


def table() -> list[str]:
    """Medians over the rounds."""
    lines = [
        "| pairs | settings | device | rounds of steps | SentenceTransformerTrainer | embedkit | times |",
        "|---|---|---|---|---|---|---|",
    ]
    for device, data, defaults in itertools.product(("cpu", "cuda"), DATA, (False, True)):
        theirs, ours = (rounds(data, defaults, device, name) for name in ("theirs", "ours"))
        if theirs and ours:
            said = "the defaults of each" if defaults else f"batches of {BATCH}, float32"
            one, other = (statistics.median(rate for _, rate in some) for some in (theirs, ours))
            run = f"{len(ours)} of {ours[0][0]}"
            lines.append(f"| {data} | {said} | {device} | {run} | {one:.1f}/s | {other:.1f}/s | {other / one:.2f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(DATA), required=True)
    parser.add_argument("--defaults", action="store_true")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only is None:
        for turn, one in itertools.product(range(arguments.rounds), ("theirs", "ours")):
            if len(rounds(arguments.data, arguments.defaults, arguments.device, one)) <= turn:
                subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", one], check=True)
        replace_table(ROWS.with_name("README.md"), "speed", table())
        return
    import torch

    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        rate = {"ours": ours, "theirs": theirs}[arguments.only](arguments, Path(folder))
    row = {name: getattr(arguments, name) for name in ("data", "defaults", "device", "steps", "threads", "only")}
    row |= {"examples_a_second": round(rate, 1), "torch": torch.__version__}
    with ROWS.open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    print(json.dumps(row))


if __name__ == "__main__":
    main()
