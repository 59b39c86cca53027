"""CLIP (arXiv:2103.00020)."""

import math
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .base import DualEncoderConfig, SquareViTConfig, TextConfig

# The size of OpenAI's vocabulary. Its last two ids are the start and the end of text; added tokens follow them.
VOCABULARY_SIZE = 49408
# As `eos_token_id` this is not an id but a rule of transformers: a text ends at the highest of its ids, as in the code
# of OpenAI and open_clip.
HIGHEST_ID = 2


@strict
class CLIPVisionConfig(SquareViTConfig):
    """The image tower of CLIP; defaults are those of ViT-B/32."""

    model_type = "clip_vision_model"

    patch_size: int = 32
    projection_dim: int = 512
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    initializer_factor: float | int = 1.0

    encoder_layer = "CLIPEncoderLayer"
    initialization = "clip"
    num_class_tokens = 1
    position_resampling = "open_clip"
    patch_bias = False
    pre_norm = True
    norm_first = False
    pooling = "class_token"

    @property
    def embedding_std(self) -> float:
        return self.initializer_range


@strict
class CLIPTextConfig(TextConfig):
    """The text tower of CLIP; defaults are those of ViT-B/32.

    Special ids that are not given are 49406 and 49407, as in transformers, or the last two of a smaller vocabulary.
    """

    model_type = "clip_text_model"

    vocab_size: int = VOCABULARY_SIZE
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    projection_dim: int = 512
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    initializer_factor: float | int = 1.0
    pad_token_id: int | None = 1

    encoder_layer = "CLIPEncoderLayer"
    initialization = "clip"
    causal = True
    fixed_length = False
    pooling = "first_eos"

    def __post_init__(self, **kwargs: Any) -> None:
        without_added_tokens = min(self.vocab_size, VOCABULARY_SIZE)
        if self.bos_token_id is None:
            self.bos_token_id = without_added_tokens - 2
        if self.eos_token_id is None:
            self.eos_token_id = without_added_tokens - 1
        super().__post_init__(**kwargs)

    @property
    def embedding_std(self) -> float:
        return self.initializer_range

    @property
    def ends_at_highest_id(self) -> bool:
        return self.eos_token_id == HIGHEST_ID


@strict
class CLIPConfig(DualEncoderConfig):
    """CLIP: class-token pooling, a causal text tower, two projections, the symmetric softmax loss."""

    model_type = "clip"
    sub_configs: ClassVar = {"vision_config": CLIPVisionConfig, "text_config": CLIPTextConfig}

    projection_dim: int = 512
    logit_scale_init_value: float | int = 2.6592

    visual_projection = True
    text_projection = True
    logit_shape = ()
    logit_bias_init_value = None
    loss = "softmax"
    max_logit_scale = math.log(100)  # section 2.5 of the paper
