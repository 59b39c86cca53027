"""Image processors: one implementation on PIL and NumPy, and a page of constants for each family."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import SizeDict, load_image

from . import image_steps


class DualEncoderImageProcessor(PilBackend):
    """Images to `pixel_values`, float32 of shape (images, channels, height, width).

    Settings, their names and their JSON are transformers' own; loading, saving and the checks of settings are
    inherited, the steps are in `image_steps`.
    """

    default_to_square = False
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def preprocess(self, images: Any, *args: Any, return_tensors: str | None = "pt", **kwargs: Any) -> BatchFeature:
        """Take PIL images, arrays, tensors, paths or URLs, one or nested in lists; `return_tensors=None`: a list."""
        return super().preprocess(images, *args, return_tensors=return_tensors, **kwargs)

    def fetch_images(self, image_url_or_urls: Any) -> list[Image.Image | np.ndarray | torch.Tensor]:
        """Flatten nested lists and batches, and open what is a path or a URL."""
        images = image_url_or_urls
        if isinstance(images, list | tuple):
            return [image for item in images for image in self.fetch_images(item)]
        if isinstance(images, str | os.PathLike):
            return [load_image(os.fspath(images))]
        if isinstance(images, np.ndarray | torch.Tensor):
            return list(images) if images.ndim == 4 else [images]
        if isinstance(images, Image.Image):
            return [images]
        raise TypeError(
            "expected PIL images, NumPy arrays, PyTorch tensors, paths or URLs, or lists of them, "
            f"got {type(images).__name__}"
        )

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list[Any]:
        flat = self.fetch_images(images)
        if not flat:
            raise ValueError("expected at least one image, got none")
        return flat

    def process_image(
        self, image: Any, do_convert_rgb: bool | None = None, input_data_format: str | None = None, **kwargs: Any
    ) -> tuple[Image.Image, bool]:
        """Give the image as PIL has it, and whether its values were fractions of 0..1 instead of levels."""
        fractions = False
        if not isinstance(image, Image.Image):
            channels_first = None if input_data_format is None else input_data_format == "channels_first"
            image, fractions = image_steps.to_image(image, channels_first)
        return image_steps.to_rgb(image) if do_convert_rgb else image, fractions

    def _preprocess(
        self,
        images: list[tuple[Image.Image, bool]],
        do_resize: bool,
        size: SizeDict,
        resample: int,
        do_center_crop: bool | None,
        crop_size: SizeDict,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | Sequence[float],
        image_std: float | Sequence[float],
        do_pad: bool | None,
        pad_size: SizeDict | None,
        return_tensors: str | None,
        **kwargs: Any,
    ) -> BatchFeature:
        batch = []
        for image, fractions in images:
            if do_resize:
                image = image_steps.resize(image, *_target_size(image, size), resample=resample)
            if do_center_crop:
                image = image_steps.center_crop(image, crop_size.height, crop_size.width)
            pixels = image_steps.to_array(image)
            # Fractions have become levels above: they return to 0..1 once, whatever the setting is.
            if do_rescale or fractions:
                pixels = image_steps.rescale(pixels, 1 / 255 if fractions else rescale_factor)
            if do_normalize:
                pixels = image_steps.normalize(pixels, image_mean, image_std)
            batch.append(pixels)
        if do_pad:
            batch = self.pad(batch, pad_size=pad_size)
        shapes = sorted({pixels.shape for pixels in batch})
        if return_tensors is not None and len(shapes) > 1:
            raise ValueError(
                f"a batch needs images of one shape, got (channels, height, width) {', '.join(map(str, shapes))}: "
                "switch on do_resize, do_center_crop and do_convert_rgb, or pass return_tensors=None"
            )
        return BatchFeature(data={"pixel_values": batch}, tensor_type=return_tensors)


def _target_size(image: Image.Image, size: SizeDict) -> tuple[int, int]:
    given = dict(size)
    if given.keys() == {"height", "width"}:
        return given["height"], given["width"]
    if given.keys() == {"shortest_edge"}:
        return image_steps.shorter_side_to(given["shortest_edge"], image)
    raise ValueError(f"size must hold 'height' and 'width', or 'shortest_edge', got {given}")


class CLIPImageProcessor(DualEncoderImageProcessor):
    """CLIP: the shorter side to 224, the middle, then mean and deviation of its training images.

    Source: `openai/clip-vit-base-patch32`, preprocessor_config.json; `clip/clip.py`, `_transform`.
    """

    size = {"shortest_edge": 224}
    crop_size = {"height": 224, "width": 224}
    do_center_crop = True
    resample = Image.Resampling.BICUBIC
    image_mean = [0.48145466, 0.4578275, 0.40821073]
    image_std = [0.26862954, 0.26130258, 0.27577711]


class SiglipImageProcessor(DualEncoderImageProcessor):
    """SigLIP and fixed-size SigLIP 2: the whole image to a square whatever its aspect, values of -1..1.

    Source: `google/siglip-base-patch16-224`, preprocessor_config.json. SigLIP 2's folders say bilinear.
    """

    size = {"height": 224, "width": 224}
    resample = Image.Resampling.BICUBIC
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
