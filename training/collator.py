"""Batches: from samples to the tensors that a model trains on."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..processing import DualEncoderProcessor
from ..processing.image_arrays import to_levels
from ..processing.image_batches import naming
from ..processing.image_input import ImageItem, open_image
from ..processing.image_steps import to_pil
from .augmentation import RandomResizedCrop
from .streams import Sample, check_caption

IMAGES_PER_CHUNK = 64  # decoded at the same time; a batch can have thousands


class ContrastiveCollator:
    """Makes a batch of samples: the processor's pixels, after random crops with `augmentation`, and its tokens.

    Random crops and captions depend only on `seed`, the epoch and the index of the sample, not on workers or on what
    was drawn before. Raises ValueError for a processor without a tokenizer.
    """

    def __init__(
        self, processor: DualEncoderProcessor, *, augmentation: RandomResizedCrop | None = None, seed: int = 0
    ) -> None:
        if processor.tokenizer is None:
            raise ValueError("Expected a processor with a tokenizer, got one that takes images only.")
        self.processor, self.augmentation, self.seed = processor, augmentation, seed
        self._text_settings: dict[str, Any] = {"padding": "longest"} if processor.padding_has_no_effect else {}
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # shared with workers, which outlive an epoch
        # A random crop is resized to the size of the model at once; a centre crop would cut off parts of it again.
        images = processor.image_processor
        crop = images.crop_size if images.do_center_crop else None
        self._image_settings = {"size": dict(crop), "do_center_crop": False} if augmentation and crop else {}

    def for_evaluation(self) -> "ContrastiveCollator":
        """Return a collator that takes whole images, and of several captions always the same one."""
        return ContrastiveCollator(self.processor, seed=self.seed)

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, on which random crops and captions depend."""
        self._epoch.fill_(epoch)

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """Return `pixel_values` (batch, channels, height, width), `input_ids` (batch, length) and other model inputs.

        Texts are as long as the longest one of the batch where padding has no effect, and else as in the processor.
        If all samples have an `image_id`, `image_ids` (batch,) holds them: equal images have equal ids.
        Raises ValueError for no samples, and for one without an image, a text or its index in the data.
        """
        _check(samples)
        generators = [self._generator(sample["index"]) for sample in samples]
        captions = list(map(_draw_caption, samples, generators))
        batch = dict(self.processor(text=captions, **self._text_settings))
        if self.augmentation is None:
            images = [ImageItem(sample["image"], f"Sample {sample['index']}") for sample in samples]
            batch |= self.processor.image_processor(images)
        else:
            chunks = [slice(start, start + IMAGES_PER_CHUNK) for start in range(0, len(samples), IMAGES_PER_CHUNK)]
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # as many as the image processor has
                pixels = [self._crop_and_resize(samples[chunk], generators[chunk], pool) for chunk in chunks]
            batch |= {name: torch.cat([chunk[name] for chunk in pixels]) for name in pixels[0]}
        if all("image_id" in sample for sample in samples):
            batch["image_ids"] = torch.tensor([sample["image_id"] for sample in samples])
        return batch

    def _crop_and_resize(
        self, samples: Sequence[Sample], generators: Sequence[torch.Generator], pool: ThreadPoolExecutor
    ) -> dict[str, torch.Tensor]:
        images = list(pool.map(self._open_and_crop, samples, generators))
        return self.processor.image_processor(images, **self._image_settings)

    def _open_and_crop(self, sample: Sample, generator: torch.Generator) -> Image.Image:
        image = sample["image"]
        with naming(f"Sample {sample['index']}"):
            if isinstance(image, np.ndarray | torch.Tensor):
                opened = to_pil(to_levels(image).levels)
            else:
                opened = open_image(image, bool(self.processor.image_processor.do_exif_transpose))
        return self.augmentation(opened, generator)  # type: ignore[misc]

    def _generator(self, index: int) -> torch.Generator:
        digest = blake2b(f"{self.seed} {self.epoch} {index}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))


def _check(samples: Sequence[Sample]) -> None:
    if not samples:
        raise ValueError("Expected a batch of at least one sample, got none.")
    for place, sample in enumerate(samples):
        if missing := [name for name in ("image", "text", "index") if name not in sample]:
            raise ValueError(
                f"Sample {place} of the batch has no {' and no '.join(missing)}: expected image, text and index, the "
                "number of the sample in the data."
            )


def _draw_caption(sample: Sample, generator: torch.Generator) -> str:
    try:
        text = check_caption(sample["text"])
    except ValueError as error:
        raise ValueError(f"Sample {sample['index']}: {error}") from error
    return text if isinstance(text, str) else text[int(torch.randint(len(text), (), generator=generator))]
