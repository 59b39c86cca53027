"""Resizing: target sizes, the kernels, and the engines that callers choose between.

Levels are uint8, 0..255. Images are PIL images, or tensors of shape (images, channels, height, width).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import torch
import torch.nn.functional as F
from packaging.version import Version
from PIL import Image

from .image_steps import from_pil, to_pil
from .pil_memory import borrowed_levels

Size = tuple[int, int]  # height, width in pixels

_PILLOW_WEIGHT_BITS = 22  # behind the binary point of Pillow's integer weights
# From this version on Pillow begins with the height where that saves work.
_PILLOW_CHOOSES_ORDER = Version(PIL.__version__) >= Version("13")


@dataclass(frozen=True, kw_only=True)
class ResizeEngine:
    """One way to resize images, under a name that callers choose by `resize_engine`.

    resize_image: (image, height, width, resample) -> a PIL image, or levels. None for an engine that takes levels only,
        into which PIL images are turned first.
    resize_levels: (levels, height, width, resample) -> levels. None for an engine that takes PIL images only, into
        which arrays and tensors are turned first.
    description: what it does, for `explain()`; "{filter}" stands for the name of the resampling filter.
    takes_values: `resize_levels` takes float values, already rescaled and normalised, instead of levels.
    reads_top_byte: of images with 16-bit levels the upper byte is used, as in TensorFlow's decoder.
    """

    resize_image: Callable[[Image.Image, int, int, int], Image.Image | torch.Tensor] | None
    resize_levels: Callable[[torch.Tensor, int, int, int], torch.Tensor] | None
    description: str
    takes_values: bool = False
    reads_top_byte: bool = False


def resize_shorter_side(shorter_side: int, height: int, width: int) -> Size:
    """Return (height, width) with that shorter side and the longer one rounded down, as torchvision does.

    Raises ValueError where the result has more pixels than Pillow's limit against decompression bombs allows.
    """
    longer_side = int(shorter_side * max(height, width) / min(height, width))
    if Image.MAX_IMAGE_PIXELS is not None and longer_side * shorter_side > 2 * Image.MAX_IMAGE_PIXELS:
        raise ValueError(
            f"An image of {width}x{height} becomes {longer_side}x{shorter_side} before its middle is cut out, more "
            "than Image.MAX_IMAGE_PIXELS of Pillow allows: crop it first."
        )
    return (longer_side, shorter_side) if width <= height else (shorter_side, longer_side)


def resize_within(shorter_side: int, longest_side: int, height: int, width: int) -> Size:
    """Return (height, width) with that shorter side, or a smaller one where the longer would be over `longest_side`.

    The rounding of the smaller one is that of transformers (`get_size_with_aspect_ratio`), but for at least one pixel.
    """
    shorter, longer = min(height, width), max(height, width)
    if longer / shorter * shorter_side <= longest_side:
        return resize_shorter_side(shorter_side, height, width)
    exact = longest_side * shorter / longer
    if (new_shorter := max(1, round(exact))) == shorter:
        return height, width
    new_longer = int(exact * longer / shorter)
    return (new_longer, new_shorter) if width < height else (new_shorter, new_longer)


def filter_named(name: str) -> Image.Resampling:
    """Return Pillow's filter of a name such as "bicubic", which older preprocessor files have instead of a number."""
    found = Image.Resampling.__members__.get(name.rpartition(".")[2].upper())
    if found is None:
        names = ", ".join(member.lower() for member in Image.Resampling.__members__)
        raise ValueError(f"resample must be one of {names}, got {name!r}.")
    return found


def resize_to_fit(limits: Size, height: int, width: int, *, half_to_even: bool) -> Size:
    """Return the largest (height, width) within limits that keeps the aspect; a side has at least one pixel.

    Sides are rounded half to even, as in open_clip, or down, as in transformers.
    """
    if half_to_even:
        ratio = max(height / limits[0], width / limits[1])
        sides = round(height / ratio), round(width / ratio)
    else:
        scale = min(limits[0] / height, limits[1] / width)
        sides = int(height * scale), int(width * scale)
    return max(1, sides[0]), max(1, sides[1])


def largest_grid(height: int, width: int, patch_size: int, max_num_patches: int) -> Size:
    """Return the (height, width) in whole patches, at most `max_num_patches` of them, that keeps the aspect best.

    Bisects for the scale, both sides rounded up to patches, in big_vision's steps and in its float32, which matters for
    a few of a million sizes (`pp/proj/image_text/ops_naflex.py`, `get_image_size_for_seq`).
    """

    def patches_along(length: int, scale: np.float32) -> int:
        return max(1, math.ceil(np.float32(length) * scale / np.float32(patch_size)))

    lowest, highest, two = np.float32(1e-6), np.float32(100), np.float32(2)
    while highest - lowest >= np.float32(1e-5):
        scale = (lowest + highest) / two
        if patches_along(height, scale) * patches_along(width, scale) <= max_num_patches:
            lowest = scale
        else:
            highest = scale
    return patches_along(height, lowest) * patch_size, patches_along(width, lowest) * patch_size


