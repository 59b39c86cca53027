"""SigLIP 2 NaFlex (arXiv:2502.14786): images of any grid of patches. The fixed-size SigLIP 2 is in `siglip.py`."""

import math
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .siglip import SiglipConfig, SiglipTextConfig, SiglipViTConfig

# transformers' defaults, which its folders repeat, and what they are in Gemma's vocabulary: 1 is its end of text, and
# so cannot be padding, and CLIP's two are words.
_COPIED_IDS = {"pad_token_id": (1, 0), "bos_token_id": (49406, None), "eos_token_id": (49407, 1)}


@strict
class Siglip2VisionConfig(SiglipViTConfig):
    """The image tower of SigLIP 2 NaFlex; defaults are those of B/16."""

    model_type = "siglip2_vision_model"

    num_patches: int = 256  # in the table of positions, a square, which is resized to each image's grid

    encoder_layer = "Siglip2EncoderLayer"
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

    encoder_layer = "Siglip2EncoderLayer"

    def __post_init__(self, **kwargs: Any) -> None:
        for name, (copied, correct) in _COPIED_IDS.items():
            if getattr(self, name) == copied:
                setattr(self, name, correct)
        super().__post_init__(**kwargs)


@strict
class Siglip2Config(SiglipConfig):
    """SigLIP 2 NaFlex: SigLIP with images of any grid of patches."""

    model_type = "siglip2"
    sub_configs: ClassVar = {"vision_config": Siglip2VisionConfig, "text_config": Siglip2TextConfig}
