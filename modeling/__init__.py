"""Models: one encoder, two families, transformers' class names."""

from .clip import (
    CLIPForImageClassification,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)
from .dual_encoder import DualEncoderModel
from .losses import sigmoid_loss, softmax_loss
from .siglip import SiglipForImageClassification, SiglipModel, SiglipTextModel, SiglipVisionModel
