"""Multi-head attention: of tokens among themselves, and of one learned probe over all tokens."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .initialization import linear


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Softmax(query key^T scaling + mask) value, of (batch, heads, length, head_dim); softmax in float32."""
    weights = query @ key.transpose(-1, -2) * scaling  # (batch, heads, queries, keys)
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights  # (batch, queries, heads, head_dim)


def with_attention_maps(config: PreTrainedConfig) -> PreTrainedConfig:
    """The same configuration under the one kernel that has attention maps to show."""
    config = copy(config)
    config._attn_implementation_internal = "eager"
    return config


def causal_mask(
    config: PreTrainedConfig, inputs_embeds: Tensor, attention_mask: Tensor | None, output_attentions: bool
) -> Any:
    """Causal and padding mask in the form that the kernel wants; None where its `is_causal` flag says it all."""
    config = with_attention_maps(config) if output_attentions else config
    return create_causal_mask(config, inputs_embeds, attention_mask, past_key_values=None)


class MultiHeadAttention(nn.Module):
    """What both kinds of attention share: heads, and the choice of a kernel through the framework's interface."""

    is_causal = False  # read by kernels that are not told

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.out_proj = linear(config.hidden_size, config.hidden_size, "attention_out")

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, output_attentions: bool, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of (batch, length, width) tensors; with its map (batch, heads, queries, keys) if asked for."""
        query, key, value = (
            x.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2) for x in (query, key, value)
        )  # (batch, heads, length, head_dim)
        kernel = eager_attention
        if not output_attentions:  # no other kernel has maps to show
            kernel = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        output, weights = kernel(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.head_dim**-0.5,
            dropout=self.config.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        return self.out_proj(output.flatten(2)), weights  # (batch, queries, width)


class Attention(MultiHeadAttention):
    """Self-attention."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.q_proj = linear(config.hidden_size, config.hidden_size, "attention_in")
        self.k_proj = linear(config.hidden_size, config.hidden_size, "attention_in")
        self.v_proj = linear(config.hidden_size, config.hidden_size, "attention_in")

    def forward(
        self, hidden_states: Tensor, attention_mask: Any = None, output_attentions: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        query, key, value = self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)
        return self.attend(query, key, value, attention_mask, output_attentions, **kwargs)


class PoolingAttention(MultiHeadAttention):
    """Attention of a probe over tokens, under the parameter names of `torch.nn.MultiheadAttention`."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * config.hidden_size, config.hidden_size))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * config.hidden_size))

    def initialize_own_parameters(self, config: PreTrainedConfig) -> None:
        bound = (3 / config.hidden_size) ** 0.5  # Xavier for each of query, key and value
        init.uniform_(self.in_proj_weight, -bound, bound)
        init.zeros_(self.in_proj_bias)

    def forward(
        self, probe: Tensor, hidden_states: Tensor, attention_mask: Any = None, output_attentions: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        width = self.config.hidden_size
        query = nn.functional.linear(probe, self.in_proj_weight[:width], self.in_proj_bias[:width])
        query = query.expand(len(hidden_states), -1, -1)  # (batch, 1, width)
        keys_values = nn.functional.linear(hidden_states, self.in_proj_weight[width:], self.in_proj_bias[width:])
        key, value = keys_values.chunk(2, dim=-1)
        return self.attend(query, key, value, attention_mask, output_attentions, is_causal=False)
