"""Zero-shot classification of image files by texts."""

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

from safetensors import SafetensorError
from torch import Tensor

from ..modeling import DualEncoderModel
from ..processing import DualEncoderProcessor
from .embedding import embed_images, embed_texts

IMAGES_PER_BATCH = 16


def load_exact_model(source: str | Path) -> DualEncoderModel:
    """Load a model that has exactly the weights of `source`.

    Raises ValueError for a missing or unexpected weight, which `from_pretrained` only reports, and for an unreadable
    file.
    """
    try:
        model, info = DualEncoderModel.from_pretrained(source, output_loading_info=True)
    except (SafetensorError, UnpicklingError, EOFError, RuntimeError) as error:  # truncated, forged, other shapes
        raise ValueError(f"{source} holds no weights that can be read: {error}") from error
    problems = {name: sorted(map(str, keys)) for name, keys in info.items() if keys}
    if problems:
        raise ValueError(f"{source} does not hold exactly the weights of a {type(model).__name__}: {problems}.")
    return model


def probabilities(model: DualEncoderModel, logits: Tensor) -> Tensor:
    """Return the probability of every text for every image, from logits (images, texts).

    A model with the sigmoid loss scores each text independently; with the softmax loss the probabilities of an image
    sum to 1.
    """
    return logits.sigmoid() if model.config.loss == "sigmoid" else logits.softmax(dim=-1)


def classify_images(
    source: str | Path, images: Sequence[Path], texts: Sequence[str], tokenizer: Path | None = None
) -> list[list[float]]:
    """Return the probabilities of all texts for each image file; `tokenizer` is for a source without a vocabulary."""
    vocabulary = {"tokenizer": tokenizer} if tokenizer else {}
    processor = DualEncoderProcessor.from_pretrained(source, **vocabulary)
    model = load_exact_model(source)
    text_embeds = embed_texts(model, processor, texts)
    image_embeds = embed_images(model, processor, [str(image) for image in images], batch_size=IMAGES_PER_BATCH)
    return probabilities(model, model.logits(image_embeds, text_embeds)).tolist()
