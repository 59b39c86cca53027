"""Configurations, one per tower and family, with transformers' names and JSON."""

from .base import DualEncoderConfig, TextConfig, TowerConfig, VisionConfig
from .clip import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from .siglip import SiglipConfig, SiglipTextConfig, SiglipVisionConfig

__all__ = [
    "CLIPConfig",
    "CLIPTextConfig",
    "CLIPVisionConfig",
    "DualEncoderConfig",
    "SiglipConfig",
    "SiglipTextConfig",
    "SiglipVisionConfig",
    "TextConfig",
    "TowerConfig",
    "VisionConfig",
]
