"""Tensors out of files that nobody vouches for: nothing in them is executed."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from . import torch_file
from .layout import read_json
from .table import FormatError

# What weights are called in folders, the best first; an index names several files.
_IN_OPEN_CLIP_FOLDERS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_IN_FOLDERS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def weight_files(path: Path) -> list[Path]:
    """The file itself, or the files with the weights in a folder of open_clip, timm or transformers."""
    if path.is_file():
        return [path]
    names = (*_IN_OPEN_CLIP_FOLDERS, *_IN_FOLDERS)
    first = next((path / name for name in names if (path / name).is_file()), None)
    if first is None:
        held = ", ".join(sorted(item.name for item in path.iterdir())[:8]) or "nothing"
        raise FormatError(
            f"expected a file, or a folder with config.json and .safetensors files. This one holds {held}."
        )
    if not first.name.endswith(".index.json"):
        return [first]
    parts = read_json(first).get("weight_map")
    if (
        not isinstance(parts, dict)
        or not parts
        or not all(isinstance(name, str) and Path(name).name == name for name in parts.values())
    ):
        raise FormatError(f"{first.name} has no weight_map from weights to files of the folder.")
    return sorted({path / name for name in parts.values()})


def read_files(files: Iterable[Path]) -> tuple[str, dict[str, Tensor]]:
    """The container ("torchscript", "torch", "torch/state_dict", "npz", "safetensors") and the tensors of all files.

    Told by content, not by name. Raises FormatError for everything else, damaged and hostile files included.
    """
    tensors: dict[str, Tensor] = {}
    container = ""
    for file in files:
        container, part = _read_tensors(file)
        if twice := sorted(tensors.keys() & part.keys()):
            raise FormatError(f"{twice[0]} is in two of the files.")
        tensors |= part
    return container, tensors


def _read_tensors(path: Path) -> tuple[str, dict[str, Tensor]]:
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        raise FormatError("the file is empty, expected a checkpoint.")
    try:
        if start.startswith(b"PK\x03\x04"):
            return _read_zip(path)
        if start[8:] == b"{":  # after the length of the header, which may be any bytes
            return "safetensors", safetensors.torch.load_file(path)
        if start.startswith(b"\x80"):  # a pickle
            return torch_file.read_legacy(path)
    except FormatError:
        raise
    except Exception as error:  # parsers raise anything when a file is damaged
        raise FormatError(f"the file is damaged or forged: {' '.join(str(error).split())}") from error
    raise FormatError("this is not a checkpoint; expected a PyTorch file (.pt), a .npz or a .safetensors file.")


def _read_zip(path: Path) -> tuple[str, dict[str, Tensor]]:
    with ZipFile(path) as archive:
        names = archive.namelist()
        if len(set(names)) != len(names):
            raise FormatError("the archive has two entries of one name, so it is not clear what it holds.")
        pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) == 1:
            return torch_file.read_archive(archive, pickles[0].removesuffix("data.pkl"))
    if any(name.endswith(".npy") for name in names):
        with np.load(path, allow_pickle=False) as arrays:
            return "npz", {name: _from_numpy(name, arrays[name]) for name in arrays.files}
    raise FormatError("this zip archive is no checkpoint; expected a PyTorch file (.pt) or NumPy arrays (.npz).")


def _from_numpy(name: str, array: Any) -> Tensor:
    if not isinstance(array, np.ndarray):
        raise FormatError(f"{name} is not a NumPy array.")
    if array.dtype == np.dtype("V2"):  # how NumPy stores JAX's bfloat16
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
