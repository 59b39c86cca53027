"""One processor for the texts and images of a checkpoint, with the settings it was trained with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from PIL import Image
from transformers import BaseImageProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.processing_utils import AudioKwargs, ProcessingKwargs, TextKwargs, VideosKwargs

from ..configuration import DualEncoderConfig
from .clip_tokenizer import CLIPTokenizer
from .description import describe_text_steps, numbered
from .image_processors import (
    CLIPImageProcessor,
    DualEncoderImageProcessor,
    Siglip2ImageProcessor,
    SiglipImageProcessor,
)
from .native_parts import own_image_processor, own_tokenizer
from .siglip_tokenizer import SiglipTokenizer
from .tokenization import DualEncoderTokenizer

if TYPE_CHECKING:
    from typing_extensions import Self  # part of `typing` from Python 3.11 on

# Settings that every processor of transformers takes, and that mean nothing without videos and audio.
_OF_OTHER_INPUTS = {name for kinds in (AudioKwargs, ProcessingKwargs, VideosKwargs) for name in kinds.__annotations__}
_CLIP_VOCABULARY_SIZE = 49408
_OFFICIAL_TOKENIZERS = "openai/clip-vit-"  # what the names of those on the Hub begin with


class DualEncoderProcessor(ProcessorMixin):
    """The base of the families' processors, and the entry point: `from_pretrained` returns the right family's.

    Without a tokenizer it takes images only.
    """

    has_text_cleanup: ClassVar[bool] = False  # whether the tokenizer takes `text_cleanup`
    padding_has_no_effect: ClassVar[bool] = False  # whether texts of any padding have the same embedding
    text_defaults: Mapping[str, Any] = {"padding": "max_length", "truncation": True}  # of the tokenizer
    image_processor_type: type[DualEncoderImageProcessor] = DualEncoderImageProcessor
    tokenizer_type: ClassVar[type[DualEncoderTokenizer]] = DualEncoderTokenizer

    image_processor: DualEncoderImageProcessor
    # Declared without None, which only a processor of images alone has: people use it without asking each time.
    tokenizer: DualEncoderTokenizer

    def __init__(
        self,
        image_processor: DualEncoderImageProcessor | BaseImageProcessor,
        tokenizer: DualEncoderTokenizer | PreTrainedTokenizerBase | None = None,
        chat_template: str | None = None,
    ) -> None:
        """Take the two parts; those of transformers are converted, to the same settings and the same vocabulary.

        Raises TypeError for a part of another family. `chat_template` is for the methods of `ProcessorMixin`.
        """
        name = type(self).__name__
        self.image_processor = own_image_processor(image_processor, self.image_processor_type, name)
        own = tokenizer if tokenizer is None else own_tokenizer(tokenizer, self.tokenizer_type, name)
        self.tokenizer = own  # type: ignore[assignment]  # see above
        self.chat_template = chat_template

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        videos: None = None,
        audio: None = None,
        *,
        common_kwargs: dict[str, Any] | None = None,
        images_kwargs: dict[str, Any] | None = None,
        text_kwargs: dict[str, Any] | None = None,
        videos_kwargs: dict[str, Any] | None = None,
        audio_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Return `pixel_values` and `input_ids` (CLIP: and `attention_mask`), cut and padded as in training.

        Images are one or many, of any kind that the image processor takes, and texts one or a column of them: a list,
        an array, a generator, a column of `datasets` or pandas. Further settings go to the image processor or the
        tokenizer by their names, or through `images_kwargs` and `text_kwargs`; those of `common_kwargs` come after
        them. `return_tensors` is "pt" unless given. As for all processors of transformers, `videos` and `audio` may be
        passed, but only as None; settings for them have no effect. Raises TypeError for a setting that none has, and
        ValueError without images and text, for videos or audio, for a setting that is passed twice, or for text without
        a tokenizer.
        """
        if given := [name for name, values in {"videos": videos, "audio": audio}.items() if values is not None]:
            raise ValueError(
                f"Expected images, text or both, got {' and '.join(given)}: this model has no tower for it."
            )
        if images is None and text is None:
            raise ValueError("Expected images, text or both, got neither.")
        image_names, text_names = self.image_processor_type.valid_kwargs.__annotations__, TextKwargs.__annotations__
        images_kwargs, text_kwargs, common_kwargs = images_kwargs or {}, text_kwargs or {}, common_kwargs or {}
        unknown = (kwargs.keys() | common_kwargs.keys()) - image_names.keys() - text_names.keys() - _OF_OTHER_INPUTS
        unknown |= (text_kwargs.keys() - text_names.keys()) | (images_kwargs.keys() - image_names.keys())
        if unknown:
            names = ", ".join(sorted(unknown))
            raise TypeError(f"Neither image processor nor tokenizer has a setting named {names}.")
        if twice := sorted(kwargs.keys() & (images_kwargs.keys() | text_kwargs.keys())):
            raise ValueError(f"Passed twice, by name and in images_kwargs or text_kwargs: {', '.join(twice)}.")
        settings = {"return_tensors": "pt", **common_kwargs, **kwargs}
        features: dict[str, Any] = {}
        if text is not None:
            if self.tokenizer is None:
                raise ValueError(
                    "This processor takes images only, because its source holds no vocabulary: "
                    "pass one, from_pretrained(..., tokenizer=path), or --tokenizer on the command line."
                )
            text_settings = {name: value for name, value in settings.items() if name in text_names}
            text_settings = {**self.text_defaults, **text_settings, **text_kwargs}
            if isinstance(text, str) and text_settings["return_tensors"] in ("np", "pt"):
                text = [text]  # a batch of one: the same arrays, without the alignments that no processor returns
            features |= self.tokenizer(text, **text_settings)
        if images is not None:
            image_settings = {name: value for name, value in settings.items() if name in image_names}
            features |= self.image_processor(images, **{**image_settings, **images_kwargs})
        return BatchFeature(features)

    def describe(self) -> str:
        """Return what happens to images and texts, in words, as Markdown."""
        parts = [f"Images:\n\n{self.image_processor.describe()}"]
        if self.tokenizer is not None:
            parts.append(f"Texts:\n\n{numbered(describe_text_steps(self.tokenizer))}")
        return "\n\n".join(parts)

    def explain(self) -> None:
        """Print `describe()`."""
        print(self.describe())

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, tokenizer: str | Path | None = None, **kwargs: Any
    ) -> "Self":
        """Load from a folder, a Hub id or an official checkpoint: a file, or a name of `twinlens list`.

        A name is downloaded and checked, and brings its vocabulary; what exists as a path is a path. `tokenizer`,
        `text_cleanup` and, for an official checkpoint, `preprocessing` are those of `build_processor`, `image_size` is
        that of `read_checkpoint`; the image processor's settings can be given by name. Raises ValueError where the
        source is of another family than the class that this is called on.
        """
        from .processor_loading import load_processor  # which imports this module

        return cast("Self", load_processor(cls, pretrained_model_name_or_path, tokenizer, **kwargs))

    @classmethod
    def from_parts(cls, vision: str | Path, text: str | Path) -> "Self":
        """Return the processor of `DualEncoderModel.from_towers(vision, text)`, both Hub ids or folders.

        It has the image processor of the one and the tokenizer of the other, and is saved as transformers'
        VisionTextDualEncoderProcessor. Raises OSError where one of them is missing.
        """
        from .processor_loading import load_of_two  # which imports this module

        return cast("Self", load_of_two(vision, text))

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Write `preprocessor_config.json`, `processor_config.json` and the tokenizer's files, for any transformers."""
        folder = Path(save_directory)
        written = self.image_processor.save_pretrained(folder)
        # transformers 5 would repeat the image settings here, and the copy would win over an edited original.
        processor_file = folder / "processor_config.json"
        # AutoProcessor would look for texts' files that are not there, or give CLIP a tokenizer without a vocabulary.
        auto_class = type(self if self.tokenizer is not None else self.image_processor).__name__
        processor_file.write_text(json.dumps({"processor_class": auto_class}, indent=2) + "\n", encoding="utf-8")
        if self.tokenizer is not None:
            self.tokenizer._set_processor_class(type(self).__name__)
            written += self.tokenizer.save_pretrained(folder)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)
        return [*written, str(processor_file)]

    @classmethod
    def settings_from_config(cls, config: DualEncoderConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the settings of the image processor and those of the tokenizer that follow from a configuration."""
        raise NotImplementedError

    @classmethod
    def bundled_tokenizer(cls, vocabulary_size: int, name: str | None, **settings: Any) -> DualEncoderTokenizer | None:
        """Return the tokenizer that is part of this package, for a model of the official vocabulary's size.

        `name` is the tokenizer that the source states, None where it states none.
        """
        return None


class CLIPProcessor(DualEncoderProcessor):
    """CLIP's images and texts."""

    image_processor: CLIPImageProcessor
    tokenizer: CLIPTokenizer

    padding_has_no_effect = True  # the text tower is causal
    image_processor_type = CLIPImageProcessor
    tokenizer_type = CLIPTokenizer

    @classmethod
    def settings_from_config(cls, config: DualEncoderConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        size = config.vision_config.image_size
        image = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
        return image, {"model_max_length": config.text_config.max_position_embeddings}

    @classmethod
    def bundled_tokenizer(cls, vocabulary_size: int, name: str | None, **settings: Any) -> DualEncoderTokenizer | None:
        if vocabulary_size != _CLIP_VOCABULARY_SIZE or not (name or _OFFICIAL_TOKENIZERS).startswith(
            _OFFICIAL_TOKENIZERS
        ):
            return None
        return CLIPTokenizer.from_official(**settings)


class SiglipProcessor(DualEncoderProcessor):
    """Images and texts of SigLIP and of fixed-size SigLIP 2."""

    image_processor: SiglipImageProcessor
    tokenizer: SiglipTokenizer

    has_text_cleanup = True
    image_processor_type = SiglipImageProcessor
    tokenizer_type = SiglipTokenizer

    @classmethod
    def settings_from_config(cls, config: DualEncoderConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        size, pad = config.vision_config.image_size, config.text_config.pad_token_id
        # The Hub folders' filters: bicubic for SigLIP, which pads text with 1, bilinear for SigLIP 2, with 0.
        resample = Image.Resampling.BILINEAR if pad == 0 else Image.Resampling.BICUBIC
        image = {"size": {"height": size, "width": size}, "resample": resample}
        return image, {"model_max_length": config.text_config.max_position_embeddings, "pad_token_id": pad}


class Siglip2Processor(SiglipProcessor):
    """Images of any aspect (NaFlex) and texts of SigLIP 2."""

    image_processor: Siglip2ImageProcessor
    image_processor_type = Siglip2ImageProcessor

    @classmethod
    def settings_from_config(cls, config: DualEncoderConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        text = config.text_config
        return (
            {"patch_size": config.vision_config.patch_size},
            {"model_max_length": text.max_position_embeddings, "pad_token_id": text.pad_token_id},
        )


PROCESSORS: tuple[type[DualEncoderProcessor], ...] = (CLIPProcessor, SiglipProcessor, Siglip2Processor)
