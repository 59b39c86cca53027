"""How the two small checkpoints are trained: geometry and settings of each, on one page."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files

from ..configuration import CLIPConfig, DualEncoderConfig, SiglipConfig
from ..processing import DualEncoderProcessor, build_processor
from .picture import IMAGE_SIZE
from .vocabulary import MERGES, SENTENCEPIECE

PATCH_SIZE = 8
TEXT_LENGTH = 16


def siglip_config() -> SiglipConfig:
    """A SigLIP of 0.6 million parameters."""
    return SiglipConfig(
        vision_config=_tower(96, 3, 3) | {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE},
        text_config=_tower(64, 2, 2)
        | {"vocab_size": 91, "max_position_embeddings": TEXT_LENGTH, "projection_size": 96},
    )


def clip_config() -> CLIPConfig:
    """A CLIP of 0.6 million parameters; OpenAI's format has a head for every 64 of a tower's width."""
    return CLIPConfig(
        vision_config=_tower(128, 2, 2) | {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, "projection_dim": 64},
        text_config=_tower(64, 2, 1)
        | {"vocab_size": 674, "max_position_embeddings": TEXT_LENGTH, "projection_dim": 64},
        projection_dim=64,
    )


def _tower(width: int, depth: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
    }


@dataclass(frozen=True)
class Recipe:
    """One training run from first weights."""

    config: Callable[[], DualEncoderConfig]
    vocabulary: str  # a file among the assets
    updates: int
    batch_size: int
    learning_rate: float
    warmup_updates: int
    weight_decay: float
    adam_beta2: float

    def processor(self) -> DualEncoderProcessor:
        """Pixels and tokens as the family's official code makes them."""
        return build_processor(self.config(), tokenizer=str(files(__package__) / "assets" / self.vocabulary))


RECIPES = {
    "siglip": Recipe(siglip_config, SENTENCEPIECE, 2000, 128, 2e-3, 100, 0.05, 0.98),
    "clip": Recipe(clip_config, MERGES, 1500, 128, 2e-3, 100, 0.05, 0.98),
}
