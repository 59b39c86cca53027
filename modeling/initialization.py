"""First weights: CLIP's as `initialize_parameters` of openai/CLIP, SigLIP's as the towers of big_vision.

Every parameter has one writer, the module that owns it: transformers passes over a parent whose own parameters are
loaded (or that has none), so what a parent writes into its children would depend on how the model came to be.
"""

import math
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init


def linear(in_features: int, out_features: int, role: str) -> nn.Linear:
    """A linear layer that remembers its `role` in the encoder, on which its first weights depend."""
    module: Any = nn.Linear(in_features, out_features)
    module.role = role
    return module


def initialize(module: Any, config: PreTrainedConfig) -> None:
    """Write the first values of `module`'s own parameters, where they are not loaded."""
    if isinstance(module, nn.LayerNorm):
        init.ones_(module.weight)
        init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        std = config.initializer_range if config.initialization == "clip" else module.embedding_dim**-0.5
        normal(module.weight, std, config)
    elif isinstance(module, nn.Linear | nn.Conv2d):
        if hasattr(module, "role"):
            ENCODER_SCHEMES[config.initialization](module.weight, str(module.role), config)
        else:  # patches, projections, classifiers: variance is kept
            normal(module.weight, math.prod(module.weight.shape[1:]) ** -0.5, config)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif hasattr(module, "initialize_own_parameters"):
        module.initialize_own_parameters(config)


def normal(weight: Tensor, std: float, config: PreTrainedConfig) -> None:
    init.normal_(weight, std=std * getattr(config, "initializer_factor", 1.0))


def clip(weight: Tensor, role: str, config: PreTrainedConfig) -> None:
    depth = (2 * config.num_hidden_layers) ** -0.5
    gain = {"attention_in": 1, "attention_out": depth, "mlp_in": 2**-0.5, "mlp_out": depth}[role]
    normal(weight, gain * config.hidden_size**-0.5, config)


def siglip(weight: Tensor, role: str, config: PreTrainedConfig) -> None:
    init.xavier_uniform_(weight)


ENCODER_SCHEMES: dict[str, Any] = {"clip": clip, "siglip": siglip}
