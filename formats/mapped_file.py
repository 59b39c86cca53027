"""A file of weights in memory by one mapping, however many tensors it has."""

import mmap
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

MAX_DIMENSIONS = 8  # of a tensor in any file; PyTorch's time grows with their square


class MappedFile:
    """The bytes of a file. They take memory, and a descriptor, while somebody holds an array of them, and no longer.

    One mapping serves all arrays: one for each would need as many descriptors, of which a process has a few hundred.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mapped: Callable[[], mmap.mmap | None] = lambda: None

    def memory(self) -> mmap.mmap:
        """Return the bytes, from the first; what is written into them stays in memory."""
        if (mapped := self._mapped()) is None:
            with self._path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self._mapped = weakref.ref(mapped)
        return mapped


class StoredTensor(NamedTuple):
    """A tensor in a file: what is known without its values, and the function that maps these."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    values: Callable[[], Tensor]


class StoredTensors(Mapping[str, Tensor]):
    """Tensors that stay in their file: each is mapped when asked for, and takes memory only while somebody holds it."""

    def __init__(self, stored: Mapping[str, StoredTensor]) -> None:
        self.stored = stored

    def __getitem__(self, name: str) -> Tensor:
        return self.stored[name].values()

    def __contains__(self, name: object) -> bool:
        return name in self.stored

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def described(tensors: Mapping[str, Tensor]) -> Mapping[str, StoredTensor]:
    """Return dtypes and shapes of tensors, which are not mapped for it if they are those of one file."""
    if isinstance(tensors, StoredTensors):
        return tensors.stored
    return {
        name: StoredTensor(tensor.dtype, tuple(tensor.shape), partial(tensors.__getitem__, name))
        for name, tensor in tensors.items()
    }
