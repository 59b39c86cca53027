"""An image classifier that starts as the zero-shot classifier of a dual encoder."""

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from PIL import Image

from ..catalogue import PHOTOGRAPH
from ..modeling import DualEncoderModel
from ..modeling.towers import ImageClassifier
from ..processing import DualEncoderProcessor
from .zero_shot import DEFAULT_TEMPLATE, ZeroShotClassifier

Classifier = TypeVar("Classifier", bound=ImageClassifier)


@torch.no_grad()
def classifier_from_labels(
    cls: type[Classifier],
    model: DualEncoderModel,
    processor: DualEncoderProcessor,
    labels: Sequence[str],
    templates: str | Sequence[str] = DEFAULT_TEMPLATE,
) -> Classifier:
    """Do what `ImageClassifier.from_labels` says; the photograph is the one of the package."""
    if not isinstance(model, DualEncoderModel) or type(model.vision_model) is not cls.tower_class:
        tower = cls.tower_class.__name__
        raise TypeError(f"{cls.__name__} starts from a dual encoder with a {tower}, got a {type(model).__name__}.")
    zero_shot = ZeroShotClassifier(model, processor, labels, templates)
    embeds = zero_shot.class_embeds.to(model.device)  # (labels, dim)
    photograph = processor(images=Image.open(PHOTOGRAPH)).to(model.device)
    inputs = {name: value for name, value in photograph.items() if name in model.image_input_names}
    length = model.get_image_features(**inputs, return_dict=True).pooler_output.float().norm()
    config = copy.deepcopy(model.config)
    config.classifier_pooling = "pooled"
    config.id2label = dict(enumerate(zero_shot.labels))
    config.label2id = {label: index for index, label in enumerate(zero_shot.labels)}
    classifier = cls(config).to(model.device, model.dtype).eval()
    classifier.vision_model.load_state_dict(model.vision_model.state_dict())
    weight = embeds * (model.logit_scale.float().exp() / length)
    if config.visual_projection:
        weight = weight @ model.visual_projection.weight.float()  # (labels, width)
    linear: Any = classifier.classifier
    linear.weight.copy_(weight)
    linear.bias.copy_(model.logit_bias if config.has_logit_bias else torch.zeros(()))
    return classifier
