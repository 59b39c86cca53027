"""Writing tensors to the kinds of file that official code reads."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from .torch_file import write_archive

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}


def write_tensors(container: str, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a file of this kind (`Layout.container`)."""
    if container == "npz":
        with path.open("wb") as file:  # to a path NumPy would append a suffix
            np.savez(file, allow_pickle=False, **{name: _to_numpy(tensor) for name, tensor in tensors.items()})
    elif container == "safetensors":
        safetensors.torch.save_file(dict(tensors), path, metadata={"format": "pt"})
    elif container == "torchscript":
        write_archive(tensors, path)
    else:
        content: dict[str, Any] = dict(tensors)
        for entry in reversed(container.split("/")[1:]):
            content = {entry: content}
        torch.save(content, path)


def write_safetensors(
    path: Path, dtype: torch.dtype, shapes: Mapping[str, Sequence[int]], tensors: Iterable[tuple[str, Tensor]]
) -> None:
    """Write tensors of one dtype, byte for byte as safetensors does, each while the next one is made.

    Raises ValueError where the tensors are not the ones that `shapes` names.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(shapes):
        start, end = end, end + math.prod(shapes[name]) * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shapes[name]), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    missing = set(shapes)

    def write(start: int, tensor: Tensor) -> None:
        file.seek(8 + len(text) + start)
        file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)

    with path.open("wb") as file, ThreadPoolExecutor(1) as pool:
        file.write(len(text).to_bytes(8, "little") + text)
        written: Future[None] = pool.submit(file.flush)
        for name, tensor in tensors:
            if name not in missing or tensor.shape != tuple(shapes[name]):
                expected = f"shape {tuple(shapes[name])}" if name in missing else "no such weight"
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {expected}.")
            missing.remove(name)
            written.result()  # no more than two are in memory
            written = pool.submit(write, header[name]["data_offsets"][0], tensor)
        written.result()
    if missing:
        raise ValueError(f"The file needs {len(missing)} more weights, {min(missing)} among them.")


def _to_numpy(tensor: Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:  # NumPy has no bfloat16; JAX stores it as two bytes without a meaning
        return tensor.view(torch.int16).numpy().view("V2")
    return tensor.numpy()
