"""From samples to the tensors that a model trains on."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..processing import DualEncoderProcessor
from ..processing.image_input import open_image, to_levels
from ..processing.image_steps import to_pil
from .augmentation import RandomResizedCrop
from .streams import checked_text

CHUNK = 64  # images that exist whole at a time, for a batch may have thousands


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

    def for_evaluation(self) -> "ContrastiveCollator":
        """One that takes whole images, and always the same of several captions."""
        return ContrastiveCollator(self.processor, seed=self.seed)

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
        generators = [self._generator(sample["index"]) for sample in samples]
        batch = dict(self.processor(text=list(map(_drawn_text, samples, generators))))
        if self.augmentation is None:
            batch |= self.processor.image_processor([sample["image"] for sample in samples])
        else:
            chunks = [slice(start, start + CHUNK) for start in range(0, len(samples), CHUNK)]
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # as many as the image processor has
                pixels = [self._parts(samples[chunk], generators[chunk], pool) for chunk in chunks]
            batch |= {name: torch.cat([part[name] for part in pixels]) for name in pixels[0]}
        if all("image_id" in sample for sample in samples):
            batch["image_ids"] = torch.tensor([sample["image_id"] for sample in samples])
        return batch

    def _parts(
        self, samples: Sequence[dict[str, Any]], generators: Sequence[torch.Generator], pool: ThreadPoolExecutor
    ) -> dict[str, torch.Tensor]:
        images = list(pool.map(self._part, samples, generators))
        return self.processor.image_processor(images, **self._settings)

    def _part(self, sample: dict[str, Any], generator: torch.Generator) -> Image.Image:
        image = sample["image"]
        try:
            if isinstance(image, np.ndarray | torch.Tensor):
                opened = to_pil(to_levels(image)[0])
            else:
                opened = open_image(image, bool(self.processor.image_processor.do_exif_transpose))
        except (TypeError, ValueError) as error:
            raise ValueError(f"sample {sample['index']}: {error}") from error
        return self.augmentation(opened, generator)  # type: ignore[misc]

    def _generator(self, index: int) -> torch.Generator:
        digest = blake2b(f"{self.seed} {self.epoch} {index}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))


def _drawn_text(sample: dict[str, Any], generator: torch.Generator) -> str:
    try:
        text = checked_text(sample["text"])
    except ValueError as error:
        raise ValueError(f"sample {sample['index']}: {error}") from error
    return text if isinstance(text, str) else text[int(torch.randint(len(text), (), generator=generator))]
