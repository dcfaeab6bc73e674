"""Run by test_processes.py: the same recipes in one process and in two, which are forked once everything is imported.

python -m tests.train.two_processes MODEL PAIRS FOLDER
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from embedkit.recipe import fill
from embedkit.train import losses
from embedkit.train.contrastive import DENOMINATORS, info_nce
from embedkit.train.gather import first_row, gather_rows
from embedkit.train.processes import process_group
from embedkit.train.settings import TrainingRecipe
from embedkit.train.trainer import train

BOTH_MIXED = {"name": "info_nce", "temperature": 0.1, "mixing": "both"}
RECIPES: dict[str, dict[str, Any]] = {
    "all+qq+pp": {"loss": [{"name": "info_nce", "denominator": "all+qq+pp", "learn_temperature": True}]},
    "mixing": {"loss": [BOTH_MIXED], "batch": {"size": 8, "negatives": 3, "tokens": 64, "cached": True}},
    "scores": {"loss": [{"name": "cosent"}, {"name": "angle", "weight": 0.1}]},
    "triplet": {"loss": [{"name": "triplet"}], "batch": {"size": 8, "negatives": 3}},
    "embedkit": {  # texts with and without a positive and negatives: the processes have not as many rows
        "loss": [{"name": "in_batch_distillation"}, {"name": "embedding_distillation"}],
        "batch": {"size": 8, "negatives": 3, "kind": "blended", "tokens": 64, "cached": True},
        "elastic": {"recipe": "embedkit", "dims": [8, 16], "layers": [1]},
    },
    "2dmse": {
        "loss": [{"name": "info_nce", "temperature": 0.1}],
        "batch": {"size": 8, "negatives": 3},  # as many as there are: not as many rows again
        "elastic": {"recipe": "2dmse", "dims": [4, 8, 16, 24], "layers": [1]},
    },
    "ese": {
        "loss": [{"name": "info_nce", "temperature": 0.1}],
        "batch": {"size": 8, "negatives": 3},
        "elastic": {"recipe": "ese", "dims": [8]},
    },
}


def recipe(name: str, model: str, pairs: str) -> TrainingRecipe:
    texts = [{"path": pairs, "name": "texts", "texts": ["anchor"]}] if name == "embedkit" else []
    stage: dict[str, Any] = {
        "data": [{"path": pairs}, *texts],
        "batch": {"size": 8, "negatives": 1},
        "optimizer": {"lr": 1e-3},
        "dropout": False,
        "steps": 10,
        **RECIPES[name],
    }
    return fill(TrainingRecipe, {"model": model, "precision": "float32", "stages": [stage]})


def gather_is_right() -> None:
    """The losses of two processes, averaged, and the gradients of their rows, against one process with all rows."""
    rank = dist.get_rank()
    torch.manual_seed(0)
    whole = [torch.nn.functional.normalize(torch.randn(4, *shape, 6), dim=-1) for shape in ((), (), (2,))]
    for denominator in DENOMINATORS:
        all_rows = [one.clone().requires_grad_() for one in whole]
        expected = info_nce(*all_rows, temperature=0.1, denominator=denominator)
        expected.backward()
        mine = [one.chunk(2)[rank].clone().requires_grad_() for one in whole]
        got = info_nce(*mine, temperature=0.1, denominator=denominator, gather=True)
        got.backward()
        dist.all_reduce(value := got.detach().clone())
        torch.testing.assert_close(value / 2, expected.detach())
        for one, part in zip(all_rows, mine, strict=True):
            assert (part.grad is None) == (one.grad is None)  # "inbatch_pos" takes no negatives
            if one.grad is not None:
                torch.testing.assert_close(part.grad / 2, one.grad.chunk(2)[rank])


def uneven_rows_are_right() -> None:
    """Seven rows and three, more than a block: in_batch_distillation as one process has it with all ten."""
    counts = [7, 3]
    torch.manual_seed(0)
    student, teacher = (torch.nn.functional.normalize(torch.randn(10, width), dim=-1) for width in (6, 4))
    all_rows = student.clone().requires_grad_()
    expected = losses.in_batch_distillation(all_rows, teacher)
    expected.backward()
    own = slice(first_row(counts), first_row(counts) + counts[dist.get_rank()])
    mine = student[own].clone().requires_grad_()
    torch.testing.assert_close(gather_rows(teacher[own], counts), teacher)
    got = losses.in_batch_distillation(mine, teacher, counts=counts, rows_at_once=2)
    got.backward()
    dist.all_reduce(value := got.detach().clone())
    torch.testing.assert_close(value / 2, expected.detach())
    assert mine.grad is not None
    assert all_rows.grad is not None
    torch.testing.assert_close(mine.grad / 2, all_rows.grad[own])


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def train_all(model: str, pairs: str, folder: Path) -> None:
    for name in RECIPES:
        train(recipe(name, model, pairs), folder / name, device="cpu")


def main() -> None:
    torch.set_num_threads(1)  # a process that has started threads must not be forked
    model, pairs, folder = sys.argv[1:]
    os.environ.update(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
    child = os.fork()
    os.environ["RANK"] = "1" if child == 0 else "0"
    code = 1
    try:
        with process_group("cpu"):
            gather_is_right()
            uneven_rows_are_right()
            train_all(model, pairs, Path(folder) / "two")
        code = 0
    finally:
        if child == 0:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    train_all(model, pairs, Path(folder) / "one")
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
