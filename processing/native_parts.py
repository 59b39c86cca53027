"""Image processors and tokenizers of transformers, converted to those of this package that do the same."""

from tempfile import TemporaryDirectory
from typing import TypeVar

from transformers import BaseImageProcessor, PreTrainedTokenizerBase

from .image_processors import DualEncoderImageProcessor
from .tokenization import DualEncoderTokenizer

Images = TypeVar("Images", bound=DualEncoderImageProcessor)
Texts = TypeVar("Texts", bound=DualEncoderTokenizer)
_BACKENDS = ("Pil", "Fast")  # how the names of transformers' own classes for one image processor may end


def own_image_processor(part: object, cls: type[Images], taker: str) -> Images:
    """Return an image processor of ours as it is, and one of transformers with the same settings in our class.

    Raises TypeError, in the name of the `taker`, for anything else, an image processor of another family among them.
    """
    if isinstance(part, cls):
        return part
    name = type(part).__name__
    for backend in _BACKENDS:
        name = name.removesuffix(backend)
    if not isinstance(part, BaseImageProcessor) or isinstance(part, DualEncoderImageProcessor) or name != cls.__name__:
        raise _refusal(part, cls, taker, "image_processor")
    return cls.from_dict(part.to_dict())


def own_tokenizer(part: object, cls: type[Texts], taker: str) -> Texts:
    """Return a tokenizer of ours as it is, and one of transformers with the same vocabulary in our class.

    Raises TypeError, in the name of the `taker`, for anything else, and for a vocabulary of another kind.
    """
    if isinstance(part, cls):
        return part
    if not isinstance(part, PreTrainedTokenizerBase) or isinstance(part, DualEncoderTokenizer):
        raise _refusal(part, cls, taker, "tokenizer")
    with TemporaryDirectory() as folder:
        part.save_pretrained(folder)
        try:
            tokenizer = cls.from_pretrained(folder)
        except ValueError as error:
            name = type(part).__name__
            raise TypeError(f"The vocabulary of this {name} is not one of {cls.__name__}: {error}") from error
    tokenizer.name_or_path = part.name_or_path
    return tokenizer


def _refusal(part: object, cls: type, taker: str, name: str) -> TypeError:
    return TypeError(
        f"{taker} takes a twinlens {cls.__name__} as {name}, got {type(part)}. One of transformers is converted if "
        f"it is of the same family; twinlens.processing.{cls.__name__}.from_pretrained loads one."
    )
