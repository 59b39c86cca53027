"""Random crops, which depend only on the generator that draws them."""

import math

import torch
from PIL import Image


class RandomResizedCrop:
    """Cuts a random part out of an image, which the image processor then resizes like a whole image.

    `scale` holds the smallest and largest share of the area (open_clip's by default), `ratio` the smallest and largest
    width / height, drawn uniformly on a logarithmic scale. As in torchvision, if ten draws do not fit into the image,
    the largest centred part within `ratio` is taken. `flip` is the probability to mirror the image, which can make
    captions wrong.
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
        part = image.crop(self.draw_box(image.height, image.width, generator))
        flipped = torch.rand((), generator=generator).item() < self.flip
        return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else part

    def draw_box(self, height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        """Draw the left, top, right and bottom of a part of an image of this size, in pixels."""
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
