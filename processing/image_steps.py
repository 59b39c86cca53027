"""The steps from an image to pixel values, apart from resizing: pure functions, each with its units and its rounding.

Levels are uint8, 0..255; levels and values of shape (channels, height, width), or with a batch in front.
"""

import math
import warnings
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .image_settings import Color

_MODES_DEEPER_THAN_8_BITS = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_BITS_PER_SAMPLE = 258  # tag of a TIFF


def composite_over(image: Image.Image, background: Color) -> Image.Image:
    """Lay the transparent parts of an image, of whatever mode, over a background of levels (red, green, blue)."""
    if image.mode == "La":
        image = image.convert("LA")  # the only conversion that Pillow has for premultiplied grey
    if "A" not in image.getbands() and "a" not in image.getbands() and "transparency" not in image.info:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image).convert("RGB")


def warn_of_lost_levels(image: Image.Image) -> None:
    """Warn where the conversion to RGB, which takes levels of 0..255, makes bright levels white or all levels black."""
    if image.mode not in _MODES_DEEPER_THAN_8_BITS:
        return
    highest = np.asarray(image).max()
    if highest > 255:
        fault = "above 255, which Pillow turns into white"
    elif image.mode == "F" and 0 < highest <= 1:
        fault = "of at most 1, which Pillow turns into black"
    else:
        return
    warnings.warn(
        f"An image of mode {image.mode} has levels {fault}: scale them, the highest of which is {highest:g}, to 0..255 "
        "before.",
        stacklevel=2,
    )


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB as Pillow does, which drops transparency and clips at 255."""
    if image.mode == "La":
        image = image.convert("LA")
    return image if image.mode == "RGB" else image.convert("RGB")


def top_byte_of_16bit(image: Image.Image) -> Image.Image:
    """Return 16-bit levels divided by 256, as TensorFlow's decoder does; other modes stay as they are.

    Of the 9 to 15 bits that a TIFF may state, which Pillow leaves as they are, the upper eight are taken. Warns where a
    file that states 16 bits, or nothing, leaves the upper byte all but empty.
    """
    if not image.mode.startswith("I;16"):
        return image
    levels = np.asarray(image)
    bits = (getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE) or (16,))[0]
    top = (levels >> (bits - 8 if 8 < bits < 16 else 8)).astype(np.uint8)
    if top.max() < 16 and bits >= 16 and levels.any():
        warnings.warn(
            f"An image of mode {image.mode} becomes all but black, because the upper byte is taken of levels up to "
            f"{levels.max()}: scale levels of fewer than 16 bits to 16 before.",
            stacklevel=2,
        )
    return Image.fromarray(top)


def from_pil(image: Image.Image) -> torch.Tensor:
    """Return the levels of a PIL image, with as many channels as its mode has."""
    if image.mode in _MODES_DEEPER_THAN_8_BITS:
        raise ValueError(f"Expected levels of 0..255, got an image of mode {image.mode}: switch on do_convert_rgb.")
    levels = torch.from_numpy(np.array(image))
    return levels[None] if levels.ndim == 2 else levels.permute(2, 0, 1)


def to_pil(levels: torch.Tensor) -> Image.Image:
    """Return levels of 1, 3 or 4 channels as a PIL image of mode L, RGB or RGBA."""
    array = levels.cpu().numpy()
    return Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))


def center_crop(
    pixels: torch.Tensor, height: int, width: int, round_half: Callable[[float], int], fill: int | Color = 0
) -> torch.Tensor:
    """Cut the middle out of (..., channels, height, width), and fill what lies outside of the image with levels.

    `round_half` rounds the offset where the margins are odd: `math.floor`, or `round_crop_offset`.
    """
    top, left = round_half((pixels.shape[-2] - height) / 2), round_half((pixels.shape[-1] - width) / 2)
    bottom, right = pixels.shape[-2] - top - height, pixels.shape[-1] - left - width
    outside = [max(0, -margin) for margin in (left, right, top, bottom)]
    inside = pixels[..., max(0, top) : top + height, max(0, left) : left + width]
    if not any(outside):
        return inside
    if isinstance(fill, int):
        return F.pad(inside, outside, value=fill)
    channels = [F.pad(channel, outside, value=level) for channel, level in zip(inside.unbind(-3), fill, strict=True)]
    return torch.stack(channels, -3)


def round_crop_offset(offset: float) -> int:
    """Round the offset of a crop as torchvision does: half to even, and half up where it is a margin to fill."""
    return round(offset) if offset >= 0 else math.ceil(offset)


def fill_up(image: Image.Image, height: int, width: int, fill: int | Color) -> Image.Image:
    """Put an image in the middle of one that is not smaller than (height, width), as torchvision does.

    One level fills every band of the image's own mode, and is an index in a palette; three make an image of fewer or
    more than three bands RGB.
    """
    rows, columns = max(0, height - image.height), max(0, width - image.width)
    if not rows and not columns:
        return image
    bands = len(image.getbands())
    if not isinstance(fill, int) and bands != 3:
        image = to_rgb(image)
    color = (fill,) * bands if isinstance(fill, int) and bands > 1 else fill
    filled = Image.new(image.mode, (image.width + columns, image.height + rows), color)
    if palette := image.getpalette():
        filled.putpalette(palette)
    filled.paste(image, (columns // 2, rows // 2))
    return filled


@lru_cache(maxsize=32)
def value_table(
    channels: int,
    factor: float | None,
    mean: tuple[float, ...] | float | None,
    std: tuple[float, ...] | float | None,
) -> torch.Tensor:
    """Return the float32 value of each of the 256 levels, (channels, 256): (level * factor - mean) / std.

    One look-up replaces the arithmetic and has transformers' rounding, which is that of torchvision too.
    """
    levels = np.arange(256, dtype=np.float64) * (1 if factor is None else factor)
    values = np.broadcast_to(levels.astype(np.float32), (channels, 256))
    if mean is not None:
        values = (values - _column("image_mean", mean, channels)) / _column("image_std", std, channels)
    return torch.from_numpy(np.array(values))


def _column(name: str, values: tuple[float, ...] | float | None, channels: int) -> np.ndarray:
    array = np.asarray(values, np.float32)
    if array.ndim and len(array) != channels:
        raise ValueError(f"{name} must hold one value for each of the {channels} channels, got {len(array)}.")
    return np.broadcast_to(array, channels)[:, None]


def apply_lookup_table(levels: torch.Tensor, table: torch.Tensor | None, out: torch.Tensor) -> None:
    """Write the values of levels (channels, height, width) to `out`; without a table the levels themselves."""
    if table is None:
        out.copy_(levels)
        return
    levels = levels.to(out.device)
    for channel, (row, target) in enumerate(zip(table, out, strict=True)):
        if levels.device.type == "cpu":  # NumPy gathers by bytes, three times as fast
            np.take(row.numpy(), levels[channel].numpy(), out=target.numpy(), mode="wrap")
        else:
            target.copy_(row.to(levels.device)[levels[channel].long()])


def to_patches(values: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Cut (channels, height, width) into (patches, patch_size * patch_size * channels), row by row, channels last."""
    channels, height, width = values.shape
    grid = values.reshape(channels, height // patch_size, patch_size, width // patch_size, patch_size)
    return grid.permute(1, 3, 2, 4, 0).reshape(-1, patch_size * patch_size * channels)
