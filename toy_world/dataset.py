"""Data sets of drawings. Every picture is drawn anew from its index when it is asked for."""

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, Literal

from torch.utils.data import Dataset

from .picture import IMAGE_SIZE, render
from .world import KINDS, SEEN, Kind, Scene, draw_caption, draw_scene


class ShapesDataset(Dataset[dict[str, Any]]):
    """Drawings with captions, which depend only on split, seed and index.

    The kinds in `HELD_OUT` are neither shown nor named in the training split.
    """

    def __init__(
        self, split: Literal["train", "test"] = "train", size: int = 10_000, seed: int = 0, image_size: int = IMAGE_SIZE
    ) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}.")
        self.split, self.size, self.seed, self.image_size = split, size, seed, image_size

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(self.size))

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene, text = self.describe(index)
        return {"image": render(scene, self.image_size), "text": text, "index": index}

    def describe(self, index: int) -> tuple[Scene, str]:
        """Return the scene and its caption, without drawing the picture."""
        if not 0 <= index < self.size:
            raise IndexError(f"The dataset has pairs 0 to {self.size - 1}, got {index}.")
        random = Random(f"{self.split} {self.seed} {index}")
        scene = draw_scene(random, SEEN if self.split == "train" else KINDS)
        return scene, draw_caption(random, scene)


class SingleShapeDataset(Dataset[dict[str, Any]]):
    """Pictures of a single shape with a label, its index in `KINDS`; every kind occurs equally often."""

    def __init__(
        self, size: int = 2_000, seed: int = 0, image_size: int = IMAGE_SIZE, kinds: Sequence[Kind] = KINDS
    ) -> None:
        self.size, self.seed, self.image_size, self.kinds = size, seed, image_size, kinds

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(self.size))

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.size:
            raise IndexError(f"The dataset has pictures 0 to {self.size - 1}, got {index}.")
        kind = self.kinds[index % len(self.kinds)]
        scene = draw_scene(Random(f"one {self.seed} {index}"), [kind], "one")
        return {"image": render(scene, self.image_size), "label": KINDS.index(kind)}
