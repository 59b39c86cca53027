"""The recipes of the two small checkpoints: the geometry and the settings of each, on one page."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
_WHITENING_PICTURES = 500  # the statistics of patches come from so many
_VARIANCE_FLOOR = 0.01  # added to the variances of pixels (-1 to 1), so that noise is not amplified
_POSITION_AMPLITUDE = 0.5


def siglip_config() -> SiglipConfig:
    """Return the configuration of a SigLIP with 0.3 million parameters."""
    return SiglipConfig(
        vision_config=_tower(64, 3, 2) | {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE},
        text_config=_tower(64, 1, 2) | {"vocab_size": 91, "max_position_embeddings": TEXT_LENGTH},
    )


def clip_config() -> CLIPConfig:
    """Return the configuration of a CLIP with 0.4 million parameters.

    OpenAI's format has one attention head for every 64 of the width of a tower.
    """
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
    """One training run from random weights."""

    config: Callable[[], DualEncoderConfig]
    name: str  # the name of the bundled checkpoint
    updates: int
    batch_size: int
    learning_rate: float
    warmup_updates: int
    weight_decay: float
    adam_beta2: float

    def vocabulary_file(self) -> Path:
        """Return the path of the vocabulary."""
        return bundled_checkpoint(self.name).vocabulary

    def processor(self) -> DualEncoderProcessor:
        """Return the processor with the official preprocessing of the family."""
        return build_processor(self.config(), tokenizer=self.vocabulary_file())

    def model(self, seed: int = 0) -> DualEncoderModel:
        """Return the model before training: random weights, whitened patches, and sinusoidal positions."""
        torch.manual_seed(seed)
        config = self.config()
        model = DualEncoderModel.class_for(config)(config)
        pairs = ShapesDataset("train", _WHITENING_PICTURES)
        pictures = [pairs[index]["image"] for index in range(_WHITENING_PICTURES)]
        whiten_patch_embedding(model, self.processor()(images=pictures)["pixel_values"])
        set_sinusoidal_positions(model)
        return model


RECIPES = {
    "siglip": Recipe(siglip_config, "siglip-shapes", 3000, 64, 1e-3, 100, 0.05, 0.98),
    "clip": Recipe(clip_config, "clip-shapes", 3000, 64, 1e-3, 100, 0.05, 0.98),
}


@torch.no_grad()
def whiten_patch_embedding(model: DualEncoderModel, pixels: Tensor) -> None:
    """Initialise the patch embedding so that its outputs are whitened; else the model is slow to learn to see shapes.

    The kernel projects a patch onto its principal components, divides each by its standard deviation, and rotates the
    result at random. `pixels` (pictures, 3, height, width) are the pictures whose patches are analysed.
    """
    embedding = model.vision_model.embeddings.patch_embedding
    width = embedding.out_channels
    patches = nn.functional.unfold(pixels, PATCH_SIZE, stride=PATCH_SIZE).transpose(1, 2).flatten(0, 1)
    variances, directions = torch.linalg.eigh(torch.cov(patches.T))  # ascending
    scaled = directions[:, -width:] / (variances[-width:] + _VARIANCE_FLOOR).sqrt()
    kernel = nn.init.orthogonal_(torch.empty(width, width)) @ scaled.T  # (width, 3 * patch * patch)
    embedding.weight.copy_(kernel.view_as(embedding.weight))
    if embedding.bias is not None:
        embedding.bias.copy_(-kernel @ patches.mean(dim=0))


@torch.no_grad()
def set_sinusoidal_positions(model: DualEncoderModel) -> None:
    """Initialise the position embeddings of the patches with sines and cosines of their column and row."""
    positions = model.vision_model.embeddings.position_embedding.weight  # a class token comes first
    width, grid = positions.shape[1], IMAGE_SIZE // PATCH_SIZE
    angles = torch.arange(grid)[:, None] * 100.0 ** -torch.linspace(0, 1, width // 4)  # (grid, width / 4)
    waves = _POSITION_AMPLITUDE * torch.cat([angles.sin(), angles.cos()], dim=1)
    columns, rows = waves.repeat(grid, 1), waves.repeat_interleave(grid, dim=0)  # (grid * grid, width / 2)
    positions[-grid * grid :] = torch.cat([columns, rows], dim=1)
