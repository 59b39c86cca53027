"""Configurations, one per tower and family with transformers' names and JSON; the catalogue of official checkpoints."""

from .base import DualEncoderConfig, TextConfig, TowerConfig, VisionConfig
from .bundled import BUNDLED, bundled_checkpoint
from .catalogue import CATALOGUE, official_checkpoint
from .clip import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from .official import OfficialCheckpoint, Vocabulary, check_geometry
from .siglip import SiglipConfig, SiglipTextConfig, SiglipVisionConfig
