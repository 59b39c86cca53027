"""Published checkpoints: what is known of each, their download, and the two small ones that are part of the package."""

from .bundled import BUNDLED, bundled_checkpoint
from .official_checkpoint import OfficialCheckpoint, Vocabulary
from .published import CATALOGUE, official_checkpoint

__all__ = ["BUNDLED", "CATALOGUE", "OfficialCheckpoint", "Vocabulary", "bundled_checkpoint", "official_checkpoint"]
