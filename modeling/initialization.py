"""First weights: CLIP's as `initialize_parameters` of openai/CLIP, SigLIP's as the towers of big_vision.

Each module initialises its own parameters and never those of its children: transformers does not call `_init_weights`
for a module whose own parameters were loaded, so a parent's values for missing children would sometimes not be written.
"""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init


def linear(in_features: int, out_features: int, role: str) -> nn.Linear:
    """Return a linear layer that remembers its `role` in the encoder, on which its first weights depend."""
    module: Any = nn.Linear(in_features, out_features)
    module.role = role
    return module


def initialize(module: Any, config: PreTrainedConfig) -> None:
    """Write the first values of `module`'s own parameters, where they are not loaded."""
    if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
        init.constant_(module.weight, getattr(module, "gain", 1))
        init.zeros_(module.bias)
        for name, statistic in module.named_buffers():
            init.constant_(statistic, name == "running_var")
    elif isinstance(module, nn.Embedding):
        config = config.get_text_config()  # a dual encoder's own are new tokens of its texts, as transformers adds them
        init_normal(module.weight, config.embedding_std, config)
    elif isinstance(module, nn.Linear | nn.Conv2d):
        if hasattr(module, "role"):
            ENCODER_SCHEMES[config.initialization](module.weight, str(module.role), config)
        else:  # patches, projections, classifiers: the output has the variance of the input
            init_normal(module.weight, math.prod(module.weight.shape[1:]) ** -0.5, config)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif hasattr(module, "initialize_own_parameters"):
        module.initialize_own_parameters(config)


def init_normal(weight: Tensor, std: float, config: PreTrainedConfig) -> None:
    init.normal_(weight, std=std * getattr(config, "initializer_factor", 1.0))


def init_clip_linear(weight: Tensor, role: str, config: PreTrainedConfig) -> None:
    depth = (2 * config.num_hidden_layers) ** -0.5
    gain = {"attention_in": 1, "attention_out": depth, "mlp_in": 2**-0.5, "mlp_out": depth}[role]
    init_normal(weight, gain * config.hidden_size**-0.5, config)


def init_siglip_linear(weight: Tensor, role: str, config: PreTrainedConfig) -> None:
    init.xavier_uniform_(weight)


# The linear layers of the encoder, by the `initialization` of a configuration.
ENCODER_SCHEMES: dict[str, Callable[[Tensor, str, PreTrainedConfig], None]] = {
    "clip": init_clip_linear,
    "siglip": init_siglip_linear,
}
