"""The words around the name of a class, and the embeddings of classes that they give."""

import os
from collections.abc import Iterable

import torch
from torch import Tensor

from ..messages import quoted
from ..modeling import DualEncoderModel
from ..processing import DualEncoderProcessor
from .embedding import TEXTS_AT_ONCE
from .labels import check_labels, read_labels

_MOST_TEMPLATES = 1000  # ten times the longest list of the papers

# "openai80" are the templates that OpenAI wrote for ImageNet: github.com/openai/CLIP, MIT licence,
# notebooks/Prompt_Engineering_for_ImageNet.ipynb. "siglip" is what transformers' zero-shot pipeline puts around labels.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "siglip": ("This is a photo of {}.",),
    "openai80": (
        "a bad photo of a {}.",
        "a photo of many {}.",
        "a sculpture of a {}.",
        "a photo of the hard to see {}.",
        "a low resolution photo of the {}.",
        "a rendering of a {}.",
        "graffiti of a {}.",
        "a bad photo of the {}.",
        "a cropped photo of the {}.",
        "a tattoo of a {}.",
        "the embroidered {}.",
        "a photo of a hard to see {}.",
        "a bright photo of a {}.",
        "a photo of a clean {}.",
        "a photo of a dirty {}.",
        "a dark photo of the {}.",
        "a drawing of a {}.",
        "a photo of my {}.",
        "the plastic {}.",
        "a photo of the cool {}.",
        "a close-up photo of a {}.",
        "a black and white photo of the {}.",
        "a painting of the {}.",
        "a painting of a {}.",
        "a pixelated photo of the {}.",
        "a sculpture of the {}.",
        "a bright photo of the {}.",
        "a cropped photo of a {}.",
        "a plastic {}.",
        "a photo of the dirty {}.",
        "a jpeg corrupted photo of a {}.",
        "a blurry photo of the {}.",
        "a photo of the {}.",
        "a good photo of the {}.",
        "a rendering of the {}.",
        "a {} in a video game.",
        "a photo of one {}.",
        "a doodle of a {}.",
        "a close-up photo of the {}.",
        "a photo of a {}.",
        "the origami {}.",
        "the {} in a video game.",
        "a sketch of a {}.",
        "a doodle of the {}.",
        "a origami {}.",
        "a low resolution photo of a {}.",
        "the toy {}.",
        "a rendition of the {}.",
        "a photo of the clean {}.",
        "a photo of a large {}.",
        "a rendition of a {}.",
        "a photo of a nice {}.",
        "a photo of a weird {}.",
        "a blurry photo of a {}.",
        "a cartoon {}.",
        "art of a {}.",
        "a sketch of the {}.",
        "a embroidered {}.",
        "a pixelated photo of a {}.",
        "itap of the {}.",
        "a jpeg corrupted photo of the {}.",
        "a good photo of a {}.",
        "a plushie {}.",
        "a photo of the nice {}.",
        "a photo of the small {}.",
        "a photo of the weird {}.",
        "the cartoon {}.",
        "art of the {}.",
        "a drawing of the {}.",
        "a photo of the large {}.",
        "a black and white photo of a {}.",
        "the plushie {}.",
        "a dark photo of a {}.",
        "itap of a {}.",
        "graffiti of the {}.",
        "a toy {}.",
        "itap of my {}.",
        "a photo of a cool {}.",
        "a photo of a small {}.",
        "a tattoo of the {}.",
    ),
}


def read_templates(option: str) -> tuple[str, ...]:
    """Return the templates of a name in `TEMPLATES`, a template itself ("a photo of a {}."), or those of a text file.

    A file has a template on each line, in UTF-8. Raises OSError for a file that cannot be read, and ValueError for a
    template without `{}`.
    """
    if option in TEMPLATES:
        return TEMPLATES[option]
    if "{}" in option:
        return (option,)
    if not os.path.exists(option):
        problem = "no file here" if option.endswith(".txt") else "neither"
        raise FileNotFoundError(
            f'Expected templates: {", ".join(TEMPLATES)}, a sentence such as "a photo of a {{}}.", or a text file with '
            f"one on each line, got {quoted(option)}, which is {problem}."
        )
    return check_templates(read_labels(f"@{option}"))


def check_templates(templates: Iterable[str]) -> tuple[str, ...]:
    """Return the templates. Raises ValueError unless there are 1 to 1,000, each with `{}`, where the label goes."""
    if isinstance(templates, str) or not isinstance(templates, Iterable):
        raise ValueError(f"Expected a list of templates, got {quoted(templates)}.")
    if not (templates := tuple(templates)):
        raise ValueError("Expected at least one template, got none.")
    if len(templates) > _MOST_TEMPLATES:
        raise ValueError(f"Expected at most {_MOST_TEMPLATES:,} templates, got {len(templates):,}.")
    if wrong := [template for template in templates if not isinstance(template, str) or "{}" not in template]:
        raise ValueError(f"Expected templates with {{}} where the label goes, got {quoted(wrong[0])}.")
    return tuple(map(str, templates))


def class_embeddings(
    model: DualEncoderModel, processor: DualEncoderProcessor, labels: Iterable[str], templates: Iterable[str]
) -> Tensor:
    """Return the embeddings (classes, dim) of labels: the mean over all templates, again of unit length.

    `{}` in a template stands for the label. Raises ValueError for labels that `check_labels` refuses and for templates
    that `check_templates` refuses.
    """
    labels, templates = check_labels(labels), check_templates(templates)
    at_once = max(1, TEXTS_AT_ONCE // len(templates))  # 80 templates of 1,000 labels would take 250 MB
    means = []
    for start in range(0, len(labels), at_once):
        some = labels[start : start + at_once]
        texts = [template.replace("{}", label) for label in some for template in templates]
        embeds = model.encode(texts, processor, kind="text").unflatten(0, (len(some), len(templates)))
        means.append(embeds.mean(dim=1))
    return torch.nn.functional.normalize(torch.cat(means), dim=-1)
