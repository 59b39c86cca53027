"""Files of safetensors: the header is read once, and each tensor is mapped by its place there."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from .errors import FormatError, shown
from .mapped_file import MappedFile, StoredTensors

# `Dtype` in tensor.rs of github.com/huggingface/safetensors, without those that have no place among weights.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

_MAX_HEADER = 16 << 20  # bytes, some 150 for a tensor


class _Place(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file
    end: int


def read_safetensors(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a file, which stay there.

    Raises SafetensorError for one that is not sound, FormatError for a dtype that is not known here.
    """
    length = _header_length(path)
    with safe_open(path, framework="pt"):  # which compares shapes, places and the size of the file with each other
        pass
    with path.open("rb") as file:
        file.seek(8)
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    mapped = MappedFile(path)
    return StoredTensors(
        {name: partial(_map, mapped, _place(name, entry, 8 + length)) for name, entry in header.items()}
    )


def tensor_names(path: Path) -> list[str]:
    """Return the names of the tensors of a file."""
    _header_length(path)
    with safe_open(path, framework="pt") as opened:
        return list(opened.keys())


def _header_length(path: Path) -> int:
    """Return the bytes of the header. Raises ValueError where they would take long to read."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER:
        raise ValueError(f"the file promises a header of {length:,} bytes, expected {_MAX_HEADER:,} at most.")
    return length


def _place(name: str, entry: Mapping[str, Any], values: int) -> _Place:
    """Return where a tensor is; `values` is where the values begin, from which the header counts."""
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in _DTYPES:
        raise FormatError(f"{shown(name)} has the dtype {shown(dtype)}, expected {', '.join(_DTYPES)}.")
    start, end = offsets
    return _Place(_DTYPES[dtype], tuple(shape), values + start, values + end)


def _map(mapped: MappedFile, place: _Place) -> Tensor:
    if place.start == place.end:
        return torch.empty(place.shape, dtype=place.dtype)
    count = (place.end - place.start) // place.dtype.itemsize
    return torch.frombuffer(mapped.memory(), dtype=place.dtype, count=count, offset=place.start).reshape(place.shape)
