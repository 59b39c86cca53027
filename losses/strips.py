"""Logits strip by strip, and the gradients that they make, in memory that is used again and again."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK_SIZE = 512  # images in a strip


class Strip(NamedTuple):
    """Logits of all texts with a few images, and as much memory to work in."""

    rows: slice  # of the images
    images: Tensor  # (images, dim), times the scale
    logits: Tensor  # (texts, images)
    spare: Tensor  # (texts, images)


class Strips:
    """The logits of `images` (batch, dim), times `scale`, with one block of texts after the other."""

    def __init__(self, images: Tensor, scale: Tensor, chunk_size: int, needs: tuple[bool, ...]) -> None:
        batch, dim = images.shape
        self.images, self.scale, self.needs = images, scale, needs
        self.size = min(chunk_size, batch)
        # The scale's gradient follows from those of the images, or of the texts if the images need none.
        needs_images, self.needs_texts, needs_scale = needs[:3]
        self.needs_images = needs_images or (needs_scale and not self.needs_texts)
        self.gradient = torch.zeros_like(images) if self.needs_images else None
        # Memory that is new to the process costs a tenth to a sixth of the time on the CPU.
        self.scaled = images.new_empty(self.size, dim)
        self.memory = [images.new_empty(self.size * batch) for _ in range(2)]

    def of(self, texts: Tensor) -> Iterator[Strip]:
        for start in range(0, len(self.images), self.size):
            rows = slice(start, min(start + self.size, len(self.images)))
            count = rows.stop - start
            scaled = torch.mul(self.images[rows], self.scale, out=self.scaled[:count])
            logits, spare = (memory[: len(texts) * count].view(-1, count) for memory in self.memory)
            # Texts by images: the tall product is a fifth faster than the wide one.
            yield Strip(rows, scaled, torch.mm(texts, scaled.t(), out=logits), spare)

    def add(self, strip: Strip, gradient: Tensor, texts: Tensor, texts_gradient: Tensor | None) -> None:
        """Add what the gradient (texts, images) of a strip says of its images and of the texts."""
        if self.gradient is not None:
            self.gradient[strip.rows].addmm_(gradient.t(), texts)
        if texts_gradient is not None:
            texts_gradient.addmm_(gradient, strip.images)

    def gradients(self, weight: float, texts: Tensor, texts_gradient: Tensor | None) -> list[Tensor | None]:
        """Gradients of images, texts and the scale's logarithm, if what was added up counts `weight`."""
        if texts_gradient is not None:
            texts_gradient.mul_(weight)
        if self.gradient is not None:
            self.gradient.mul_(weight * self.scale)
        vectors, gradient = (texts, texts_gradient) if self.gradient is None else (self.images, self.gradient)
        scale_gradient = _dot(vectors, gradient, self.size) if self.needs[2] and gradient is not None else None
        return [self.gradient if self.needs[0] else None, texts_gradient, scale_gradient]


def pairs(strip: Strip, of: Tensor) -> Tensor:
    """The entries of a strip at home where image and text belong together."""
    return of[strip.rows].diagonal()


def _dot(one: Tensor, other: Tensor, size: int) -> Tensor:
    """The inner product of two large matrices, without their product in memory."""
    parts = zip(one.split(size), other.split(size), strict=True)
    return torch.stack([torch.dot(left.flatten(), right.flatten()) for left, right in parts]).sum()
