"""The steps from any image to pixel values: pure functions, each with its units and its rounding."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

_WHITE = (255, 255, 255, 255)


def to_image(pixels: np.ndarray | torch.Tensor, channels_first: bool | None = None) -> tuple[Image.Image, bool]:
    """Turn an array into an image of 0..255 levels and say whether its values were fractions, 0..1.

    Shapes (height, width), (height, width, channels) or (channels, height, width). Floats and booleans of at most 1
    are fractions and go to the nearest level; everything else holds levels already.
    """
    if isinstance(pixels, torch.Tensor):
        pixels = pixels.detach().cpu()
        pixels = (pixels.float() if pixels.is_floating_point() else pixels).numpy()
    shape = pixels.shape
    if pixels.ndim == 3 and (_channels_come_first(shape) if channels_first is None else channels_first):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[-1] not in (3, 4)) or pixels.size == 0:
        raise ValueError(
            "expected an image of shape (height, width), (height, width, channels) or (channels, height, width) "
            f"with 1, 3 or 4 channels and at least one pixel, got {shape}"
        )
    lowest, highest = pixels.min(), pixels.max()
    if not (lowest >= 0 and highest <= 255):
        raise ValueError(
            f"expected levels of 0..255 or fractions of 0..1, got values of {lowest}..{highest}: "
            "give the image as it was before normalisation"
        )
    fractions = pixels.dtype.kind in "fb" and bool(highest <= 1)
    levels = pixels.astype(np.float64) * 255 if fractions else pixels
    return Image.fromarray(np.rint(levels).astype(np.uint8)), fractions


def _channels_come_first(shape: Sequence[int]) -> bool:
    first, last = shape[0] in (1, 3, 4), shape[-1] in (1, 3, 4)
    if first and last:
        raise ValueError(
            f"channels may come first or last in the shape {tuple(shape)}: "
            "pass input_data_format='channels_first' or 'channels_last'"
        )
    return first


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB, transparent parts over white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "La":
        image = image.convert("LA")  # the only conversion PIL has for premultiplied grey
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
    return image.convert("RGB")


def shorter_side_to(size: int, image: Image.Image) -> tuple[int, int]:
    """Give (height, width) with the shorter side at `size` and the longer one rounded down, as torchvision does."""
    width, height = image.size
    longer = int(size * max(width, height) / min(width, height))
    return (longer, size) if width <= height else (size, longer)


def resize(image: Image.Image, height: int, width: int, resample: int) -> Image.Image:
    """Resize with PIL's filter `resample`, which averages over the covered area when shrinking; levels are rounded."""
    return image.resize((width, height), resample=Image.Resampling(resample))


def center_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """Cut the middle out, half a pixel towards the top left where it is not exact; what lies outside is black."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def to_array(image: Image.Image) -> np.ndarray:
    """Give the levels, 0..255, as (channels, height, width)."""
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(np.moveaxis(array, -1, 0))


def rescale(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Multiply in float64 and round to float32, in transformers' order of operations."""
    return (pixels.astype(np.float64) * factor).astype(np.float32)


def normalize(pixels: np.ndarray, mean: Sequence[float] | float, std: Sequence[float] | float) -> np.ndarray:
    """Subtract the mean and divide by the standard deviation of each channel, (channels, height, width), in float32."""
    channels = len(pixels)
    return (pixels.astype(np.float32) - _column("image_mean", mean, channels)) / _column("image_std", std, channels)


def _column(name: str, values: Sequence[float] | float, channels: int) -> np.ndarray:
    array = np.asarray(values, np.float32)
    if array.ndim and len(array) != channels:
        raise ValueError(f"{name} must hold one value for each of the {channels} channels, got {len(array)}")
    return np.broadcast_to(array, channels)[:, None, None]
