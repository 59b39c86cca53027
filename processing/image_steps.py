"""The steps from an image to pixel values: pure functions, each with its units and its rounding.

Levels are uint8, 0..255; levels and values of shape (channels, height, width), or with a batch in front.
"""

import math
import warnings
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from packaging.version import Version
from PIL import Image

Color = tuple[int, ...]

_WEIGHT_BITS = 22  # of Pillow's weights, after the point

# Since then it begins with the height where that saves work.
_PILLOW_CHOOSES_ORDER = Version(PIL.__version__) >= Version("13")

_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def over(image: Image.Image, background: Color) -> Image.Image:
    """Lay what is transparent, in whatever mode, over a background of levels (red, green, blue)."""
    if image.mode == "La":
        image = image.convert("LA")  # the only conversion PIL has for premultiplied grey
    if "A" not in image.getbands() and "a" not in image.getbands() and "transparency" not in image.info:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image).convert("RGB")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB as Pillow does, which drops transparency; warn where it makes bright levels white."""
    if image.mode in _DEEP_MODES and np.asarray(image).max() > 255:
        warnings.warn(
            f"an image of mode {image.mode} has levels above 255, which Pillow turns into white: "
            "divide 16-bit levels by 257 before",
            stacklevel=2,
        )
    if image.mode == "La":
        image = image.convert("LA")
    return image if image.mode == "RGB" else image.convert("RGB")


def high_byte(image: Image.Image) -> Image.Image:
    """Give the upper half of 16-bit levels, as TensorFlow's decoder does; other modes stay as they are."""
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def from_pil(image: Image.Image) -> torch.Tensor:
    """Give the levels of a PIL image, as many channels as its mode has."""
    levels = torch.from_numpy(np.array(image))
    return levels[None] if levels.ndim == 2 else levels.permute(2, 0, 1)


def to_pil(levels: torch.Tensor) -> Image.Image:
    """Give the levels as a PIL image of mode L, RGB or RGBA."""
    array = levels.cpu().numpy()
    return Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))


def shorter_side_to(size: int, height: int, width: int) -> tuple[int, int]:
    """Give (height, width) with the shorter side at `size` and the longer one rounded down, as torchvision does."""
    longer = int(size * max(height, width) / min(height, width))
    if Image.MAX_IMAGE_PIXELS is not None and longer * size > 2 * Image.MAX_IMAGE_PIXELS:
        raise ValueError(
            f"an image of {width}x{height} becomes {longer}x{size} before its middle is cut out, more than "
            "Image.MAX_IMAGE_PIXELS of Pillow allows: crop it first"
        )
    return (longer, size) if width <= height else (size, longer)


def largest_grid(height: int, width: int, patch_size: int, max_num_patches: int) -> tuple[int, int]:
    """Give the (height, width) in whole patches, at most `max_num_patches`, that keeps the aspect best.

    Bisects for the scale, both sides rounded up to patches, in big_vision's steps and in its float32, which decides in
    a few of a million sizes (`pp/proj/image_text/ops_naflex.py`, `get_image_size_for_seq`).
    """

    def side(length: int, scale: np.float32) -> int:
        return max(1, math.ceil(np.float32(length) * scale / np.float32(patch_size)))

    lowest, highest, two = np.float32(1e-6), np.float32(100), np.float32(2)
    while highest - lowest >= np.float32(1e-5):
        scale = (lowest + highest) / two
        if side(height, scale) * side(width, scale) <= max_num_patches:
            lowest = scale
        else:
            highest = scale
    return side(height, lowest) * patch_size, side(width, lowest) * patch_size


def resize_pillow(image: Image.Image, height: int, width: int, resample: int) -> Image.Image:
    """Resize with Pillow's filter, which averages over the covered area when shrinking; levels are rounded."""
    return image.resize((width, height), resample=Image.Resampling(resample))


