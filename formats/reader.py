"""Tensors out of files that nobody vouches for: nothing in them is executed."""

from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from . import torch_file
from .table import FormatError


def read_tensors(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The container ("torchscript", "torch", "npz", "safetensors") and its tensors, told by content, not by name.

    Raises FormatError for everything else, damaged and hostile files included.
    """
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
