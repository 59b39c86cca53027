"""The images of one call: opened and converted before they are resized, and put into one batch afterwards."""

from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from . import image_steps
from .image_input import open_image, to_levels
from .image_settings import ImageSettings
from .resizing import ResizeEngine

Pixels = Image.Image | torch.Tensor


class OpenedImage(NamedTuple):
    """A PIL image, or levels of shape (channels, height, width)."""

    pixels: Pixels
    were_fractions: bool  # it was passed as an array of 0..1, and becomes one again whatever `do_rescale` says


class ResizedImage(NamedTuple):
    """An image of its final size, (channels, height, width): levels, or values if the engine resizes values."""

    pixels: torch.Tensor
    were_fractions: bool


def group_by_shape(images: list[Any]) -> list[list[int]]:
    """Return groups of indices: of tensors on an accelerator that have one shape, and of every other image alone."""
    groups: dict[Any, list[int]] = {}
    for index, image in enumerate(images):
        on_accelerator = isinstance(image, torch.Tensor) and image.device.type != "cpu"
        groups.setdefault((image.device, image.dtype, image.shape) if on_accelerator else index, []).append(index)
    return list(groups.values())


def open_as_image(image: object, engine: ResizeEngine, settings: ImageSettings) -> OpenedImage:
    """Open what a caller passed as an image: arrays as levels if the engine takes them, all else as PIL images."""
    if not isinstance(image, np.ndarray | torch.Tensor):
        return OpenedImage(open_image(image, settings.do_exif_transpose), were_fractions=False)
    layout = settings.input_data_format
    levels, were_fractions = to_levels(image, None if layout is None else layout == "channels_first")
    if engine.resize_levels is None or len(levels) == 4:  # only Pillow knows how to treat transparency
        return OpenedImage(image_steps.to_pil(levels), were_fractions)
    return OpenedImage(levels.to(settings.device or levels.device), were_fractions)


def stack_levels(images: list[Pixels]) -> Pixels:
    """Return one PIL image as it is, and levels as (images, channels, height, width)."""
    first, *others = images
    if isinstance(first, Image.Image):
        return first
    return torch.stack(images) if others else first[None]  # type: ignore[arg-type]


def convert_to_rgb(pixels: Pixels, engine: ResizeEngine, settings: ImageSettings) -> Pixels:
    """Apply the background and convert to RGB, which in OpenAI's order waits until the image is resized."""
    if isinstance(pixels, torch.Tensor):
        return pixels.expand(-1, 3, -1, -1) if settings.do_convert_rgb else pixels
    if engine.reads_top_byte:
        pixels = image_steps.top_byte_of_16bit(pixels)
    if settings.do_convert_rgb and settings.background != "ignore":
        pixels = image_steps.composite_over(pixels, settings.background)
    if settings.do_convert_rgb and not settings.openai_order:
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


def common_shape(shapes: list[tuple[int, ...]], settings: ImageSettings) -> tuple[int, ...] | None:
    """Return the (channels, height, width) of the images of a batch, or None for a list of images of several shapes."""
    if settings.do_pad:
        channels, heights, widths = (list(lengths) for lengths in zip(*shapes, strict=True))
        height, width = max(heights), max(widths)
        if settings.pad_size:
            height, width = settings.pad_size["height"], settings.pad_size["width"]
        if len(set(channels)) > 1 or max(heights) > height or max(widths) > width:
            raise ValueError(
                f"Images of (channels, height, width) {sorted(set(shapes))} cannot be padded to {height}x{width}."
            )
        return channels[0], height, width
    if len(set(shapes)) == 1:
        return shapes[0]
    if settings.return_tensors is None:
        return None
    raise ValueError(
        "A batch needs images of one shape, got (channels, height, width) "
        f"{', '.join(map(str, sorted(set(shapes))))}: "
        "switch on do_resize, do_center_crop and do_convert_rgb, or pass return_tensors=None."
    )


def output_device(images: list[ResizedImage], settings: ImageSettings) -> dict[str, Any]:
    """Return where a batch is allocated: on the accelerator if one of its images is there."""
    device = next((pixels.device for pixels, _ in images if pixels.device.type != "cpu"), torch.device("cpu"))
    pinned = settings.pin_memory and device.type == "cpu" and torch.accelerator.is_available()
    return {"device": device, "pin_memory": pinned}


def to_requested_type(batch: torch.Tensor | list[torch.Tensor], return_tensors: str | None) -> Any:
    """Return a batch as a tensor ("pt"), an array ("np") or a list of arrays (None)."""
    if return_tensors == "pt":
        return batch
    if return_tensors == "np" and isinstance(batch, torch.Tensor):
        return batch.cpu().numpy()
    return [pixels.cpu().numpy() for pixels in batch]
