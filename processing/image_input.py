"""The images that a caller may pass: files, their bytes, URLs, PIL images, arrays and tensors, alone or in lists."""

import os
from collections.abc import Sequence
from io import BytesIO
from typing import Any, BinaryIO
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

_DOWNLOAD_TIMEOUT_SECONDS = 30


def flatten_images(images: Any) -> list[Any]:
    """Return one flat list of the images in nested lists and four-dimensional batches, without opening any."""
    if isinstance(images, list | tuple):
        return [image for item in images for image in flatten_images(item)]
    if isinstance(images, np.ndarray | torch.Tensor):
        return list(images) if images.ndim == 4 else [images]
    return [images]


def open_image(source: object, exif_transpose: bool = False) -> Image.Image:
    """Decode a PIL image, a path, a URL or the bytes of a file; the first frame of several.

    Raises ValueError where Pillow cannot read it, and OSError where a file or URL is out of reach. Pillow's limit
    against decompression bombs (`Image.MAX_IMAGE_PIXELS`) applies.
    """
    if isinstance(source, Image.Image):
        return _decode(source, "the image", exif_transpose)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(BytesIO(source), f"{len(source)} bytes", exif_transpose)
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            "Expected PIL images, NumPy arrays, PyTorch tensors, paths, URLs or the bytes of files, or lists of them, "
            f"got {type(source).__name__}."
        )
    name = os.fspath(source)
    if name.startswith(("http://", "https://")):
        return _decode(BytesIO(_download(name)), name, exif_transpose)
    if not os.path.isfile(name):
        raise FileNotFoundError(f"Expected an image file, got {name}, which is not there.")
    with open(name, "rb") as file:
        return _decode(file, name, exif_transpose)


def _download(url: str) -> bytes:
    request = Request(url, headers={"User-Agent": "twinlens"})  # many servers refuse urllib's default
    try:
        with urlopen(request, timeout=_DOWNLOAD_TIMEOUT_SECONDS) as response:
            return bytes(response.read())
    except OSError as error:
        raise OSError(f"Expected an image at {url}, which could not be downloaded: {error}") from error


def _decode(source: Image.Image | BinaryIO, name: str, exif_transpose: bool) -> Image.Image:
    try:
        image = source if isinstance(source, Image.Image) else Image.open(source)
        image.load()
        return ImageOps.exif_transpose(image) if exif_transpose else image
    except Image.DecompressionBombError as error:
        raise Image.DecompressionBombError(f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"Expected an image, got {name}, which has no format that Pillow knows.") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # all that Pillow's decoders raise for damaged files
        raise ValueError(f"Expected an image, got {name}, which is damaged: {error}") from error


def to_levels(pixels: np.ndarray | torch.Tensor, channels_first: bool | None = None) -> tuple[torch.Tensor, bool]:
    """Return levels of 0..255, uint8 of shape (channels, height, width), and whether they were fractions of 0..1.

    Takes shapes (height, width), (height, width, channels) and (channels, height, width); `channels_first` says which,
    and must where the shape leaves it open. A tensor stays on its device. Floats and booleans of at most 1 are
    fractions, and rounded to the nearest level; everything else holds levels already. Raises TypeError for what is no
    array of real numbers, and ValueError for other shapes and values.
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
        return pixels, False
    lowest, highest = pixels.min().item(), pixels.max().item()
    if not (lowest >= 0 and highest <= 255):
        raise ValueError(
            f"Expected levels of 0..255 or fractions of 0..1, got values of {lowest}..{highest}: "
            "pass the image as it was before normalisation, 16-bit levels divided by 257."
        )
    fractions = highest <= 1 and (pixels.is_floating_point() or pixels.dtype == torch.bool)
    levels = pixels.float() * 255 if fractions else pixels
    return (levels.round() if levels.is_floating_point() else levels).to(torch.uint8), fractions


def _to_real_tensor(pixels: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Return an array of real numbers as a tensor; TypeError for other arrays."""
    if isinstance(pixels, np.ndarray):
        if pixels.dtype.kind not in "buif":
            raise TypeError(f"Expected numbers as levels, got an array of {pixels.dtype}.")
        if pixels.dtype.kind == "u" and pixels.itemsize > 1:
            pixels = pixels.astype(np.int64)  # PyTorch lacks most operations on wide unsigned integers
        elif pixels.dtype.kind == "f":
            pixels = pixels.astype(np.float32, copy=False)
        pixels = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))  # PyTorch warns about other arrays
    if pixels.is_complex():
        raise TypeError(f"Expected real numbers as levels, got a tensor of {pixels.dtype}.")
    return pixels.detach()


def _channels_come_first(shape: Sequence[int]) -> bool:
    """Return whether channels come first in a shape of three numbers; ValueError if that is unclear."""
    first, last = shape[0] in (1, 3, 4), shape[-1] in (1, 3, 4)
    if first and last:
        raise ValueError(
            f"Channels may come first or last in the shape {tuple(shape)}: "
            "pass input_data_format='channels_first' or 'channels_last'."
        )
    return first
