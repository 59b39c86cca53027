"""Logits strip by strip, and the gradients that they make, in memory that is used again and again."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK_SIZE = 1024  # images in a strip; a tenth faster than half as many on two CPU threads
KEPT = 4  # strips that a loss with two trips keeps for the second one
LOGITS = 2**26  # numbers in all strips at most, 256 MB in float32: where texts are many, strips are narrower and fewer
TILE = 2**18  # numbers that stay in a CPU's cache from one operation to the next


class Strip(NamedTuple):
    """The logits of all texts with a few images."""

    rows: slice  # of the images
    images: Tensor  # (images, dim), times the scale
    logits: Tensor  # (texts, images)
    spare: Tensor  # (a few texts, images), to work in

    @property
    def pairs(self) -> Tensor:
        """The logits (images,) of image and text that belong together, in a strip at home."""
        return self.logits[self.rows].diagonal()

    def tiles(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """A few texts, their logits, and as much spare memory."""
        for start in range(0, len(self.logits), len(self.spare)):
            logits = self.logits[start : start + len(self.spare)]
            yield slice(start, start + len(logits)), logits, self.spare[: len(logits)]


def strip_size(batch: int, chunk_size: int = CHUNK_SIZE) -> int:
    """How many images are in a strip."""
    return min(chunk_size, batch, max(1, LOGITS // batch))


class Strips:
    """The logits of `images` (batch, dim), times `scale` plus `bias`, with one block of texts after the other."""

    def __init__(
        self,
        images: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        chunk_size: int,
        needs: tuple[bool, ...],
        kept: int = 1,
    ) -> None:
        batch, dim = images.shape
        self.images, self.scale, self.bias, self.needs = images, scale, bias, needs
        self.size = strip_size(batch, chunk_size)
        # The scale's gradient follows from those of the images, or of the texts if the images need none.
        needs_images, self.needs_texts, needs_scale = needs[:3]
        self.needs_images = needs_images or (needs_scale and not self.needs_texts)
        self.gradient = torch.zeros_like(images) if self.needs_images else None
        # Memory that is new to the process costs a tenth to a sixth of the time on the CPU.
        self.scaled = images.new_empty(self.size, dim)
        kept = min(kept, -(-batch // self.size), max(1, LOGITS // (self.size * batch)))
        self.memory = [images.new_empty(self.size * batch) for _ in range(kept)]
        tile = max(TILE, self.size) if images.device.type == "cpu" else self.size * batch
        self.spare = images.new_empty(min(tile, self.size * batch))
        self.held: dict[int, int] = {}  # which strip at home lies in which memory

    def of(self, texts: Tensor, is_home: bool) -> Iterator[Strip]:
        """All strips with a block of texts; the next strip may take the memory of the one before."""
        for start in range(0, len(self.images), self.size):
            rows = slice(start, min(start + self.size, len(self.images)))
            count = rows.stop - start
            place = min(start // self.size, len(self.memory) - 1) if is_home else len(self.memory) - 1
            scaled = torch.mul(self.images[rows], self.scale, out=self.scaled[:count])
            logits = self.memory[place][: len(texts) * count].view(-1, count)
            if not is_home or self.held.pop(place, None) != start:
                # Texts by images: the tall product is a fifth faster than the wide one.
                if self.bias is None:
                    torch.mm(texts, scaled.t(), out=logits)
                else:
                    torch.addmm(self.bias, texts, scaled.t(), out=logits)
                self.held[place] = start if is_home else -1
            yield Strip(rows, scaled, logits, self.spare[: self.spare.numel() // count * count].view(-1, count))

    def add(self, strip: Strip, texts: Tensor, texts_gradient: Tensor | None) -> None:
        """Add what the gradient, where the strip's logits were, says of its images and of the texts."""
        if self.gradient is not None:
            self.gradient[strip.rows].addmm_(strip.logits.t(), texts)
        if texts_gradient is not None:
            texts_gradient.addmm_(strip.logits, strip.images)

    def gradients(self, weight: float, texts: Tensor, texts_gradient: Tensor | None) -> list[Tensor | None]:
        """Gradients of images, texts and the scale's logarithm, if what was added up counts `weight`."""
        if texts_gradient is not None:
            texts_gradient.mul_(weight)
        if self.gradient is not None:
            self.gradient.mul_(weight * self.scale)
        # Of many processes each has its part of the scale's, on average the whole.
        vectors, gradient = (texts, texts_gradient) if self.gradient is None else (self.images, self.gradient)
        scale_gradient = _dot(vectors, gradient, self.size) if self.needs[2] and gradient is not None else None
        return [self.gradient if self.needs[0] else None, texts_gradient, scale_gradient]


def _dot(one: Tensor, other: Tensor, size: int) -> Tensor:
    """The inner product of two large matrices, without their product in memory."""
    parts = zip(one.split(size), other.split(size), strict=True)
    return torch.stack([torch.dot(left.flatten(), right.flatten()) for left, right in parts]).sum()
