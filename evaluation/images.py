"""Embeddings of all images of a data set that can be read."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..inference.embedding import BATCH_SIZE
from ..modeling import DualEncoderModel
from ..processing import DualEncoderProcessor
from ..processing.image_input import READ_ERRORS, open_image


class SkippedImage(NamedTuple):
    """An image that was left out."""

    image: str
    reason: str


class EmbeddedImages(NamedTuple):
    """The unit vectors `embeds` (kept, dim) of the images that could be read, and their places `kept` in the source."""

    embeds: Tensor
    kept: list[int]
    skipped: list[SkippedImage]
    reused: int  # how many of the embeddings were known before


def embed_images(
    model: DualEncoderModel,
    processor: DualEncoderProcessor,
    images: Iterable[tuple[str, Any]],
    *,
    known: Mapping[str, Tensor] | None = None,
    batch_size: int = BATCH_SIZE,
    advance: Callable[[int], object] = lambda count: None,
) -> EmbeddedImages:
    """Embed images, each a pair of its name and of anything that an image processor takes, and skip damaged ones.

    Names in `known` have an embedding (dim,) already, and are not opened. `advance` is called with the number of images
    that were taken so far. Raises ValueError if none can be read; its message has the first reason.
    """
    kept: list[int] = []
    skipped: list[SkippedImage] = []
    vectors: dict[int, Tensor] = {}  # of images that are known
    computed: list[int] = []  # the places of the others

    def readable() -> Iterator[Any]:
        for place, (name, image) in enumerate(images):
            advance(place)
            try:
                if known is not None and (vector := known.get(name)) is not None:
                    vectors[place] = vector
                    kept.append(place)
                    continue
                opened = open_image(image)
            except READ_ERRORS as error:
                skipped.append(SkippedImage(name, str(error)))
                continue
            kept.append(place)
            computed.append(place)
            yield opened

    embeds = model.encode(readable(), processor, kind="image", batch_size=batch_size)
    if not kept:
        first = f", the first: {skipped[0].reason}" if skipped else ""
        raise ValueError(f"Expected images that can be read, got {len(skipped)} that cannot{first}")
    vectors |= dict(zip(computed, embeds, strict=True))
    return EmbeddedImages(torch.stack([vectors[place] for place in kept]), kept, skipped, len(kept) - len(computed))
