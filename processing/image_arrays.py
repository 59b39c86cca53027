"""Levels of 0..255 from arrays and tensors, whatever their layout, type and scale."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch


class ArrayLevels(NamedTuple):
    """The levels of an array, and the scale that it was read on."""

    levels: torch.Tensor  # uint8, (channels, height, width)
    were_fractions: bool  # of 0..1
    highest: float | None  # the value that told the scale; None where the type tells it


def highest_float(pixels: np.ndarray | torch.Tensor) -> float | None:
    """Return the highest value of an array of floats, which tells its scale; None for other and for empty arrays."""
    is_float = pixels.is_floating_point() if isinstance(pixels, torch.Tensor) else pixels.dtype.kind == "f"
    return pixels.max().item() if is_float and all(pixels.shape) else None


def to_levels(
    pixels: np.ndarray | torch.Tensor, channels_first: bool | None = None, highest: float | None = None
) -> ArrayLevels:
    """Return levels of 0..255, and whether they were fractions of 0..1.

    Takes shapes (height, width), (height, width, channels) and (channels, height, width); `channels_first` says which,
    and must where the shape leaves it open. A tensor stays on its device. Floats are fractions if the highest of them
    is at most 1, and rounded to the nearest level; `highest` is that of the whole batch that `pixels` is a part of.
    Booleans are fractions; everything else holds levels already. Raises TypeError for what is no array of real
    numbers, and ValueError for other shapes and values.
    """
    pixels = _to_real_tensor(pixels)
    shape = tuple(pixels.shape)
    if pixels.ndim == 2:
        pixels = pixels[None]
    elif pixels.ndim == 3 and not (_channels_come_first(shape) if channels_first is None else channels_first):
        pixels = pixels.permute(2, 0, 1)
    if pixels.ndim != 3 or len(pixels) not in (1, 3, 4) or pixels.numel() == 0:
        raise ValueError(
            "Expected an image of shape (height, width), (height, width, channels) or (channels, height, width) "
            f"with 1, 3 or 4 channels and at least one pixel, got {shape}."
        )
    if pixels.dtype == torch.uint8:
        return ArrayLevels(pixels, were_fractions=False, highest=None)
    if pixels.dtype == torch.bool:
        return ArrayLevels(pixels.to(torch.uint8) * 255, were_fractions=True, highest=None)
    lowest_here, highest_here = pixels.min().item(), pixels.max().item()
    if not (lowest_here >= 0 and highest_here <= 255):
        raise ValueError(
            f"Expected levels of 0..255 or fractions of 0..1, got values of {lowest_here}..{highest_here}: "
            "pass the image as it was before normalisation, 16-bit levels divided by 257."
        )
    if not pixels.is_floating_point():
        return ArrayLevels(pixels.to(torch.uint8), were_fractions=False, highest=None)
    highest = highest_here if highest is None else highest
    levels = pixels.float()
    return ArrayLevels((levels * 255 if highest <= 1 else levels).round().to(torch.uint8), highest <= 1, highest)


def _to_real_tensor(pixels: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Return an array of real numbers as a tensor; TypeError for other arrays."""
    if isinstance(pixels, np.ndarray):
        if pixels.dtype.kind not in "buif":
            raise TypeError(f"Expected numbers as levels, got an array of {pixels.dtype}.")
        if pixels.dtype.kind == "f":
            pixels = pixels.astype(np.float32, copy=False)
        native = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)  # PyTorch refuses swapped bytes
        pixels = torch.from_numpy(np.require(native, requirements=["C", "W"]))  # and warns about read-only arrays
    if pixels.is_complex():
        raise TypeError(f"Expected real numbers as levels, got a tensor of {pixels.dtype}.")
    if pixels.dtype in (torch.uint16, torch.uint32, torch.uint64):
        pixels = pixels.to(torch.int64)  # PyTorch lacks most operations on wide unsigned integers
    return pixels.detach()


def _channels_come_first(shape: Sequence[int]) -> bool:
    """Return whether channels come first in a shape of three numbers; ValueError if that is unclear."""
    first, last = shape[0] in (1, 3, 4), shape[-1] in (1, 3, 4)
    if first and last and all(shape):
        raise ValueError(
            f"Channels may come first or last in the shape {tuple(shape)}: "
            "pass input_data_format='channels_first' or 'channels_last'."
        )
    return first
