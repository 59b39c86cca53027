"""The images of one call: opened and converted before they are resized, and put into one batch afterwards."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from . import image_steps
from .image_arrays import to_levels
from .image_input import READ_ERRORS, ImageItem, named_error, open_image
from .image_settings import ImageSettings
from .resizing import ResizeEngine

Pixels = Image.Image | torch.Tensor


class OpenedImage(NamedTuple):
    """A PIL image, or levels of shape (channels, height, width)."""

    pixels: Pixels
    were_fractions: bool  # it was passed as an array of 0..1, and becomes one again whatever `do_rescale` says
    highest: float | None = None  # the value that told whether it was, of images passed as floats


class ResizedImage(NamedTuple):
    """An image of its final size, (channels, height, width): levels, or values if the engine resizes values."""

    pixels: torch.Tensor
    were_fractions: bool
    highest: float | None
    name: str


def number_images(items: Sequence[ImageItem]) -> list[ImageItem]:
    """Return the images of a call, those without a name named by their places; one alone needs no name."""
    if len(items) == 1:
        return list(items)
    return [
        item if item.name else replace(item, name=f"Image {place} of {len(items)}") for place, item in enumerate(items)
    ]


@contextmanager
def naming(*names: str) -> Iterator[None]:
    """Let the errors raised inside say which image they are about."""
    try:
        yield
    except MemoryError as error:  # the fault of one image, as far as its batch is concerned
        raise ValueError(
            f"{' or '.join(filter(None, names)) or 'The image'} takes more memory than there is."
        ) from error
    except READ_ERRORS as error:
        if not any(names):
            raise
        raise named_error(error, " or ".join(names)) from error


def warn_of_two_scales(images: Sequence[ResizedImage]) -> None:
    """Warn where some images of floats were taken for fractions of 0..1 and others for levels of 0..255."""
    fractions = [image.name for image in images if image.highest and image.highest <= 1]
    levels = [image.name for image in images if image.highest and image.highest > 1]
    if fractions and levels:
        warnings.warn(
            f"The images, all floats, are on two scales: {_first_of(fractions)} taken for fractions of 0..1, "
            f"{_first_of(levels)} for levels of 0..255. If it is one scale, pass them as one array or as uint8.",
            stacklevel=2,
        )


def _first_of(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def group_by_shape(images: list[Any]) -> list[list[int]]:
    """Return groups of indices: of tensors on an accelerator that have one shape, and of every other image alone."""
    groups: dict[Any, list[int]] = {}
    for index, image in enumerate(images):
        on_accelerator = isinstance(image, torch.Tensor) and image.device.type != "cpu"
        groups.setdefault((image.device, image.dtype, image.shape) if on_accelerator else index, []).append(index)
    return list(groups.values())


def open_as_image(item: ImageItem, engine: ResizeEngine, settings: ImageSettings) -> OpenedImage:
    """Open what a caller passed as an image: arrays as levels if the engine takes them, all else as PIL images."""
    image = item.image
    if not isinstance(image, np.ndarray | torch.Tensor):
        return OpenedImage(open_image(image, settings.do_exif_transpose), were_fractions=False)
    layout = settings.input_data_format
    array = to_levels(image, None if layout is None else layout == "channels_first", item.highest)
    if engine.resize_levels is None or len(array.levels) == 4:  # only Pillow knows how to treat transparency
        return OpenedImage(image_steps.to_pil(array.levels), array.were_fractions, array.highest)
    levels = array.levels.to(settings.device or array.levels.device)
    return OpenedImage(levels, array.were_fractions, array.highest)


def stack_levels(images: list[Pixels]) -> Pixels:
    """Return one PIL image as it is, and levels as (images, channels, height, width)."""
    first, *others = images
    if isinstance(first, Image.Image):
        return first
    return torch.stack(images) if others else first[None]  # type: ignore[arg-type]


def convert_to_rgb(pixels: Pixels, engine: ResizeEngine, settings: ImageSettings) -> Pixels:
    """Apply the background and convert to RGB, unless the image is resized in its own mode."""
    if isinstance(pixels, torch.Tensor):
        return pixels.expand(-1, 3, -1, -1) if settings.do_convert_rgb else pixels
    if engine.reads_top_byte:
        pixels = image_steps.top_byte_of_16bit(pixels)
    if settings.do_convert_rgb:
        image_steps.warn_of_lost_levels(pixels)  # before a resize averages some of them away
    if settings.do_convert_rgb and settings.background != "ignore":
        pixels = image_steps.composite_over(pixels, settings.background)
    if settings.do_convert_rgb and not settings.resizes_own_mode:
        pixels = image_steps.to_rgb(pixels)
    return pixels


def to_rgb_tensor(pixels: Pixels, settings: ImageSettings) -> torch.Tensor:
    """Return pixels as (images, channels, height, width), converted to RGB where `convert_to_rgb` has not done it."""
    if isinstance(pixels, Image.Image):
        pixels = image_steps.to_rgb(pixels) if settings.do_convert_rgb else pixels
        return image_steps.from_pil(pixels).to(settings.device)[None]
    return pixels.expand(-1, 3, -1, -1) if settings.do_convert_rgb else pixels


def lookup_table(channels: int, were_fractions: bool, settings: ImageSettings) -> torch.Tensor | None:
    """Return the value of every level, (channels, 256), or None where the settings ask for the levels themselves."""
    factor = 1 / 255 if were_fractions else settings.rescale_factor if settings.do_rescale else None
    mean, std = (settings.image_mean, settings.image_std) if settings.do_normalize else (None, None)
    return None if factor is None and mean is None else image_steps.value_table(channels, factor, mean, std)


def to_values(levels: torch.Tensor, were_fractions: list[bool], settings: ImageSettings) -> torch.Tensor:
    """Return the float32 values of levels (images, channels, height, width)."""
    values = torch.empty(levels.shape, device=levels.device)
    for image, fractions, target in zip(levels, were_fractions, values, strict=True):
        image_steps.apply_lookup_table(image, lookup_table(len(image), fractions, settings), target)
    return values


def common_shape(images: Sequence[ResizedImage], settings: ImageSettings) -> tuple[int, ...] | None:
    """Return the (channels, height, width) of the images of a batch, or None for a list of images of several shapes."""
    shapes = [tuple(image.pixels.shape) for image in images]
    if settings.do_pad:
        channels, heights, widths = (list(lengths) for lengths in zip(*shapes, strict=True))
        height, width = max(heights), max(widths)
        if settings.pad_size:
            height, width = settings.pad_size["height"], settings.pad_size["width"]
        if len(set(channels)) > 1 or max(heights) > height or max(widths) > width:
            raise ValueError(
                f"Images of (channels, height, width) {shapes_in_words(images)} cannot be padded to {height}x{width}."
            )
        return channels[0], height, width
    if len(set(shapes)) == 1:
        return shapes[0]
    if settings.return_tensors is None:
        return None
    raise ValueError(
        "A batch needs images of one shape, got (channels, height, width) "
        f"{shapes_in_words(images)}: "
        "switch on do_resize, do_center_crop and do_convert_rgb, or pass return_tensors=None."
    )


def shapes_in_words(images: Sequence[ResizedImage]) -> str:
    """Return each shape of the images once, and the name of the first image that has it."""
    first = {tuple(image.pixels.shape): image.name for image in reversed(images)}
    shapes = sorted(first)
    names = f" (first in {', '.join(first[shape] for shape in shapes)})" if len(images) > 1 else ""
    return f"{', '.join(map(str, shapes))}{names}"


def output_device(images: list[ResizedImage], settings: ImageSettings) -> dict[str, Any]:
    """Return where a batch is allocated: on the accelerator if one of its images is there."""
    device = next((pixels.device for pixels, *_ in images if pixels.device.type != "cpu"), torch.device("cpu"))
    pinned = settings.pin_memory and device.type == "cpu" and torch.accelerator.is_available()
    return {"device": device, "pin_memory": pinned}


def to_requested_type(batch: torch.Tensor | list[torch.Tensor], return_tensors: str | None) -> Any:
    """Return a batch as a tensor ("pt"), an array ("np") or a list of arrays (None)."""
    if return_tensors == "pt":
        return batch
    if return_tensors == "np" and isinstance(batch, torch.Tensor):
        return batch.cpu().numpy()
    return [pixels.cpu().numpy() for pixels in batch]