def resize_torch(levels: torch.Tensor, height: int, width: int, resample: int) -> torch.Tensor:
    """Resize levels (batch, channels, height, width) to at most one level from Pillow, and fast.

    On the CPU by `F.interpolate`, or Pillow itself unless `kernel_suffices`; on accelerators by `resize_exactly`.
    """
    given, wanted = (levels.shape[-2], levels.shape[-1]), (height, width)
    if levels.device.type != "cpu":
        return resize_exactly(levels, height, width, resample)
    if not kernel_suffices(given, wanted, resample):
        return torch.stack([from_pil(resize_pillow(to_pil(image), height, width, resample)) for image in levels])
    mode = _interpolation(resample)
    if _axes(given, wanted)[1] == -1:  # torch always begins with the width
        levels = F.interpolate(levels, size=(height, given[1]), mode=mode, antialias=True)
    elif width == 1:  # where torch 2.13 is wrong unless the height stays
        levels = F.interpolate(levels, size=(given[0], 1), mode=mode, antialias=True)
    return F.interpolate(levels, size=wanted, mode=mode, antialias=True)


def kernel_suffices(given: tuple[int, int], wanted: tuple[int, int], resample: int) -> bool:
    """Whether `F.interpolate` stays within a level of Pillow, from and to (height, width).

    Its weights have 16 bits, so that each of its two passes may be one level off. Where the second hardly shrinks,
    bicubic weights, some of which are negative, can add that up to more.
    """
    second = _axes(given, wanted)[1]
    return _interpolation(resample) == "bilinear" or given[second] >= 2 * wanted[second]


def resize_exactly(levels: torch.Tensor, height: int, width: int, resample: int) -> torch.Tensor:
    """Resize levels (batch, channels, height, width) by Pillow's own integer arithmetic, on any device, bit for bit."""
    for axis in _axes((levels.shape[-2], levels.shape[-1]), (height, width)):
        wanted = (height, width)[axis]
        if levels.shape[axis] == wanted:
            continue
        first, weights = pillow_weights(levels.shape[axis], wanted, resample)
        shape = (-1, 1) if axis == -2 else (-1,)
        total = torch.tensor(1 << (_WEIGHT_BITS - 1), dtype=torch.int32, device=levels.device)
        for tap, weight in enumerate(weights):
            index = (first + tap).clamp(max=levels.shape[axis] - 1).to(levels.device)
            total = total + levels.index_select(axis, index).int() * weight.to(levels.device).view(shape)
        levels = (total >> _WEIGHT_BITS).clamp(0, 255).to(torch.uint8)
    return levels


def _axes(given: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int]:
    """Give the order in which Pillow resizes the axes (`Resample.c`, `ImagingResampleInner`), levels between them."""
    fewer_rows, fewer_columns = given[0] - wanted[0], given[1] - wanted[1]
    vertical_first = _PILLOW_CHOOSES_ORDER and fewer_rows > max(0, 2 * fewer_columns)
    return (-2, -1) if vertical_first else (-1, -2)


