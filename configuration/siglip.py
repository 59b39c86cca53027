"""SigLIP (arXiv:2303.15343) and the fixed-size SigLIP 2 (arXiv:2502.14786), which shares its `model_type`."""

import math
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .base import DualEncoderConfig, SquareViTConfig, TextConfig, ViTConfig

# transformers' SigLIP configuration carries CLIP's ids, which lie outside SigLIP's 32000 pieces, into every folder.
_IDS_COPIED_FROM_CLIP = (49406, 49407)


@strict
class SiglipViTConfig(ViTConfig):
    """What the image towers of SigLIP have in common, for squares of one size and for images of any."""

    vision_use_head: bool = True

    encoder_layer = "SiglipEncoderLayer"
    initialization = "siglip"
    position_resampling = "big_vision"
    patch_bias = True
    pre_norm = False
    norm_first = True
    pooling = "attention"


@strict
class SiglipVisionConfig(SiglipViTConfig, SquareViTConfig):
    """The image tower of SigLIP; defaults are those of B/16 at 224."""

    model_type = "siglip_vision_model"


@strict
class SiglipTextConfig(TextConfig):
    """The text tower of SigLIP; defaults are those of B/16 at 224 with its vocabulary `c4_en`."""

    model_type = "siglip_text_model"

    pad_token_id: int | None = 1
    eos_token_id: int | None = 1
    projection_size: int | None = None

    encoder_layer = "SiglipEncoderLayer"
    initialization = "siglip"
    causal = False
    fixed_length = True
    pooling = "last_token"

    def __post_init__(self, **kwargs: Any) -> None:
        if self.projection_size is None:
            self.projection_size = self.hidden_size
        for name, correct in (("bos_token_id", None), ("eos_token_id", 1)):
            value = getattr(self, name)
            if value in _IDS_COPIED_FROM_CLIP and value >= self.vocab_size:
                setattr(self, name, correct)
        super().__post_init__(**kwargs)


@strict
class SiglipConfig(DualEncoderConfig):
    """SigLIP: attention pooling, a fixed text length, a learned bias, the pairwise sigmoid loss."""

    model_type = "siglip"
    sub_configs: ClassVar = {"vision_config": SiglipVisionConfig, "text_config": SiglipTextConfig}

    # Section 3.2 of the paper; transformers starts both at 0.
    logit_scale_init_value = math.log(10)
    logit_bias_init_value = -10.0
    visual_projection = False
    text_projection = False
    logit_shape = (1,)
    loss = "sigmoid"
    max_logit_scale = None
