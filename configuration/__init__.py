"""Configurations: one per tower and family, with transformers' names and JSON."""

from .base import DualEncoderConfig, TextConfig, TowerConfig, VisionConfig
from .clip import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from .siglip import SiglipConfig, SiglipTextConfig, SiglipVisionConfig
