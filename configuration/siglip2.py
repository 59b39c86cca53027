"""SigLIP 2 NaFlex (arXiv:2502.14786): images of any grid of patches. The fixed-size SigLIP 2 is in `siglip.py`."""

import math
from typing import ClassVar

from huggingface_hub.dataclasses import strict

from .siglip import SiglipConfig, SiglipTextConfig, SiglipViTConfig


@strict
class Siglip2VisionConfig(SiglipViTConfig):
    """The image tower of SigLIP 2 NaFlex; defaults are those of B/16."""

    model_type = "siglip2_vision_model"

    num_patches: int = 256  # in the table of positions, a square, which is resized to each image's grid

    flexible_size = True

    def validate_architecture(self) -> None:
        super().validate_architecture()
        if self.num_patches < 1 or self.grid_size**2 != self.num_patches:
            raise ValueError(f"num_patches must be a square number, got {self.num_patches}.")

    @property
    def grid_size(self) -> int:
        """Patches per side of the square that the table of positions is for."""
        return math.isqrt(max(self.num_patches, 0))


@strict
class Siglip2TextConfig(SiglipTextConfig):
    """The text tower of SigLIP 2; its vocabulary is Gemma's, whose id of padding is 0."""

    model_type = "siglip2_text_model"

    pad_token_id: int | None = 0


@strict
class Siglip2Config(SiglipConfig):
    """SigLIP 2 NaFlex: SigLIP with images of any grid of patches."""

    model_type = "siglip2"
    sub_configs: ClassVar = {"vision_config": Siglip2VisionConfig, "text_config": Siglip2TextConfig}
