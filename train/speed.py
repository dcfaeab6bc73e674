"""Examples a second of `embedkit train` and of SentenceTransformerTrainer: same model, loss, batch size, data, precision and threads.

    python train/speed.py --data snli|medquad [--batch 64] [--steps 20] [--tokens N] [--threads 2]

EMBEDKIT_DATA is the folder of the collections. Each run trains `steps` steps after three that are not counted, in a process of its own, and
appends a row to train/speed.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WARM = 3
ROWS = Path(__file__).with_name("speed.jsonl")
TEMPERATURE, RATE = 0.05, 2e-5


def pairs(name: str, count: int) -> list[tuple[str, str]]:
    from embedkit.train.data import read_task
    from embedkit.train.settings import Data

    path = {"snli": "$EMBEDKIT_DATA/snli_devtest/triplets.jsonl.gz", "medquad": "$EMBEDKIT_DATA/medquad"}[name]
    return [(one.anchor, one.positive) for one in read_task(Data(path)).examples][:count]


def ours(arguments: argparse.Namespace, folder: Path) -> float:
    from embedkit.encoders.default_model import DEFAULT_MODEL
    from embedkit.recipe import fill
    from embedkit.train.settings import TrainingRecipe
    from embedkit.train.trainer import train

    steps = WARM + arguments.steps
    rows = pairs(arguments.data, steps * arguments.batch)
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps({"anchor": a, "positive": p}) for a, p in rows))
    batch: dict[str, Any] = {"size": arguments.batch}
    if arguments.tokens:
        batch["tokens"] = arguments.tokens
    stage = {
        "data": [{"path": str(folder / "pairs.jsonl")}],
        "loss": [{"name": "info_nce", "temperature": TEMPERATURE}],
        "batch": batch,
        "optimizer": {"lr": RATE},
        "steps": steps,
        "checkpoint_every": steps,
    }
    train(fill(TrainingRecipe, {"model": DEFAULT_MODEL, "stages": [stage]}), folder / "run", device="cpu")
    lines = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    return sum(line["seconds"] for line in lines[WARM:])


def theirs(arguments: argparse.Namespace, folder: Path) -> float:
    import datasets
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from transformers import TrainerCallback

    from embedkit.encoders.default_model import DEFAULT_MODEL
    from embedkit.train.trainer import open_for_training

    model: SentenceTransformer = open_for_training(DEFAULT_MODEL, "cpu")
    steps = WARM + arguments.steps
    rows = pairs(arguments.data, steps * arguments.batch)
    times = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.monotonic())

    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=arguments.batch,
            max_steps=steps,
            learning_rate=RATE,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=datasets.Dataset.from_dict({"anchor": [a for a, _ in rows], "positive": [p for _, p in rows]}),
        loss=MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE),
        callbacks=[Clock()],
    )
    trainer.train()
    return times[-1] - times[WARM - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["snli", "medquad"], required=True)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tokens", type=int, help="batch.tokens of ours; its default when left out")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only is None:
        for one in ("theirs", "ours"):
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", one], check=True)
        return
    import torch

    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        seconds = {"ours": ours, "theirs": theirs}[arguments.only](arguments, Path(folder))
    rate = arguments.steps * arguments.batch / seconds
    row = {**vars(arguments), "examples_a_second": round(rate, 1), "torch": torch.__version__}
    with ROWS.open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    print(json.dumps(row))


if __name__ == "__main__":
    main()
