"""The transformer encoder that every tower of every family is."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import Attention
from .initialization import linear

CHUNK = 1024  # tokens at most


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = linear(config.hidden_size, config.intermediate_size, "mlp_in")
        self.fc2 = linear(config.intermediate_size, config.hidden_size, "mlp_out")

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.numel() // x.shape[-1]
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or x.device.type != "cpu" or tokens <= CHUNK:
            return self.fc2(self.activation_fn(self.fc1(x)))
        # Inference on the CPU: the wide activations of so many tokens stay in cache, and in memory that is at hand.
        parts = x.flatten(0, -2).tensor_split(-(-tokens // CHUNK))
        return torch.cat([MLP.forward(self, part) for part in parts]).view_as(x)


class EncoderLayer(GradientCheckpointingLayer):
    """One pre-norm transformer block."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        x, _ = self.self_attn(self.layer_norm1(hidden_states), **kwargs)
        x = hidden_states + x
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """A stack of blocks. The keyword `attention_mask` is None or what `create_causal_mask` and its like return."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return hidden_states  # (batch, length, width)
