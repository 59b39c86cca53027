"""Models: one encoder for all families, transformers' class names."""

from ..configuration import check_versions  # first: what is installed may be too old for all else
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
from .siglip2 import Siglip2ForImageClassification, Siglip2Model, Siglip2TextModel, Siglip2VisionModel

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
    "Siglip2ForImageClassification",
    "Siglip2Model",
    "Siglip2TextModel",
    "Siglip2VisionModel",
    "SiglipForImageClassification",
    "SiglipModel",
    "SiglipTextModel",
    "SiglipVisionModel",
    "SigmoidLoss",
    "SoftmaxLoss",
    "sigmoid_loss",
    "softmax_loss",
]
