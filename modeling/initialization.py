"""Initial weights: CLIP's as openai/CLIP `initialize_parameters`, SigLIP's as big_vision's towers.

Every parameter has one writer, the module that owns it: transformers skips a parent whose own parameters are loaded (or
that has none), so what a parent wrote into its children would depend on how the model came to be.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init


def linear(in_features: int, out_features: int, role: str) -> nn.Linear:
    """A linear layer that remembers its `role` in the encoder, on which its first weights depend."""
    module = nn.Linear(in_features, out_features)
    module.role = role
    return module


def initialize(module: nn.Module, config: PreTrainedConfig) -> None:
    """Write the first weights of `module`'s own parameters, unless they are loaded."""
    if isinstance(module, nn.LayerNorm):
        init.ones_(module.weight)
        init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        initialize_embedding(module.weight, config)
    elif isinstance(module, nn.Linear | nn.Conv2d) and getattr(module, "weight", None) is not None:
        role = getattr(module, "role", None)
        (ROLES[config.initialization] if role else ROLES["other"])(module.weight, role, config)
        if module.bias is not None and config.initialization == "siglip" and role in ("mlp_in", "mlp_out"):
            init.normal_(module.bias, std=1e-6)
        elif module.bias is not None:
            init.zeros_(module.bias)
    elif hasattr(module, "initialize_own_parameters"):
        module.initialize_own_parameters(config)


def initialize_embedding(weight: Tensor, config: PreTrainedConfig) -> None:
    std = config.initializer_range if config.initialization == "clip" else weight.shape[-1] ** -0.5
    init.normal_(weight, std=std * getattr(config, "initializer_factor", 1.0))


def initialize_clip(weight: Tensor, role: str, config: PreTrainedConfig) -> None:
    width, depth = config.hidden_size, 2 * config.num_hidden_layers
    std = {"attention_in": 1, "attention_out": depth**-0.5, "mlp_in": 2**-0.5, "mlp_out": depth**-0.5}[role]
    init.normal_(weight, std=std * width**-0.5 * config.initializer_factor)


def initialize_siglip(weight: Tensor, role: str, config: PreTrainedConfig) -> None:
    init.xavier_uniform_(weight)


def initialize_other(weight: Tensor, role: None, config: PreTrainedConfig) -> None:
    """Patches, projections, classifiers: unit variance is kept."""
    fan_in = math.prod(weight.shape[1:])
    init.normal_(weight, std=fan_in**-0.5 * getattr(config, "initializer_factor", 1.0))


ROLES = {"clip": initialize_clip, "siglip": initialize_siglip, "other": initialize_other}
