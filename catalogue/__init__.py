"""Published checkpoints: the facts about each, their download, and the files that are part of the package.

Importing it imports neither torch nor transformers; `download`, which needs huggingface_hub, is not imported by it.
"""

from .bundled import (
    BUNDLED,
    BUNDLED_LICENSE,
    PHOTOGRAPH,
    BundledCheckpoint,
    bundled_checkpoint,
    bundled_name,
    describe_training,
)
from .official_checkpoint import OfficialCheckpoint, Vocabulary
from .published import CATALOGUE, official_checkpoint

__all__ = [
    "BUNDLED",
    "BUNDLED_LICENSE",
    "CATALOGUE",
    "PHOTOGRAPH",
    "BundledCheckpoint",
    "OfficialCheckpoint",
    "Vocabulary",
    "bundled_checkpoint",
    "bundled_name",
    "describe_training",
    "official_checkpoint",
]
