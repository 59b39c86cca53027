"""Embeddings of many images or texts, one batch at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..modeling import DualEncoderModel
from ..processing import DualEncoderProcessor

BATCH_SIZE = 64


def embed_images(
    model: DualEncoderModel, processor: DualEncoderProcessor, images: Sequence[Any], *, batch_size: int = BATCH_SIZE
) -> Tensor:
    """Return unit vectors (images, dim), float32 on the CPU. An image is anything that the processor takes as one."""
    return _embed(images, batch_size, lambda batch: model.encode_image(**processor(images=batch).to(model.device)))


def embed_texts(
    model: DualEncoderModel, processor: DualEncoderProcessor, texts: Sequence[str], *, batch_size: int = BATCH_SIZE
) -> Tensor:
    """Return unit vectors (texts, dim), float32 on the CPU."""
    return _embed(texts, batch_size, lambda batch: model.encode_text(**processor(text=batch).to(model.device)))


@torch.no_grad()
def _embed(items: Sequence[Any], batch_size: int, encode: Callable[[list[Any]], Tensor]) -> Tensor:
    if not len(items):
        raise ValueError("Expected at least one image or text to embed, got none.")
    batches = (list(items[start : start + batch_size]) for start in range(0, len(items), batch_size))
    return torch.cat([encode(batch).cpu() for batch in batches])
