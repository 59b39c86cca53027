"""Configurations, one per tower and family, with transformers' names and JSON."""

from .accepted_versions import check_versions  # first: what is installed may be too old for all else
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
from .clip_resnet import CLIPResNetConfig, CLIPResNetVisionConfig, ResNetConfig
from .families import FAMILIES, Family, carries_code, describe_model_type, family_of, is_single_tower, loader_of
from .other_families import (
    OTHER_FAMILIES,
    OtherFamily,
    check_pooled,
    check_tower,
    max_text_length,
    other_family_of,
    output_class,
    title_of,
)
from .siglip import SiglipConfig, SiglipTextConfig, SiglipVisionConfig
from .siglip2 import Siglip2Config, Siglip2TextConfig, Siglip2VisionConfig

__all__ = [
    "FAMILIES",
    "OTHER_FAMILIES",
    "CLIPConfig",
    "CLIPResNetConfig",
    "CLIPResNetVisionConfig",
    "CLIPTextConfig",
    "CLIPVisionConfig",
    "DualEncoderConfig",
    "Family",
    "OtherFamily",
    "ResNetConfig",
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
    "check_pooled",
    "check_tower",
    "check_versions",
    "describe_model_type",
    "family_of",
    "is_single_tower",
    "loader_of",
    "max_text_length",
    "other_family_of",
    "output_class",
    "title_of",
]
