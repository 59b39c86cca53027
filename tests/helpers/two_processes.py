"""One of two processes that train the tiny SigLIP of a library; `test_users_training.py` starts them."""

import importlib
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from helpers import families


def gradients(library: Any, rows: slice, **options: Any) -> torch.Tensor:
    """The gradient of the loss of these pairs of six, one vector of all parameters."""
    torch.manual_seed(0)
    model = families.model("Siglip", library=library).train()
    inputs = {"pixel_values": families.pixels(6), "input_ids": families.token_ids("Siglip", 6)}
    model(**families.rows_of(inputs, rows), return_loss=True, **options).loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def main(rank: int, folder: str, library: str) -> None:
    """Write the mean of the gradients of both processes, which is what DDP trains with."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/{library}", rank=rank, world_size=2)
    options = {"group": dist.group.WORLD} if library == "twinlens" else {}
    found = gradients(importlib.import_module(library), slice(3 * rank, 3 * rank + 3), **options)
    dist.all_reduce(found)
    dist.destroy_process_group()
    torch.save(found / 2, Path(folder) / f"{library} {rank}.pt")