@lru_cache(maxsize=64)
def pillow_weights(given: int, wanted: int, resample: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the first pixel under each new one, (wanted,), and the weights from there on, (taps, wanted) in integers.

    `Resample.c` of Pillow, `precompute_coeffs` and `normalize_coeffs_8bpc`.
    """
    scale = given / wanted
    stretch = max(scale, 1.0)
    kernel, reach = {"bilinear": (_triangle, 1), "bicubic": (_cubic, 2)}[_interpolation(resample)]
    centers = (np.arange(wanted) + 0.5) * scale
    first = (centers - reach * stretch + 0.5).astype(np.int64).clip(min=0)
    last = (centers + reach * stretch + 0.5).astype(np.int64).clip(max=given)
    positions = first + np.arange((last - first).max())[:, None]
    weights = kernel(np.abs((positions - centers + 0.5) / stretch)) * (positions < last)
    weights = weights / weights.sum(0) * (1 << _WEIGHT_BITS)
    return torch.from_numpy(first), torch.from_numpy((weights + np.copysign(0.5, weights)).astype(np.int32))


def _triangle(distance: np.ndarray) -> np.ndarray:
    return (1 - distance).clip(min=0)


def _cubic(distance: np.ndarray) -> np.ndarray:
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * -0.5
    return np.where(distance < 1, near, np.where(distance < 2, far, 0))


def resize_values(values: torch.Tensor, height: int, width: int, resample: int) -> torch.Tensor:
    """Resize float values (batch, channels, height, width) with antialiasing, as big_vision does for NaFlex."""
    if width == 1:  # torch 2.13 is wrong there unless the height stays
        values = F.interpolate(values, size=(values.shape[-2], 1), mode=_interpolation(resample), antialias=True)
    return F.interpolate(values, size=(height, width), mode=_interpolation(resample), antialias=True)


def _interpolation(resample: int) -> str:
    modes = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}
    if (mode := modes.get(Image.Resampling(resample))) is None:
        raise ValueError(
            f"resize_engine 'torch' resizes bilinear (2) or bicubic (3), got resample={int(resample)}: "
            "use resize_engine='pillow'"
        )
    return mode


def resize_tensorflow(levels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize levels (batch, channels, height, width) as big_vision does for SigLIP, truncating to levels.

    Bilinear between the four nearest pixels whatever the scale, in float32 (`tf.image.resize`, then `tf.cast`).
    """
    top, bottom, down = _neighbours(levels.shape[-2], height, levels.device)
    left, right, across = _neighbours(levels.shape[-1], width, levels.device)

    def row(index: torch.Tensor) -> torch.Tensor:
        pixels = levels.index_select(-2, index)
        start = pixels.index_select(-1, left).float()
        return (pixels.index_select(-1, right).float() - start).mul_(across).add_(start)

    upper, lower = row(top), row(bottom)
    return (lower - upper).mul_(down[:, None]).add_(upper).to(torch.uint8)


def _neighbours(given: int, wanted: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give the pixels before and after each new one along an axis, and how far it lies beyond the first."""
    scale = torch.tensor(given, dtype=torch.float32) / wanted
    positions = (torch.arange(wanted, dtype=torch.float32) + 0.5) * scale - 0.5
    before = positions.floor()
    return (
        before.clamp(min=0).long().to(device),
        positions.ceil().clamp(max=given - 1).long().to(device),
        (positions - before).to(device),
    )


def center_crop(levels: torch.Tensor, height: int, width: int, round_half: Callable[[float], int]) -> torch.Tensor:
    """Cut the middle out of (..., height, width); `round_half` places it, what lies outside is black."""
    top, left = round_half((levels.shape[-2] - height) / 2), round_half((levels.shape[-1] - width) / 2)
    bottom, right = levels.shape[-2] - top - height, levels.shape[-1] - left - width
    outside = [max(0, -margin) for margin in (left, right, top, bottom)]
    inside = levels[..., max(0, top) : top + height, max(0, left) : left + width]
    return F.pad(inside, outside) if any(outside) else inside


@lru_cache(maxsize=32)
def value_table(
    channels: int, factor: float | None, mean: Color | float | None, std: Color | float | None
) -> torch.Tensor:
    """Give the float32 value of each of the 256 levels, (channels, 256): times `factor`, minus `mean`, by `std`.

    One look-up replaces the arithmetic and has transformers' rounding, which is that of torchvision too.
    """
    levels = np.arange(256, dtype=np.float64) * (1 if factor is None else factor)
    values = np.broadcast_to(levels.astype(np.float32), (channels, 256))
    if mean is not None:
        values = (values - _column("image_mean", mean, channels)) / _column("image_std", std, channels)
    return torch.from_numpy(np.array(values))


def _column(name: str, values: Color | float | None, channels: int) -> np.ndarray:
    array = np.asarray(values, np.float32)
    if array.ndim and len(array) != channels:
        raise ValueError(f"{name} must hold one value for each of the {channels} channels, got {len(array)}")
    return np.broadcast_to(array, channels)[:, None]


def look_up(levels: torch.Tensor, table: torch.Tensor | None, out: torch.Tensor) -> None:
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
