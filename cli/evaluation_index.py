"""Embeddings that an index of `twinlens embed` has already."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # commands import what needs PyTorch when they run
    from torch import Tensor

    from ..modeling import DualEncoderModel


class KnownEmbeddings(Mapping[str, "Tensor"]):
    """The embeddings in an index by the paths of images, of files that are what they were."""

    def __init__(self, folder: Path, model: "DualEncoderModel") -> None:
        """Open the index. Raises ValueError for one of another model or of other weights."""
        from ..index import Index, weights_fingerprint

        self.index = Index.open(folder)
        metadata = self.index.metadata
        if metadata["weights"] != weights_fingerprint(model):
            raise ValueError(
                f"{folder} has the embeddings of another model, {metadata['model']}: leave out --index, or embed the "
                "images with this one."
            )
        self._places: dict[str, tuple[int, int, str, int]] = {}  # shard, row of the shard, hash, size
        for shard in range(len(self.index.shards)):
            table = self.index.read_table(shard, ("path", "hash", "size")).to_pydict()
            for row, (path, digest, size) in enumerate(zip(*table.values(), strict=True)):
                self._places[os.path.realpath(path)] = shard, row, digest, size

    def __getitem__(self, path: str) -> "Tensor":
        """Return the unit vector (dim,) of an image. Raises KeyError for one that is not there, or has changed."""
        import torch

        shard, row, digest, size = self._places[os.path.realpath(path)]
        if os.path.getsize(path) != size or _hash(path) != digest:
            raise KeyError(path)
        return torch.nn.functional.normalize(torch.tensor(self.index.shards[shard][row]).float(), dim=-1)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _hash(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
