"""Where a model looks in an image: a picture with the scores of texts."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from ..modeling import DualEncoderModel
from ..processing import DualEncoderProcessor
from ..processing.image_input import open_image
from .heat_map import draw_maps, patch_box
from .labels import check_labels
from .maps import attention_rollout, pooling_attention, similarity_map
from .zero_shot import probabilities

# The maps that depend on no text, and their titles.
_TEXTLESS_MAPS: dict[str, tuple[Callable[[DualEncoderModel, DualEncoderProcessor, Any], Tensor], str]] = {
    "attention": (pooling_attention, "Attention of the image's embedding"),
    "rollout": (attention_rollout, "Attention roll-out through all layers"),
}


class TextScore(NamedTuple):
    """How well a text fits an image. The softmax loss gives all texts together the probability 1."""

    text: str
    logit: float
    probability: float


def explain_image(
    model: DualEncoderModel,
    processor: DualEncoderProcessor,
    image: Any,
    texts: Sequence[str] = (),
    *,
    map: str = "similarity",
) -> tuple[Image.Image, list[TextScore]]:
    """Return a picture of where a model looks in an image, and how well each of the texts fits the whole image.

    The image is a file, a URL or a PIL image. `map` is "similarity", that of patches to each text (`similarity_map`);
    or it depends on no text and is "attention" (`pooling_attention`) or "rollout" (`attention_rollout`).
    """
    if map == "similarity" or texts:
        texts = check_labels(texts)
    picture = open_image(image, exif_transpose=bool(getattr(processor.image_processor, "do_exif_transpose", False)))
    scores: list[TextScore] = []
    if texts:
        text_embeds = model.encode(texts, processor, kind="text")
        logits = model.logits(model.encode([picture], processor), text_embeds)
        values = logits[0].tolist(), probabilities(model, logits)[0].tolist()
        scores = [TextScore(*score) for score in zip(texts, *values, strict=True)]
    lines = [f"{score.text}\n{describe_score(model, score, len(texts))}" for score in scores]
    if map == "similarity":
        maps, titles, unit = similarity_map(model, processor, picture, texts), lines, "cosine"
    else:
        find_map, title = _TEXTLESS_MAPS[map]
        maps, titles, unit = find_map(model, processor, picture)[None], ["\n".join([title, *lines])], "weight"
    box = patch_box(model, processor, picture, maps.shape[1:])
    return draw_maps(picture, maps, box, titles, unit=unit), scores


def describe_score(model: DualEncoderModel, score: TextScore, count: int) -> str:
    """Return the score of one of `count` texts in words."""
    if model.traits.loss == "sigmoid":
        return f"probability {score.probability:.2%} (logit {score.logit:.2f})"
    return f"logit {score.logit:.2f}" + (f", {score.probability:.2%} among {count} texts" if count > 1 else "")
