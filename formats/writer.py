"""Tensors into the containers that official code reads."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from .torch_file import write_archive


def write_tensors(container: str, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a file of this kind: the reverse of reading it."""
    if container == "npz":
        with path.open("wb") as file:  # given a name, NumPy would append a suffix to it
            np.savez(file, allow_pickle=False, **{name: _to_numpy(tensor) for name, tensor in tensors.items()})
    elif container == "safetensors":
        safetensors.torch.save_file(dict(tensors), path, metadata={"format": "pt"})
    elif container == "torchscript":
        write_archive(tensors, path)
    else:
        torch.save({"state_dict": dict(tensors)} if container == "torch/state_dict" else dict(tensors), path)


def _to_numpy(tensor: Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:  # JAX's, which NumPy knows as two bytes without a meaning
        return tensor.view(torch.int16).numpy().view("V2")
    return tensor.numpy()
