"""Writing tensors to the kinds of file that official code reads."""

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from .torch_file import write_archive

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64", torch.int64: "I64"}

_MORE_THAN_A_PAGE = 1 << 16  # bytes: a full disk has no page left


def write_tensors(container: str, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a file of this kind (`Layout.container`)."""
    if container == "npz":
        with path.open("wb") as file:  # to a path NumPy would append a suffix
            np.savez(file, allow_pickle=False, **{name: _to_numpy(tensor) for name, tensor in tensors.items()})
    elif container == "safetensors":
        safetensors.torch.save_file(dict(tensors), path, metadata={"format": "pt"})
    elif container == "torchscript":
        with _errors_of_the_disk(path):
            write_archive(tensors, path)
    else:
        content: dict[str, Any] = dict(tensors)
        for entry in reversed(container.split("/")[1:]):
            content = {entry: content}
        with _errors_of_the_disk(path):
            torch.save(content, path)


@contextmanager
def _errors_of_the_disk(path: Path) -> Iterator[None]:
    """Raise the OSError that PyTorch has met: it does not say which, so the file is extended to find out."""
    try:
        yield
    except RuntimeError:
        with path.open("ab") as file:
            file.write(bytes(_MORE_THAN_A_PAGE))
        raise


def write_safetensors(path: Path, expected: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write tensors, byte for byte as safetensors does, each while the next one is made.

    Raises ValueError where they have not the names, shapes and dtypes of those `expected`, which hold no values.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    # As in safetensors: those with the largest values first, so that all of them lie at multiples of their size.
    for name, tensor in sorted(expected.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    missing = set(expected)

    def write(start: int, tensor: Tensor) -> None:
        file.seek(8 + len(text) + start)
        file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)

    with path.open("wb") as file, ThreadPoolExecutor(1) as pool:
        file.write(len(text).to_bytes(8, "little") + text)
        written: Future[None] = pool.submit(file.flush)
        for name, tensor in tensors:
            model = expected[name] if name in missing else None
            if model is None or tensor.shape != model.shape:
                stated = "no such weight" if model is None else f"shape {tuple(model.shape)}"
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {stated}.")
            if tensor.dtype != model.dtype:
                raise ValueError(f"{name} has dtype {tensor.dtype}, expected {model.dtype}.")
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
