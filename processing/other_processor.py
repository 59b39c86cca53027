"""transformers' own processor of a dual encoder, called as the processors of this package are."""

import logging
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import (
    AutoTokenizer,
    BaseImageProcessor,
    BatchFeature,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # also there without torchvision
from transformers.tokenization_utils_base import LARGE_INTEGER

from ..catalogue.download import HUB_ARGUMENTS
from ..configuration import OTHER_FAMILIES, OtherFamily, max_text_length
from .image_arrays import to_levels
from .image_batches import naming, number_images
from .image_input import ImageItem, flatten_images, open_image
from .image_steps import to_pil, to_rgb
from .processor import DualEncoderProcessor
from .text_input import clean_texts
from .tokenization import VocabularyNotFoundError

logger = logging.getLogger(__name__)


class OtherImageProcessor:
    """An image processor of transformers for images of any form that `open_image` reads, and arrays.

    Images come upright, as their EXIF orientation says, and in RGB; all else is the image processor's.
    """

    do_exif_transpose = True

    def __init__(self, native: BaseImageProcessor) -> None:
        self.native = native

    def __getattr__(self, name: str) -> Any:
        if name == "native":  # it is being unpickled
            raise AttributeError(name)
        return getattr(self.native, name)

    def __call__(self, images: Any, *, return_tensors: str | None = "pt", **settings: Any) -> BatchFeature:
        """Return `pixel_values` (images, channels, height, width) and what else the image processor makes."""
        opened = []
        for item in number_images(flatten_images(images)):
            with naming(item.name):
                opened.append(self._open(item))
        if not opened:  # what one image would give, without its row
            one = self(Image.new("RGB", (1, 1)), return_tensors=return_tensors, **settings)
            return BatchFeature({name: values[:0] for name, values in one.items()})
        return self.native(opened, return_tensors=return_tensors, **settings)

    def _open(self, item: ImageItem) -> Image.Image:
        image = item.image
        is_array = isinstance(image, np.ndarray | torch.Tensor)
        opened = to_pil(to_levels(image, None, item.highest).levels) if is_array else open_image(image, True)
        return to_rgb(opened)


class OtherProcessor(DualEncoderProcessor):
    """transformers' own processor of one of its families, called as the processors of this package are.

    Texts are cut to the length that the model has positions for, and a batch is padded to its longest text (ALIGN's:
    to 64), because what is padded has no effect.
    """

    def __init__(
        self,
        image_processor: BaseImageProcessor,
        tokenizer: PreTrainedTokenizerBase | None,
        family: OtherFamily,
        config: PreTrainedConfig | None,
    ) -> None:
        self.image_processor = cast("Any", OtherImageProcessor(image_processor))
        self.image_processor_type = cast("Any", type(image_processor))
        self.tokenizer = cast("Any", tokenizer)
        self.chat_template = None
        self.native: ProcessorMixin | BaseImageProcessor = image_processor
        if tokenizer is not None:
            self.native = getattr(transformers, family.processor)(image_processor, tokenizer)
            lengths = (tokenizer.model_max_length, family.text_length, config and max_text_length(config))
            length = min(length for length in lengths if length is not None)
            tokenizer.model_max_length = length
            padding = "longest" if family.text_length is None else "max_length"
            self.text_defaults = {"padding": padding, "truncation": length < LARGE_INTEGER}

    def __call__(self, images: Any = None, text: Any = None, *args: Any, **kwargs: Any) -> BatchFeature:
        """Do what `DualEncoderProcessor` does, with the image processor and the tokenizer of transformers."""
        if text is not None:
            text = clean_texts(text, str)
        if text == []:  # what one text would give, without its row
            one = super().__call__(images, "", *args, **kwargs)
            of_texts = self.tokenizer.model_input_names
            return BatchFeature({name: value[:0] if name in of_texts else value for name, value in one.items()})
        return super().__call__(images, text, *args, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        return self.native.to_dict()

    def describe(self) -> str:
        """Return what happens to images and texts, in words, as Markdown."""
        settings = self.image_processor.native
        images = f"Images:\n\nTurned upright, converted to RGB, then as transformers does with\n\n{settings}"
        if self.tokenizer is None:
            return images
        length, name = self.tokenizer.model_max_length, type(self.tokenizer).__name__
        return f"{images}\n\nTexts:\n\nThe ids of transformers' {name}, cut to {length} tokens."

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Write the files of transformers' processor, which plain transformers loads too."""
        return self.native.save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def load(
        cls, model_type: str, images: str, texts: str | Path, config: PreTrainedConfig | None, **kwargs: Any
    ) -> "OtherProcessor":
        """Load the image processor of one source and the tokenizer of another; `config` says how long texts may be.

        Without a vocabulary in `texts`, which must be `images` then, it takes images only.
        """
        hub_arguments = {name: value for name, value in kwargs.items() if name in HUB_ARGUMENTS}
        try:
            image_processor = AutoImageProcessor.from_pretrained(images, **kwargs)
        except OSError as error:
            raise FileNotFoundError(
                f"{images} has no image processor that can be loaded: {error} DualEncoderProcessor.from_parts makes a "
                "processor of those of two towers, to be saved beside their model."
            ) from error
        tokenizer = _load_tokenizer(str(texts), hub_arguments)
        if tokenizer is None and texts != images:
            raise VocabularyNotFoundError(f"{texts} holds no vocabulary.")
        return cls(image_processor, tokenizer, OTHER_FAMILIES[model_type], config)


def _load_tokenizer(source: str, hub_arguments: dict[str, Any]) -> PreTrainedTokenizerBase | None:
    """Return a tokenizer, or None without a vocabulary: of its absence transformers makes one of special tokens."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **hub_arguments)
    except (OSError, ValueError) as error:
        logger.warning("%s: no tokenizer could be loaded: %s", source, error)
        return None
    return None if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens) else tokenizer
