"""How the two small checkpoints are trained: geometry and settings of each, on one page."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..catalogue import bundled_checkpoint
from ..configuration import CLIPConfig, DualEncoderConfig, SiglipConfig
from ..modeling import DualEncoderModel
from ..processing import DualEncoderProcessor, build_processor
from .dataset import ShapesDataset
from .picture import IMAGE_SIZE

PATCH_SIZE = 8
TEXT_LENGTH = 16
_PICTURES = 500  # that the first weights are made from
_SMALL_VARIANCE = 0.01  # of pixels from -1 to 1; directions with less are not blown up
_AMPLITUDE = 0.5  # of the waves of positions


def siglip_config() -> SiglipConfig:
    """A SigLIP of 0.3 million parameters."""
    return SiglipConfig(
        vision_config=_tower(64, 3, 2) | {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE},
        text_config=_tower(64, 1, 2) | {"vocab_size": 91, "max_position_embeddings": TEXT_LENGTH},
    )


def clip_config() -> CLIPConfig:
    """A CLIP of 0.4 million parameters; OpenAI's format has a head for every 64 of a tower's width."""
    return CLIPConfig(
        vision_config=_tower(64, 3, 1) | {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, "projection_dim": 64},
        text_config=_tower(64, 2, 1)
        | {"vocab_size": 672, "max_position_embeddings": TEXT_LENGTH, "projection_dim": 64},
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
    name: str  # of the bundled checkpoint
    updates: int
    batch_size: int
    learning_rate: float
    warmup_updates: int
    weight_decay: float
    adam_beta2: float

    def vocabulary_file(self) -> Path:
        """Where the vocabulary lies."""
        return bundled_checkpoint(self.name).vocabulary

    def processor(self) -> DualEncoderProcessor:
        """Pixels and tokens as the family's official code makes them."""
        return build_processor(self.config(), tokenizer=self.vocabulary_file())

    def model(self, seed: int = 0) -> DualEncoderModel:
        """The first weights: those of the family, and a start for the eye."""
        torch.manual_seed(seed)
        config = self.config()
        model = DualEncoderModel.class_for(config)(config)
        pairs = ShapesDataset("train", _PICTURES)
        pictures = [pairs[index]["image"] for index in range(_PICTURES)]
        open_eyes(model, self.processor()(images=pictures)["pixel_values"])
        return model


RECIPES = {
    "siglip": Recipe(siglip_config, "siglip-shapes", 3000, 64, 1e-3, 100, 0.05, 0.98),
    "clip": Recipe(clip_config, "clip-shapes", 3000, 64, 1e-3, 100, 0.05, 0.98),
}


@torch.no_grad()
def open_eyes(model: DualEncoderModel, pixels: Tensor) -> None:
    """Start with patches that are whitened and positions that are waves; else shapes stay unseen for a long time.

    Pixels of pictures (pictures, 3, side, side) say what is usual in a patch, and this is what whitening takes away.
    """
    embeddings: Any = model.vision_model.embeddings
    convolution, positions = embeddings.patch_embedding, embeddings.position_embedding.weight
    width, grid = positions.shape[1], pixels.shape[-1] // PATCH_SIZE
    patches = nn.functional.unfold(pixels, PATCH_SIZE, stride=PATCH_SIZE).transpose(1, 2).flatten(0, 1)
    variances, directions = torch.linalg.eigh(torch.cov(patches.T))  # in rising order
    scaled = directions[:, -width:] / (variances[-width:] + _SMALL_VARIANCE).sqrt()
    kernel = nn.init.orthogonal_(torch.empty(width, width)) @ scaled.T  # (width, 3 * patch * patch)
    convolution.weight.copy_(kernel.view_as(convolution.weight))
    if convolution.bias is not None:
        convolution.bias.copy_(-kernel @ patches.mean(dim=0))
    waves = torch.arange(grid)[:, None] * 100.0 ** -torch.linspace(0, 1, width // 4)  # (grid, width / 4)
    waves = _AMPLITUDE * torch.cat([waves.sin(), waves.cos()], dim=1)
    both = torch.cat([waves.repeat(grid, 1), waves.repeat_interleave(grid, dim=0)], dim=1)  # across, then down
    positions[-grid * grid :] = both
