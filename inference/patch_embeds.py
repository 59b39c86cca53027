"""Images and their patches in the common space, from one forward."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..modeling import DualEncoderModel
from ..modeling.dual_encoder import l2_normalize
from ..modeling.pooling import POOLERS


@torch.no_grad()
def encode_image_and_patches(model: DualEncoderModel, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return unit vectors (images, dim) of images and (images, rows, columns, dim) of their patches, in float32.

    A patch is what the image would be if its token of `last_hidden_state` were the only one to pool: for an attention
    pooling head its value path, for CLIP the final norm and projection.
    """
    outputs = model.get_image_features(inputs["pixel_values"], return_dict=True)
    tower, config = model.vision_model, model.config.vision_config
    tokens = outputs.last_hidden_state[:, config.num_class_tokens :]  # (images, patches, width)
    pooled = POOLERS[config.pooling](tower, tokens.flatten(0, 1)[:, None])
    pooled = pooled if config.norm_first else tower.post_layernorm(pooled)
    pooled = model.visual_projection(pooled) if model.config.projection else pooled
    grid = (config.grid_size, config.grid_size)
    return l2_normalize(outputs.pooler_output), l2_normalize(pooled).unflatten(0, (len(tokens), *grid))
