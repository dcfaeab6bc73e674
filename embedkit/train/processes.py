"""The processes of one run, as torchrun and accelerate launch start them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

# The others wait while the first process evaluates, tests a grid or writes the model, which may take longer than the 10 (NCCL) or 30
# minutes (gloo) that torch waits. Nobody waits for the dead: torchrun ends all processes when one of them ends.
PATIENCE = timedelta(days=1)


@contextmanager
def process_group(device: str) -> Iterator[str]:
    """Joins the group that the environment describes, if any; the device of this process.

    NCCL and a GPU of its own a process where "auto" or "cuda" was asked for and there are GPUs, else gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield device
        return
    on_gpus = device in ("auto", "cuda") and torch.cuda.is_available()
    if on_gpus:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpus else "gloo", timeout=PATIENCE)
    try:
        yield device
    finally:
        dist.destroy_process_group()