def resize_pillow(image: Image.Image, height: int, width: int, resample: int) -> Image.Image:
    """Resize with Pillow's filter, which averages over the covered area when shrinking; levels are rounded."""
    return image.resize((width, height), resample=Image.Resampling(resample))


def resize_image_torch(image: Image.Image, height: int, width: int, resample: int) -> Image.Image | torch.Tensor:
    """Resize an RGB or L image as `resize_torch` does, on the CPU and without copying Pillow's memory."""
    if not _interpolate_suffices((image.height, image.width), (height, width), resample):
        return resize_pillow(image, height, width, resample)
    with borrowed_levels(image) as levels:
        return resize_torch(levels[None], height, width, resample)[:, :3]


def resize_torch(levels: torch.Tensor, height: int, width: int, resample: int) -> torch.Tensor:
    """Resize levels to at most one level from Pillow, and fast; one value in two million is two levels off.

    Measured: 241 pictures of all kinds at 224 to 512 pixels, 513 million values. The worst picture has two levels in 6
    of 100,000 values; three cannot be, because the weights of the second pass sum up to 1.25 whatever their signs.

    Uses `F.interpolate` on the CPU, or Pillow itself unless `_interpolate_suffices`; `resize_exactly` on accelerators.
    """
    old, new = (levels.shape[-2], levels.shape[-1]), (height, width)
    if levels.device.type != "cpu":
        return resize_exactly(levels, height, width, resample)
    if not _interpolate_suffices(old, new, resample):
        return torch.stack([from_pil(resize_pillow(to_pil(image), height, width, resample)) for image in levels])
    mode = _interpolation_mode(resample)
    if _pillow_axis_order(old, new)[1] == -1:  # the width comes last, but torch always begins with it
        levels = F.interpolate(levels, size=(height, old[1]), mode=mode, antialias=True)
    elif width == 1:  # torch 2.13 is wrong there unless the height stays
        levels = F.interpolate(levels, size=(old[0], 1), mode=mode, antialias=True)
    return F.interpolate(levels, size=new, mode=mode, antialias=True)


def _interpolate_suffices(old: Size, new: Size, resample: int) -> bool:
    """Return whether `F.interpolate` stays as close to Pillow as `resize_torch` promises.

    Its weights have 16 bits, so that each of its two passes may be one level off. Where the second pass hardly shrinks
    with bicubic weights, some of which are negative, or enlarges, these errors meet more often.
    """
    second = _pillow_axis_order(old, new)[1]
    return old[second] >= new[second] * (1 if _interpolation_mode(resample) == "bilinear" else 2)


def resize_exactly(levels: torch.Tensor, height: int, width: int, resample: int) -> torch.Tensor:
    """Resize levels by Pillow's own integer arithmetic, on any device, bit for bit."""
    new = (height, width)
    for axis in _pillow_axis_order((levels.shape[-2], levels.shape[-1]), new):
        if levels.shape[axis] == new[axis]:
            continue
        first, weights = _pillow_weights(levels.shape[axis], new[axis], resample)
        weight_shape = (-1, 1) if axis == -2 else (-1,)
        half = 1 << (_PILLOW_WEIGHT_BITS - 1)  # so that the shift below rounds
        total = torch.tensor(half, dtype=torch.int32, device=levels.device)
        for tap, weight in enumerate(weights):
            index = (first + tap).clamp(max=levels.shape[axis] - 1).to(levels.device)
            total = total + levels.index_select(axis, index).int() * weight.to(levels.device).view(weight_shape)
        levels = (total >> _PILLOW_WEIGHT_BITS).clamp(0, 255).to(torch.uint8)
    return levels


def _pillow_axis_order(old: Size, new: Size) -> tuple[int, int]:
    """Return the axes in the order in which Pillow resizes them (`Resample.c`, `ImagingResampleInner`).

    It rounds to levels after the first, so that the order shows in the result.
    """
    fewer_rows, fewer_columns = old[0] - new[0], old[1] - new[1]
    rows_first = _PILLOW_CHOOSES_ORDER and fewer_rows > max(0, 2 * fewer_columns)
    return (-2, -1) if rows_first else (-1, -2)


