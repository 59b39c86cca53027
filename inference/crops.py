"""Square crops that cover a picture, and the one map that theirs are joined to."""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the picture


def cut_out(image: Image.Image, crop: Box, size: int) -> Image.Image:
    """Return a square crop resized to `size` pixels, averaged over what a pixel covers.

    Outside of the picture it has the mean colour of what is inside.
    """
    inside = max(crop[0], 0), max(crop[1], 0), min(crop[2], image.width), min(crop[3], image.height)
    scale = size / (crop[2] - crop[0])
    left, top, right, bottom = (round((edge - crop[side % 2]) * scale) for side, edge in enumerate(inside))
    new_size = max(1, right - left), max(1, bottom - top)
    part = image.resize(new_size, Image.Resampling.BICUBIC, box=inside, reducing_gap=2.0)
    if new_size == (size, size):
        return part
    canvas = Image.new("RGB", (size, size), part.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)))
    canvas.paste(part, (left, top))
    return canvas


def covering_grid(width: int, height: int, most: int, smallest: int) -> tuple[int, int, float]:
    """Return (columns, rows, side) of the smallest squares that cover a picture, at most so many, none too small."""
    sides = sorted({length / count for length in (width, height) for count in range(1, most + 1)} | {float(smallest)})
    for side in sides:
        columns, rows = (max(1, math.ceil(length / side - 1e-9)) for length in (width, height))
        if columns * rows <= most and (side >= smallest or columns * rows == 1):
            return columns, rows, side
    return 1, 1, float(max(width, height))


def evenly_spread(length: int, side: float, count: int) -> list[float]:
    """Return where `count` crops begin along one side of a picture, evenly spread; one crop lies in the middle."""
    return [(length - side) / 2] if count == 1 else [place * (length - side) / (count - 1) for place in range(count)]


def stitch(
    length: int, starts: list[float], side: float, cell: float
) -> tuple[float, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return where one map of all crops begins along an axis, and the crop and the patch in it for each of its places.

    Where crops overlap, the one whose middle is nearer counts.
    """
    first = max(0.0, starts[0])
    middles = first + (np.arange(max(1, math.ceil((length - first) / cell - 1e-9))) + 0.5) * cell
    middles = middles.clip(max=length - 1e-3)
    crop = np.abs(middles[:, None] - (np.asarray(starts) + side / 2)).argmin(axis=1)
    patch = ((middles - np.asarray(starts)[crop]) / cell).astype(np.int64).clip(0, round(side / cell) - 1)
    return first, crop, patch
