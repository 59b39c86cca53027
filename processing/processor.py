"""One processor for the texts and images of a checkpoint, with the settings it was trained with."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, cast, get_args

from PIL import Image
from transformers import (
    AutoConfig,
    BaseImageProcessor,
    BatchFeature,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.processing_utils import AudioKwargs, ProcessingKwargs, TextKwargs, VideosKwargs

from ..catalogue.download import is_name, published_vocabulary, suggest_names
from ..configuration import (
    FAMILIES,
    OTHER_FAMILIES,
    DualEncoderConfig,
    TowerConfig,
    family_of,
    is_single_tower,
    title_of,
)
from ..formats import Checkpoint, check_settings, is_checkpoint_file, pop_options, read_json, read_source
from ..messages import quoted
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
from .tokenization import DualEncoderTokenizer, VocabularyNotFoundError

if TYPE_CHECKING:
    from typing_extensions import Self  # part of `typing` from Python 3.11 on

Preprocessing = Literal["official", "hub"]
Part = TypeVar("Part", DualEncoderImageProcessor, DualEncoderTokenizer)

# Settings that every processor of transformers takes, and that mean nothing without videos and audio.
_OF_OTHER_INPUTS = {name for kinds in (AudioKwargs, ProcessingKwargs, VideosKwargs) for name in kinds.__annotations__}
_CLIP_VOCABULARY_SIZE = 49408
_OFFICIAL_TOKENIZERS = "openai/clip-vit-"  # what the names of those on the Hub begin with


class DualEncoderProcessor(ProcessorMixin):
    """The base of the families' processors, and the entry point: `from_pretrained` returns the right family's.

    Without a tokenizer it takes images only.
    """

    has_text_cleanup: ClassVar[bool] = False  # whether the tokenizer takes `text_cleanup`
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
        source = str(pretrained_model_name_or_path)
        image_names = {
            name for processor in _CLASSES for name in processor.image_processor_type.valid_kwargs.__annotations__
        }
        image_settings = {name: value for name, value in kwargs.items() if name in image_names}
        if is_checkpoint_file(source) or is_name(source):
            checkpoint, entry = read_source(source, **pop_options(kwargs))
            tokenizer = tokenizer or published_vocabulary(source, entry)
            chosen = {name: kwargs[name] for name in ("text_cleanup", "preprocessing") if name in kwargs}
            processor_class = cls._processor_class(checkpoint.config.model_type, source)
            return processor_class._from_config(
                checkpoint.config, checkpoint, tokenizer=tokenizer, **chosen, **image_settings
            )
        other = {name: value for name, value in kwargs.items() if name not in image_names}
        check_settings(source, kwargs.get("subfolder"))
        try:
            config_dict, _ = PreTrainedConfig.get_config_dict(source, **other)
        except OSError:  # a folder of processor files alone
            config_dict = {}
        model_type = config_dict.get("model_type") or _other_model_type(Path(source))
        if model_type in OTHER_FAMILIES and cls is DualEncoderProcessor:
            config = DualEncoderConfig.from_pretrained(source, **other) if config_dict else None
            return cls._of_other_family(model_type, source, tokenizer or source, config, **kwargs)
        if model_type:
            cls._processor_class(model_type, source)  # another kind of model may have no image processor
        with suggest_names(source):
            image_dict, _ = DualEncoderImageProcessor.get_image_processor_dict(source, **other)
        type_name = image_dict.get("image_processor_type") or image_dict.get("feature_extractor_type")
        processor_class = cls._processor_class(model_type or type_name, source)
        other |= text_settings(config_dict)
        image_processor = processor_class.image_processor_type.from_dict(image_dict, **image_settings)
        try:
            return processor_class(image_processor, processor_class._load_tokenizer(tokenizer or source, **other))
        except VocabularyNotFoundError:
            if tokenizer is not None:
                raise
            return processor_class(image_processor)

    @classmethod
    def from_parts(cls, vision: str | Path, text: str | Path) -> "Self":
        """Return the processor of `DualEncoderModel.from_towers(vision, text)`, both Hub ids or folders.

        It has the image processor of the one and the tokenizer of the other, and is saved as transformers'
        VisionTextDualEncoderProcessor. Raises OSError where one of them is missing.
        """
        return cls._of_other_family("vision-text-dual-encoder", str(vision), text, AutoConfig.from_pretrained(text))

    @classmethod
    def _of_other_family(
        cls, model_type: str, images: str, texts: str | Path, config: PreTrainedConfig | None, **kwargs: Any
    ) -> "Self":
        from .other_processor import OtherProcessor  # which imports this module

        if wrong := {"text_cleanup", "preprocessing"} & kwargs.keys():
            raise ValueError(f"{images}: the processor is transformers' own, which has no {' and '.join(wrong)}.")
        return cast("Self", OtherProcessor.load(model_type, images, texts, config, **kwargs))

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
    def _processor_class(cls, name: str | None, source: str) -> "type[Self]":
        """Return the class for a `model_type`, that of a tower included, or for the name of an image processor.

        It is this class where a user derived it from the one that the name stands for. Raises ValueError for an unknown
        name, or one that stands for a class neither derived from this one nor the one that this is derived from.
        """
        processor_class = _CLASS_BY_NAME.get(name or "")
        if processor_class is None:
            if name in OTHER_FAMILIES:
                raise ValueError(f"{source} holds the processor of {title_of(name)}, not a {cls.__name__}.")
            titles = " or ".join(map(title_of, [*FAMILIES, *OTHER_FAMILIES]))
            raise ValueError(f"{source}: expected a checkpoint of {titles}, got {quoted(name)}.")
        if issubclass(processor_class, cls):
            return processor_class
        # The nearest of ours, because Siglip2Processor is derived from SiglipProcessor and must not read its folders.
        if processor_class is next((parent for parent in cls.__mro__ if parent in _CLASSES), None):
            return cls
        raise ValueError(f"{source} holds a {processor_class.__name__}, not a {cls.__name__}.")

    @classmethod
    def _from_config(
        cls,
        config: DualEncoderConfig | TowerConfig,
        checkpoint: Checkpoint | None,
        *,
        tokenizer: str | Path | None,
        text_cleanup: str | None = None,
        preprocessing: Preprocessing = "official",
        **image_settings: Any,
    ) -> "Self":
        """Do what `build_processor` does, for a configuration of this family."""
        if preprocessing not in get_args(Preprocessing):
            raise ValueError(
                f"preprocessing must be one of {', '.join(get_args(Preprocessing))}, got {preprocessing!r}."
            )
        if is_single_tower(config):
            config = family_of(config).config(**{config.base_config_key: config.to_dict()})
        image, text = cls._settings_from_config(config)
        if checkpoint is not None:
            image |= checkpoint.image_settings
            text |= checkpoint.text_settings
            tokenizer = tokenizer or checkpoint.vocabulary
        if preprocessing == "official":
            image["resize_engine"] = "official"
        else:
            image = {name: value for name, value in image.items() if name not in ("openai_order", "rgb_first")}
        image_processor = cls.image_processor_type(**(image | image_settings))
        if text_cleanup is not None:
            if not cls.has_text_cleanup:
                raise ValueError(
                    f"text_cleanup is for SigLIP, CLIP's cleaning is a fixed part of it: got {text_cleanup!r}."
                )
            text["text_cleanup"] = text_cleanup
        size = config.text_config.vocab_size
        if tokenizer is None:
            name = checkpoint.layout.names_tokenizer if checkpoint is not None else None
            return cls(image_processor, cls._bundled_tokenizer(size, name, **text))
        vocabulary = cls._load_tokenizer(tokenizer, **text)
        if len(vocabulary) != size:
            raise ValueError(
                f"The vocabulary {tokenizer} has {len(vocabulary)} pieces and the model has embeddings for {size}: "
                "pass the one it was trained with."
            )
        return cls(image_processor, vocabulary)

    @classmethod
    def _settings_from_config(cls, config: DualEncoderConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the settings of the image processor and those of the tokenizer that follow from a configuration."""
        raise NotImplementedError

    @classmethod
    def _bundled_tokenizer(cls, vocabulary_size: int, name: str | None, **settings: Any) -> DualEncoderTokenizer | None:
        """Return the tokenizer that is part of this package, for a model of the official vocabulary's size.

        `name` is the tokenizer that the source states, None where it states none.
        """
        return None

    @classmethod
    def _load_tokenizer(cls, source: str | Path, **settings: Any) -> DualEncoderTokenizer:
        """Load a tokenizer from a file, a folder or a Hub id; VocabularyNotFoundError where it holds no vocabulary."""
        if Path(source).is_file():
            return cls.tokenizer_type.from_file(source, **settings)
        try:
            return cls.tokenizer_type.from_pretrained(str(source), **settings)
        except OSError as error:
            raise FileNotFoundError(f"{source} is neither a file, nor a folder, nor a Hub id within reach.") from error
        except VocabularyNotFoundError as error:
            if Path(source).exists():
                raise
            raise VocabularyNotFoundError(
                f"{source} is no file here, no folder, and no Hub id with a vocabulary."
            ) from error


