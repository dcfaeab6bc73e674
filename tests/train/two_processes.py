"""Run by test_processes.py: the same recipe in one process and in two, which are forked once everything is imported.

python tests/train/two_processes.py MODEL PAIRS FOLDER
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
from embedkit.train.contrastive import DENOMINATORS, info_nce
from embedkit.train.processes import process_group
from embedkit.train.settings import TrainingRecipe
from embedkit.train.trainer import train


def recipe(model: str, pairs: str) -> TrainingRecipe:
    stage: dict[str, Any] = {
        "data": [{"path": pairs}],
        "loss": [{"name": "info_nce", "denominator": "all+qq+pp", "learn_temperature": True}],
        "batch": {"size": 8, "negatives": 1},
        "optimizer": {"lr": 1e-3},
        "dropout": False,
        "steps": 10,
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


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


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
            train(recipe(model, pairs), Path(folder) / "two", device="cpu")
        code = 0
    finally:
        if child == 0:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    train(recipe(model, pairs), Path(folder) / "one", device="cpu")
    sys.exit(status)


if __name__ == "__main__":
    main()
