"""The transformer encoder in every tower of every family."""

from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from ..configuration import TransformerConfig
from .attention import Attention
from .initialization import linear
from .pickling import PickledWithoutHooks

CHUNK_TOKENS = 1024


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = linear(config.hidden_size, config.intermediate_size, "mlp_in")
        self.fc2 = linear(config.intermediate_size, config.hidden_size, "mlp_out")

    def forward(self, x: Tensor) -> Tensor:
        return apply_in_chunks(lambda tokens: self.fc2(self.activation_fn(self.fc1(tokens))), x)


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


def apply_in_chunks(token_wise: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return `token_wise(x)` (..., width), for a function that treats every token of `x` (..., width) alike.

    Inference on the CPU takes `CHUNK_TOKENS` tokens at a time: the MLP's activations, four times as wide as the tokens,
    then stay in the cache and in memory that the process already has. Everything else is faster as a whole.
    """
    tokens = x.numel() // x.shape[-1]
    if (
        torch.compiler.is_compiling()  # asked first: the number of tokens must not become part of the graph
        or torch.is_grad_enabled()
        or x.device.type != "cpu"
        or tokens <= CHUNK_TOKENS
    ):
        return token_wise(x)
    chunks = x.flatten(0, -2).tensor_split(-(-tokens // CHUNK_TOKENS))
    return torch.cat([token_wise(chunk) for chunk in chunks]).view_as(x)
