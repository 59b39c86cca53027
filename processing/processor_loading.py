"""From a folder, a Hub id or an official checkpoint to its processor: which class, which settings, which vocabulary."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from transformers import AutoConfig, PreTrainedConfig

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
from .image_processors import DualEncoderImageProcessor
from .processor import PROCESSORS, DualEncoderProcessor
from .tokenization import DualEncoderTokenizer, VocabularyNotFoundError

Preprocessing = Literal["official", "hub"]
Part = TypeVar("Part", DualEncoderImageProcessor, DualEncoderTokenizer)

_IMAGE_SETTINGS = {name for cls in PROCESSORS for name in cls.image_processor_type.valid_kwargs.__annotations__}


def load_processor(
    cls: type[DualEncoderProcessor],
    pretrained_model_name_or_path: str | Path,
    tokenizer: str | Path | None,
    **kwargs: Any,
) -> DualEncoderProcessor:
    """Do what `DualEncoderProcessor.from_pretrained` does, called on `cls`."""
    source = str(pretrained_model_name_or_path)
    image_settings = {name: value for name, value in kwargs.items() if name in _IMAGE_SETTINGS}
    if is_checkpoint_file(source) or is_name(source):
        checkpoint, entry = read_source(source, **pop_options(kwargs))
        tokenizer = tokenizer or published_vocabulary(source, entry)
        chosen = {name: kwargs[name] for name in ("text_cleanup", "preprocessing") if name in kwargs}
        processor_class = class_of(cls, checkpoint.config.model_type, source)
        return _build(processor_class, checkpoint.config, checkpoint, tokenizer=tokenizer, **chosen, **image_settings)
    other = {name: value for name, value in kwargs.items() if name not in _IMAGE_SETTINGS}
    check_settings(source, kwargs.get("subfolder"))
    try:
        config_dict, _ = PreTrainedConfig.get_config_dict(source, **other)
    except OSError:  # a folder of processor files alone
        config_dict = {}
    model_type = config_dict.get("model_type") or _other_model_type(Path(source))
    if model_type in OTHER_FAMILIES and cls is DualEncoderProcessor:
        config = DualEncoderConfig.from_pretrained(source, **other) if config_dict else None
        if wrong := {"text_cleanup", "preprocessing"} & kwargs.keys():
            raise ValueError(f"{source}: the processor is transformers' own, which has no {' and '.join(wrong)}.")
        return _load_other(model_type, source, tokenizer or source, config, **kwargs)
    if model_type:
        class_of(cls, model_type, source)  # another kind of model may have no image processor
    with suggest_names(source):
        image_dict, _ = DualEncoderImageProcessor.get_image_processor_dict(source, **other)
    type_name = image_dict.get("image_processor_type") or image_dict.get("feature_extractor_type")
    processor_class = class_of(cls, model_type or type_name, source)
    other |= text_settings(config_dict)
    image_processor = processor_class.image_processor_type.from_dict(image_dict, **image_settings)
    try:
        return processor_class(image_processor, _load_tokenizer(processor_class, tokenizer or source, **other))
    except VocabularyNotFoundError:
        if tokenizer is not None:
            raise
        return processor_class(image_processor)


def load_of_two(vision: str | Path, text: str | Path) -> DualEncoderProcessor:
    """Do what `DualEncoderProcessor.from_parts` does."""
    return _load_other("vision-text-dual-encoder", str(vision), text, AutoConfig.from_pretrained(text))


def _load_other(
    model_type: str, images: str, texts: str | Path, config: PreTrainedConfig | None, **kwargs: Any
) -> DualEncoderProcessor:
    from .other_processor import OtherProcessor  # transformers' Auto classes take a while

    return OtherProcessor.load(model_type, images, texts, config, **kwargs)


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
    return _build(
        class_of(DualEncoderProcessor, config.model_type, type(config).__name__),
        config,
        checkpoint,
        tokenizer=tokenizer,
        text_cleanup=text_cleanup,
        preprocessing=preprocessing,
        **image_settings,
    )


def _build(
    cls: type[DualEncoderProcessor],
    config: DualEncoderConfig | TowerConfig,
    checkpoint: Checkpoint | None,
    *,
    tokenizer: str | Path | None,
    text_cleanup: str | None = None,
    preprocessing: Preprocessing = "official",
    **image_settings: Any,
) -> DualEncoderProcessor:
    """Do what `build_processor` does, for a configuration of the family of `cls`."""
    if preprocessing not in get_args(Preprocessing):
        raise ValueError(f"preprocessing must be one of {', '.join(get_args(Preprocessing))}, got {preprocessing!r}.")
    if is_single_tower(config):
        config = family_of(config).config(**{config.base_config_key: config.to_dict()})
    image, text = cls.settings_from_config(config)
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
        return cls(image_processor, cls.bundled_tokenizer(size, name, **text))
    vocabulary = _load_tokenizer(cls, tokenizer, **text)
    if len(vocabulary) != size:
        raise ValueError(
            f"The vocabulary {tokenizer} has {len(vocabulary)} pieces and the model has embeddings for {size}: "
            "pass the one it was trained with."
        )
    return cls(image_processor, vocabulary)


def _load_tokenizer(
    processor_class: type[DualEncoderProcessor], source: str | Path, **settings: Any
) -> DualEncoderTokenizer:
    """Load a tokenizer from a file, a folder or a Hub id; VocabularyNotFoundError where it holds no vocabulary."""
    tokenizer_type = processor_class.tokenizer_type
    if Path(source).is_file():
        return tokenizer_type.from_file(source, **settings)
    try:
        return tokenizer_type.from_pretrained(str(source), **settings)
    except OSError as error:
        raise FileNotFoundError(f"{source} is neither a file, nor a folder, nor a Hub id within reach.") from error
    except VocabularyNotFoundError as error:
        if Path(source).exists():
            raise
        raise VocabularyNotFoundError(
            f"{source} is no file here, no folder, and no Hub id with a vocabulary."
        ) from error


def class_of(cls: type[DualEncoderProcessor], name: str | None, source: str) -> type[DualEncoderProcessor]:
    """Return the class for a `model_type`, that of a tower included, or for the name of an image processor.

    It is `cls` itself where a user derived that from the one that the name stands for. Raises ValueError for an unknown
    name, or one that stands for a class neither derived from `cls` nor the one that `cls` is derived from.
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
    if processor_class is next((parent for parent in cls.__mro__ if parent in PROCESSORS), None):
        return cls
    raise ValueError(f"{source} holds a {processor_class.__name__}, not a {cls.__name__}.")


def _names(processor_class: type[DualEncoderProcessor]) -> Iterator[str]:
    """Yield the names of a processor in its sources: the `model_type`s that it is for, its image processor's two."""
    for family in FAMILIES.values():
        if family.processor == processor_class.__name__:
            yield from family.model_types
    image_processor = processor_class.image_processor_type.__name__
    yield image_processor
    yield image_processor.replace("ImageProcessor", "FeatureExtractor")  # in folders of 2021


_CLASS_BY_NAME = {name: processor_class for processor_class in PROCESSORS for name in _names(processor_class)}


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
    if name in (own.__name__ for own in PROCESSORS):  # of which transformers' families may have one too
        return None
    return next((key for key, family in OTHER_FAMILIES.items() if family.processor == name), None)
