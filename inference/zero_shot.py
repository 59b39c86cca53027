"""Zero-shot classification: every label is encoded once, and the family decides what a score is."""

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError

from ..modeling import DualEncoderModel
from ..processing import DualEncoderProcessor

BATCH = 16  # images encoded at a time


def load_model(source: str | Path) -> DualEncoderModel:
    """A model with exactly the weights of `source`; a missing or unexpected one is a ValueError, not a report."""
    try:
        model, info = DualEncoderModel.from_pretrained(source, output_loading_info=True)
    except (SafetensorError, UnpicklingError, EOFError, RuntimeError) as error:  # truncated, forged, of other shapes
        raise ValueError(f"{source} holds no weights that can be read: {error}") from error
    problems = {name: sorted(map(str, keys)) for name, keys in info.items() if keys}
    if problems:
        raise ValueError(f"{source} does not hold exactly the weights of a {type(model).__name__}: {problems}.")
    return model


def scores(model: DualEncoderModel, logits: torch.Tensor) -> torch.Tensor:
    """Probabilities (images, texts) in float32: each for itself under a sigmoid loss, sharing 1 under softmax."""
    return logits.sigmoid() if model.config.loss == "sigmoid" else logits.softmax(dim=-1)


def classify_images(
    source: str | Path, images: Sequence[Path], texts: Sequence[str], tokenizer: Path | None = None
) -> list[list[float]]:
    """Scores of every image file under every text."""
    processor = DualEncoderProcessor.from_pretrained(source, **({"tokenizer": tokenizer} if tokenizer else {}))
    model = load_model(source)
    with torch.inference_mode():
        text_embeds = model.encode_text(**processor(text=list(texts)))
        rows: list[list[float]] = []
        for start in range(0, len(images), BATCH):
            pixels = processor(images=[str(image) for image in images[start : start + BATCH]])
            rows += scores(model, model.logits(model.encode_image(**pixels), text_embeds)).tolist()
    return rows
