"""Files of safetensors: the header is read once, and each tensor is mapped by its place there."""

import json
import mmap
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from ..messages import shown
from .errors import FormatError
from .mapped_file import MAX_DIMENSIONS, MappedFile, StoredTensor, StoredTensors

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
    mapped = MappedFile(path)
    return StoredTensors(
        {
            name: StoredTensor(place.dtype, place.shape, partial(_map, mapped, place))
            for name, place in _places(path).items()
        }
    )


def read_runs(path: Path, most: int) -> Iterator[tuple[list[str], Tensor]]:
    """Yield the values of tensors of one dtype that lie one behind the other, at most `most` bytes, with their names.

    A tensor with more bytes is a run by itself. Raises what `read_safetensors` does.
    """
    memory = MappedFile(path).memory()
    run: list[str] = []
    whole: _Place | None = None
    for name, place in sorted(_places(path).items(), key=lambda item: item[1].start):
        follows = whole is not None and (place.dtype, place.start) == (whole.dtype, whole.end)
        if whole is not None and not (follows and place.end - whole.start <= most):
            yield run, _values(memory, whole)
            run, whole = [], None
        run.append(name)
        whole = place if whole is None else whole._replace(end=place.end)
    if whole is not None:
        yield run, _values(memory, whole)


def _places(path: Path) -> dict[str, _Place]:
    length = _header_length(path)
    with safe_open(path, framework="pt"):  # which compares shapes, places and the size of the file with each other
        pass
    with path.open("rb") as file:
        file.seek(8)
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: _place(name, entry, 8 + length) for name, entry in header.items()}


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
    if len(shape) > MAX_DIMENSIONS:
        raise FormatError(f"{shown(name)} has {len(shape):,} dimensions, expected at most {MAX_DIMENSIONS}.")
    start, end = offsets
    return _Place(_DTYPES[dtype], tuple(shape), values + start, values + end)


def _map(mapped: MappedFile, place: _Place) -> Tensor:
    if place.start == place.end:
        return torch.empty(place.shape, dtype=place.dtype)
    return _values(mapped.memory(), place).reshape(place.shape)


def _values(memory: mmap.mmap, place: _Place) -> Tensor:
    count = (place.end - place.start) // place.dtype.itemsize
    if not count:
        return torch.empty(0, dtype=place.dtype)
    return torch.frombuffer(memory, dtype=place.dtype, count=count, offset=place.start)
