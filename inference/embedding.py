"""Many images or texts as unit vectors, a batch at a time."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..modeling import DualEncoderModel
from ..processing import DualEncoderProcessor

BATCH = 64


def embed_images(
    model: DualEncoderModel, processor: DualEncoderProcessor, images: Sequence[Any], *, batch_size: int = BATCH
) -> Tensor:
    """Unit vectors (images, dim), float32 on the CPU, of whatever the processor takes as an image."""
    return _embed(model, processor, "images", images, batch_size)


def embed_texts(
    model: DualEncoderModel, processor: DualEncoderProcessor, texts: Sequence[str], *, batch_size: int = BATCH
) -> Tensor:
    """Unit vectors (texts, dim), float32 on the CPU."""
    return _embed(model, processor, "text", texts, batch_size)


@torch.no_grad()
def _embed(
    model: DualEncoderModel, processor: DualEncoderProcessor, name: str, items: Sequence[Any], batch_size: int
) -> Tensor:
    if not len(items):
        raise ValueError(f"Expected at least one of {name} to embed, got none.")
    encode = model.encode_image if name == "images" else model.encode_text

    def prepare(batch: Any) -> Any:
        return processor(images=batch) if name == "images" else processor(text=batch)

    batches: list[Any] = [list(items[start : start + batch_size]) for start in range(0, len(items), batch_size)]
    return torch.cat([encode(**prepare(batch).to(model.device)).cpu() for batch in batches])
