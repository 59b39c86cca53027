"""Embeddings of many images or texts, one batch at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..modeling import DualEncoderModel
from ..processing import DualEncoderProcessor
from ..processing.image_arrays import highest_float
from ..processing.image_input import ImageItem

BATCH_SIZE = 64


def embed_images(
    model: DualEncoderModel, processor: DualEncoderProcessor, images: Sequence[Any], *, batch_size: int = BATCH_SIZE
) -> Tensor:
    """Return unit vectors (images, dim), float32 on the CPU. An image is anything that the processor takes as one.

    Errors name the place of an image in `images`. An array of all images has one scale, 0..1 or 0..255.
    """
    count = len(images)
    highest = highest_float(images) if isinstance(images, np.ndarray | Tensor) else None

    def encode(batch: list[Any], start: int) -> Tensor:
        names = [f"Image {place} of {count}" if count > 1 else "" for place in range(start, start + len(batch))]
        items = [ImageItem(image, name, highest) for image, name in zip(batch, names, strict=True)]
        return model.encode_image(**processor(images=items).to(model.device))

    return _embed(images, batch_size, encode)


def embed_texts(
    model: DualEncoderModel, processor: DualEncoderProcessor, texts: Sequence[str], *, batch_size: int = BATCH_SIZE
) -> Tensor:
    """Return unit vectors (texts, dim), float32 on the CPU."""
    return _embed(texts, batch_size, lambda batch, _: model.encode_text(**processor(text=batch).to(model.device)))


@torch.no_grad()
def _embed(items: Sequence[Any], batch_size: int, encode: Callable[[list[Any], int], Tensor]) -> Tensor:
    starts = range(0, max(len(items), 1), batch_size)  # an empty batch has the dimension too
    return torch.cat([encode(list(items[start : start + batch_size]), start).cpu() for start in starts])
