"""CLIP under transformers' class names: configuration, towers, output classes."""

from transformers.models.clip.modeling_clip import CLIPOutput

from ..configuration import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from .dual_encoder import DualEncoderModel
from .towers import ImageClassifier, TextTower, TextTowerWithProjection, VisionTower, VisionTowerWithProjection


class CLIPVisionModel(VisionTower):
    """CLIP's image tower."""

    config: CLIPVisionConfig


class CLIPTextModel(TextTower):
    """CLIP's text tower."""

    config: CLIPTextConfig


class CLIPVisionModelWithProjection(VisionTowerWithProjection):
    """CLIP's image tower and `visual_projection`."""

    config: CLIPVisionConfig
    tower_class = CLIPVisionModel


class CLIPTextModelWithProjection(TextTowerWithProjection):
    """CLIP's text tower and `text_projection`."""

    config: CLIPTextConfig
    tower_class = CLIPTextModel


class CLIPModel(DualEncoderModel):
    """CLIP (arXiv:2103.00020)."""

    config: CLIPConfig
    base_model_prefix = "clip"
    vision_class = CLIPVisionModel
    text_class = CLIPTextModel
    output_class = CLIPOutput


class CLIPForImageClassification(ImageClassifier):
    """CLIP's image tower under a linear classifier of the mean over patches."""

    config: CLIPConfig
    tower_class = CLIPVisionModel
