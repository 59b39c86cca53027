"""Configurations, one per tower and family, with transformers' names and JSON."""

from .base import DualEncoderConfig, TextConfig, TowerConfig, VisionConfig
from .clip import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from .families import FAMILIES, Family, describe_model_type, family_of, is_single_tower, loader_of
from .siglip import SiglipConfig, SiglipTextConfig, SiglipVisionConfig

__all__ = [
    "FAMILIES",
    "CLIPConfig",
    "CLIPTextConfig",
    "CLIPVisionConfig",
    "DualEncoderConfig",
    "Family",
    "SiglipConfig",
    "SiglipTextConfig",
    "SiglipVisionConfig",
    "TextConfig",
    "TowerConfig",
    "VisionConfig",
    "describe_model_type",
    "family_of",
    "is_single_tower",
    "loader_of",
]
