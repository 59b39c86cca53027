"""Crops at random, the same for the same sample, epoch and seed in whatever process."""

import math

import torch
from PIL import Image


class RandomResizedCrop:
    """A part of the image at random, which the image processor then resizes, as it does whole images.

    `scale` bounds the share of the image's area, open_clip's by default, `ratio` width over height, drawn evenly on a
    logarithmic scale. As in torchvision, ten draws that do not fit make way for the largest middle part within `ratio`.
    `flip` is how likely left and right change places, which captions may contradict.
    """

    def __init__(
        self,
        *,
        scale: tuple[float, float] = (0.9, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.0,
    ) -> None:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must hold two shares of an area, 0 < low <= high <= 1, got {scale}.")
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"ratio must hold two ratios, 0 < low <= high, got {ratio}.")
        if not 0 <= flip <= 1:
            raise ValueError(f"flip must be a probability of 0..1, got {flip}.")
        self.scale, self.ratio, self.flip = scale, ratio, flip

    def __call__(self, image: Image.Image, generator: torch.Generator) -> Image.Image:
        part = image.crop(self.box(image.height, image.width, generator))
        flipped = torch.rand((), generator=generator).item() < self.flip
        return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else part

    def box(self, height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of a part of an image of this size, in pixels."""
        for share, across, x, y in torch.rand(10, 4, generator=generator).tolist():
            area = height * width * (self.scale[0] + share * (self.scale[1] - self.scale[0]))
            low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
            ratio = math.exp(low + across * (high - low))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = math.floor(x * (width - w + 1)), math.floor(y * (height - h + 1))
                return left, top, left + w, top + h
        w = min(width, max(1, round(height * self.ratio[1])))
        h = min(height, max(1, round(width / self.ratio[0])))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h