class CLIPProcessor(DualEncoderProcessor):
    """CLIP's images and texts."""

    image_processor: CLIPImageProcessor
    tokenizer: CLIPTokenizer

    image_processor_type = CLIPImageProcessor
    tokenizer_type = CLIPTokenizer

    @classmethod
    def _settings_from_config(cls, config: DualEncoderConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        size = config.vision_config.image_size
        image = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
        return image, {"model_max_length": config.text_config.max_position_embeddings}

    @classmethod
    def _bundled_tokenizer(cls, vocabulary_size: int, name: str | None, **settings: Any) -> DualEncoderTokenizer | None:
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
    def _settings_from_config(cls, config: DualEncoderConfig) -> tuple[dict[str, Any], dict[str, Any]]:
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
    def _settings_from_config(cls, config: DualEncoderConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        text = config.text_config
        return (
            {"patch_size": config.vision_config.patch_size},
            {"model_max_length": text.max_position_embeddings, "pad_token_id": text.pad_token_id},
        )


def holds_image_settings(folder: Path) -> bool:
    """Return whether a folder states its pixels: in a file of their own, or as transformers 5 saves a processor."""
    own_file, processor_file = folder / "preprocessor_config.json", folder / "processor_config.json"
    return own_file.is_file() or "image_processor" in read_json(processor_file, {})


def text_settings(config_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the tokenizer that follow from a `config.json`, of both towers or one."""
    length = (config_dict.get("text_config") or config_dict).get("max_position_embeddings")
    return {"model_max_length": length} if length else {}


def _other_model_type(folder: Path) -> str | None:
    """Return the `model_type` of transformers' other families that a folder of processor files alone is for."""
    name = read_json(folder / "processor_config.json", {}).get("processor_class")
    if name in (own.__name__ for own in _CLASSES):  # of which transformers' families may have one too
        return None
    return next((key for key, family in OTHER_FAMILIES.items() if family.processor == name), None)


_CLASSES: tuple[type[DualEncoderProcessor], ...] = (CLIPProcessor, SiglipProcessor, Siglip2Processor)


def _names(processor_class: type[DualEncoderProcessor]) -> Iterator[str]:
    """Yield the names of a processor in its sources: the `model_type`s that it is for, its image processor's two."""
    for family in FAMILIES.values():
        if family.processor == processor_class.__name__:
            yield from family.model_types
    image_processor = processor_class.image_processor_type.__name__
    yield image_processor
    yield image_processor.replace("ImageProcessor", "FeatureExtractor")  # in folders of 2021


_CLASS_BY_NAME = {name: processor_class for processor_class in _CLASSES for name in _names(processor_class)}


def part_of_processor(cls: type[Part], name: str, source: str | Path, **kwargs: Any) -> Part:
    """Return the image processor or the tokenizer of `DualEncoderProcessor.from_pretrained(source, **kwargs)`.

    Raises ValueError where it is of another class than `cls`, or where the source has none.
    """
    part = getattr(DualEncoderProcessor.from_pretrained(source, **kwargs), name)
    if not isinstance(part, cls):
        raise ValueError(f"{source} has {f'a {type(part).__name__}' if part else f'no {name}'}, not a {cls.__name__}.")
    return part


def build_processor(
    config: DualEncoderConfig | TowerConfig,
    checkpoint: Checkpoint | None = None,
    *,
    tokenizer: str | Path | None = None,
    text_cleanup: str | None = None,
    preprocessing: Preprocessing = "official",
    **image_settings: Any,
) -> DualEncoderProcessor:
    """Build the processor of an official checkpoint from its configuration and from what the checkpoint states.

    `preprocessing` is "official" for pixels as the family's own code makes them, with which it was trained, or "hub"
    for those of the folders that transformers reads; image settings given by name come first.
    `tokenizer` is OpenAI's `bpe_simple_vocab_16e6.txt.gz`, a SentencePiece `.model`, a `tokenizer.json`, a folder or a
    Hub id; without it CLIP gets the vocabulary of this package and SigLIP takes images only. `text_cleanup` is a key
    of `TEXT_CLEANUPS`, for SigLIP. Raises ValueError where the vocabulary is not of the size the model has.
    """
    processor_class = DualEncoderProcessor._processor_class(config.model_type, type(config).__name__)
    return processor_class._from_config(
        config,
        checkpoint,
        tokenizer=tokenizer,
        text_cleanup=text_cleanup,
        preprocessing=preprocessing,
        **image_settings,
    )
