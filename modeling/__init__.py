"""Models: one encoder, two families, transformers' class names."""

from ..losses import SigmoidLoss, SoftmaxLoss, sigmoid_loss, softmax_loss
from .clip import (
    CLIPForImageClassification,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)
from .clip_resnet import CLIPResNetForImageClassification, CLIPResNetModel, CLIPResNetVisionModel
from .dual_encoder import DualEncoderModel
from .siglip import SiglipForImageClassification, SiglipModel, SiglipTextModel, SiglipVisionModel

__all__ = [
    "CLIPForImageClassification",
    "CLIPModel",
    "CLIPResNetForImageClassification",
    "CLIPResNetModel",
    "CLIPResNetVisionModel",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "CLIPVisionModel",
    "CLIPVisionModelWithProjection",
    "DualEncoderModel",
    "SiglipForImageClassification",
    "SiglipModel",
    "SiglipTextModel",
    "SiglipVisionModel",
    "SigmoidLoss",
    "SoftmaxLoss",
    "sigmoid_loss",
    "softmax_loss",
]
