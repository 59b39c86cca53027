"""From samples to the tensors that a model trains on."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch
from PIL import Image

from ..processing import DualEncoderProcessor
from ..processing.image_input import open_image, to_levels
from ..processing.image_steps import to_pil
from .augmentation import RandomResizedCrop
from .streams import checked_text


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
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # for workers that outlive an epoch
        # A part takes the place of the whole: it is resized to all of the model's square, of which nothing is cut off.
        images = processor.image_processor
        crop = images.crop_size if images.do_center_crop else None
        self._settings = {"size": dict(crop), "do_center_crop": False} if augmentation and crop else {}

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw other parts from now on."""
        self._epoch.fill_(epoch)

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """`pixel_values` (batch, channels, height, width), `input_ids` (batch, length) and what else the model takes.

        `image_ids` (batch,) tells equal images where samples have an `image_id`.
        """
        images, texts = [], []
        for sample in samples:
            generator = self._generator(sample["index"])
            try:
                text = checked_text(sample["text"])
                if not isinstance(text, str):
                    text = text[int(torch.randint(len(text), (), generator=generator))]
                image = sample["image"]
                images.append(self.augmentation(_opened(image), generator) if self.augmentation else image)
            except (TypeError, ValueError) as error:
                raise ValueError(f"sample {sample['index']}: {error}") from error
            texts.append(text)
        batch = dict(self.processor(images=images, text=texts, images_kwargs=self._settings))
        if all("image_id" in sample for sample in samples):
            batch["image_ids"] = torch.tensor([sample["image_id"] for sample in samples])
        return batch

    def _generator(self, index: int) -> torch.Generator:
        digest = blake2b(f"{self.seed} {self.epoch} {index}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))


def _opened(image: Any) -> Image.Image:
    return to_pil(to_levels(image)[0]) if hasattr(image, "shape") else open_image(image)
