"""The transformer encoder in every tower of every family."""

from itertools import islice
from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from ..configuration import TransformerConfig
from ..runtime.pickling import PickledWithoutHooks
from .attention import Attention
from .initialization import linear


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = linear(config.hidden_size, config.intermediate_size, "mlp_in")
        self.fc2 = linear(config.intermediate_size, config.hidden_size, "mlp_out")

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation_fn(self.fc1(x)))  # (..., width)


class EncoderLayer(PickledWithoutHooks, GradientCheckpointingLayer):
    """One pre-norm transformer block."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        x = hidden_states  # (batch, length, width)
        x = x + self.self_attn(self.layer_norm1(x), **kwargs)[0]
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """A stack of blocks, of which the first `depth` are run; all by default.

    The keyword `attention_mask` is None or what `create_causal_mask` and its like return.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden_states: Tensor, depth: int | None = None, **kwargs: Any) -> Tensor:
        for layer in islice(self.layers, depth):
            hidden_states = layer(hidden_states, **kwargs)
        return hidden_states  # (batch, length, width)
