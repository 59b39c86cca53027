"""A file of weights in memory by one mapping, however many tensors it has."""

import mmap
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

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


class StoredTensors(Mapping[str, Tensor]):
    """Tensors that stay in their file: each is mapped when asked for, and takes memory only while somebody holds it."""

    def __init__(self, mappers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._mappers = mappers

    def __getitem__(self, name: str) -> Tensor:
        return self._mappers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._mappers

    def __iter__(self) -> Iterator[str]:
        return iter(self._mappers)

    def __len__(self) -> int:
        return len(self._mappers)
