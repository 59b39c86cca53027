"""From samples to the tensors that a model trains on."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..processing import DualEncoderProcessor
from ..processing.image_input import open_image
from .augmentation import RandomResizedCrop


class ContrastiveCollator:
    """Makes batches of samples (`sources`): pixels and tokens as the processor makes them, of random parts of images.

    What is random depends on `seed`, the epoch and the sample's index alone: not on workers, nor on what came before.
    """

    def __init__(
        self, processor: DualEncoderProcessor, *, augmentation: RandomResizedCrop | None = None, seed: int = 0
    ) -> None:
        if processor.tokenizer is None:
            raise ValueError("Expected a processor with a tokenizer, got one that takes images only.")
        self.processor, self.augmentation, self.seed = processor, augmentation, seed
        self.epoch = 0
        # A part takes the place of the whole: it is resized to all of the model's square, of which nothing is cut off.
        images = processor.image_processor
        crop = dict(getattr(images, "crop_size", None) or {}) if getattr(images, "do_center_crop", False) else {}
        self.whole_square: dict[str, Any] = {"size": crop, "do_center_crop": False} if crop else {}

    def set_epoch(self, epoch: int) -> None:
        """Draw other parts from now on."""
        self.epoch = epoch

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """`pixel_values` (batch, channels, height, width), `input_ids` (batch, length) and what else the model takes.

        `image_ids` (batch,) tells equal images where samples have an `image_id`.
        """
        images, texts = [], []
        for sample in samples:
            generator = self._generator(sample["index"])
            text = sample["text"]
            if not isinstance(text, str):
                text = text[int(torch.randint(len(text), (), generator=generator))]
            texts.append(text)
            images.append(self._part(sample["image"], generator) if self.augmentation else sample["image"])
        whole = self.whole_square if self.augmentation else None
        batch = dict(self.processor(images=images, text=texts, images_kwargs=whole))
        if all("image_id" in sample for sample in samples):
            batch["image_ids"] = torch.tensor([sample["image_id"] for sample in samples])
        return batch

    def _generator(self, index: int) -> torch.Generator:
        digest = blake2b(f"{self.seed} {self.epoch} {index}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))

    def _part(self, image: Any, generator: torch.Generator) -> Image.Image:
        opened = Image.fromarray(image) if isinstance(image, np.ndarray) else open_image(image)
        return opened.crop(self.augmentation.box(opened.height, opened.width, generator))  # type: ignore[union-attr]
