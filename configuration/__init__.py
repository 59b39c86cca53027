"""Configurations, one per tower and family, with transformers' names and JSON."""

from .base import (
    DualEncoderConfig,
    SquareViTConfig,
    TextConfig,
    TowerConfig,
    TransformerConfig,
    VisionConfig,
    ViTConfig,
)
from .clip import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from .clip_resnet import CLIPResNetConfig, CLIPResNetVisionConfig
from .families import FAMILIES, Family, carries_code, describe_model_type, family_of, is_single_tower, loader_of
from .siglip import SiglipConfig, SiglipTextConfig, SiglipVisionConfig
from .siglip2 import Siglip2Config, Siglip2TextConfig, Siglip2VisionConfig

__all__ = [
    "FAMILIES",
    "CLIPConfig",
    "CLIPResNetConfig",
    "CLIPResNetVisionConfig",
    "CLIPTextConfig",
    "CLIPVisionConfig",
    "DualEncoderConfig",
    "Family",
    "Siglip2Config",
    "Siglip2TextConfig",
    "Siglip2VisionConfig",
    "SiglipConfig",
    "SiglipTextConfig",
    "SiglipVisionConfig",
    "SquareViTConfig",
    "TextConfig",
    "TowerConfig",
    "TransformerConfig",
    "ViTConfig",
    "VisionConfig",
    "carries_code",
    "describe_model_type",
    "family_of",
    "is_single_tower",
    "loader_of",
]