@lru_cache(maxsize=64)
def _pillow_weights(old_length: int, new_length: int, resample: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first old pixel under each new one, (new_length,), and the weights from there on.

    The weights are integers of shape (taps, new_length), in units of 2**-_PILLOW_WEIGHT_BITS.
    Source: `Resample.c` of Pillow, `precompute_coeffs` and `normalize_coeffs_8bpc`.
    """
    scale = old_length / new_length
    stretch = max(scale, 1.0)
    kernel, reach = {"bilinear": (_triangle, 1), "bicubic": (_cubic, 2)}[_interpolation_mode(resample)]
    centers = (np.arange(new_length) + 0.5) * scale
    first = (centers - reach * stretch + 0.5).astype(np.int64).clip(min=0)
    last = (centers + reach * stretch + 0.5).astype(np.int64).clip(max=old_length)
    positions = first + np.arange((last - first).max())[:, None]
    weights = kernel(np.abs((positions - centers + 0.5) / stretch)) * (positions < last)
    weights = weights / weights.sum(0) * (1 << _PILLOW_WEIGHT_BITS)
    return torch.from_numpy(first), torch.from_numpy((weights + np.copysign(0.5, weights)).astype(np.int32))


def _triangle(distance: np.ndarray) -> np.ndarray:
    return (1 - distance).clip(min=0)


def _cubic(distance: np.ndarray) -> np.ndarray:
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * -0.5
    return np.where(distance < 1, near, np.where(distance < 2, far, 0))


def resize_values(values: torch.Tensor, height: int, width: int, resample: int) -> torch.Tensor:
    """Resize float values with antialiasing, as big_vision does for NaFlex.

    TensorFlow's scale is new / old in float32. That of `F.interpolate` is old / new, which differs in the last bit for
    some sizes: at 400 pixels it changes values by up to 1e-4.
    """
    resize = getattr(torch.ops.aten, f"_upsample_{_interpolation_mode(resample)}2d_aa")
    if width == 1 and height != values.shape[-2]:  # torch 2.13 is wrong there unless the height stays
        values = resize_values(values, values.shape[-2], 1, resample)
    down, across = (
        np.float32(new) / np.float32(old) for new, old in zip((height, width), values.shape[-2:], strict=True)
    )
    resized: torch.Tensor = resize(values, (height, width), False, float(down), float(across))
    return resized


def _interpolation_mode(resample: int) -> str:
    """Return the name of a Pillow filter in `F.interpolate`; ValueError for those that it lacks."""
    modes = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}
    if (mode := modes.get(Image.Resampling(resample))) is None:
        raise ValueError(
            f"resize_engine 'torch' resizes bilinear (2) or bicubic (3), got resample={int(resample)}: "
            "use resize_engine='pillow'."
        )
    return mode


def resize_tensorflow(levels: torch.Tensor, height: int, width: int, resample: int = 0) -> torch.Tensor:
    """Resize levels as big_vision does for SigLIP, truncating to levels; always bilinear, whatever `resample` is.

    Bilinear between the four nearest pixels whatever the scale, in float32 (`tf.image.resize`, then `tf.cast`).
    """
    top, bottom, down = (torch.from_numpy(x).to(levels.device) for x in _neighbours(levels.shape[-2], height))
    left, right, across = (torch.from_numpy(x).to(levels.device) for x in _neighbours(levels.shape[-1], width))

    def rows(index: torch.Tensor) -> torch.Tensor:
        pixels = levels.index_select(-2, index)
        start = pixels.index_select(-1, left).float()
        return (pixels.index_select(-1, right).float() - start).mul_(across).add_(start)

    upper, lower = rows(top), rows(bottom)
    return (lower - upper).mul_(down[:, None]).add_(upper).to(torch.uint8)


@lru_cache(maxsize=64)  # photographs come in few sizes
def _neighbours(old_length: int, new_length: int) -> tuple[npt.NDArray[Any], ...]:
    """Return the old pixels before and after each new one along an axis, and how far it lies beyond the first."""
    scale = np.float32(old_length) / np.float32(new_length)
    positions = (np.arange(new_length, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    before = np.floor(positions)
    return (
        before.clip(min=0).astype(np.int64),
        np.ceil(positions).clip(max=old_length - 1).astype(np.int64),
        positions - before,
    )


PILLOW = ResizeEngine(
    resize_image=resize_pillow,
    resize_levels=None,
    description="{filter} with antialiasing, by Pillow, rounded to levels 0..255",
)
TORCH = ResizeEngine(
    resize_image=resize_image_torch,
    resize_levels=resize_torch,
    description=(
        "{filter} with antialiasing, by torch.nn.functional.interpolate, at most one level of 0..255 from Pillow (two "
        "for one value in two million)"
    ),
)
BIG_VISION_SIGLIP = ResizeEngine(
    resize_image=None,
    resize_levels=resize_tensorflow,
    description="bilinear between the four nearest pixels (no antialiasing), truncated to levels 0..255",
    reads_top_byte=True,
)
BIG_VISION_NAFLEX = ResizeEngine(
    resize_image=None,
    resize_levels=resize_values,
    description="{filter} with antialiasing, in float32",
    takes_values=True,
    reads_top_byte=True,
)
