"""Multi-head attention: of tokens among themselves, and of one learned probe over all tokens."""

from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import eager_attention_forward

from .initialization import linear


def text_mask(config: PreTrainedConfig, inputs_embeds: Tensor, attention_mask: Any, output_attentions: bool) -> Any:
    """Causal and padding mask in the form that the kernel wants, or None: no mask, or `is_causal` says it all."""
    if output_attentions:  # then the kernel is the eager one, see MultiHeadAttention
        config = copy(config)
        config._attn_implementation_internal = "eager"
    return create_causal_mask(config, inputs_embeds, attention_mask, past_key_values=None) if config.causal else None


class MultiHeadAttention(nn.Module):
    """What both kinds of attention share: heads, and the choice of a kernel through the framework's interface."""

    is_causal = False  # read by kernels that are not told

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.out_proj = linear(config.hidden_size, config.hidden_size, "attention_out")

    def attend(self, *qkv: Tensor, attention_mask: Any = None, output_attentions: bool = False, **kwargs: Any) -> Any:
        """Attention of query, key, value (batch, length, width), and its map (batch, heads, queries, keys) or None."""
        heads = [x.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2) for x in qkv]
        implementation = "eager" if output_attentions else self.config._attn_implementation  # no other has maps to show
        kernel = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        dropout = self.config.attention_dropout if self.training else 0.0
        scaling = self.head_dim**-0.5
        output, weights = kernel(self, *heads, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
        return self.out_proj(output.flatten(2)), weights  # (batch, queries, width)


class Attention(MultiHeadAttention):
    """Self-attention."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.q_proj = linear(config.hidden_size, config.hidden_size, "attention_in")
        self.k_proj = linear(config.hidden_size, config.hidden_size, "attention_in")
        self.v_proj = linear(config.hidden_size, config.hidden_size, "attention_in")

    def forward(self, x: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Attention of `x` (batch, length, width) to itself, and its map."""
        return self.attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), **kwargs)


class PoolingAttention(MultiHeadAttention):
    """Attention of a probe to tokens, under the parameter names of `torch.nn.MultiheadAttention`."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * config.hidden_size, config.hidden_size))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * config.hidden_size))

    def initialize_own_parameters(self, config: PreTrainedConfig) -> None:
        bound = (3 / config.hidden_size) ** 0.5  # Xavier for each of query, key and value
        init.uniform_(self.in_proj_weight, -bound, bound)
        init.zeros_(self.in_proj_bias)

    def forward(self, probe: Tensor, x: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Attention of `probe` (1, 1, width) to `x` (batch, length, width), and its map."""
        width = self.config.hidden_size
        query = nn.functional.linear(probe, self.in_proj_weight[:width], self.in_proj_bias[:width])
        kv = nn.functional.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:])
        return self.attend(query.expand(x.shape[0], -1, -1), *kv.chunk(2, dim=-1), is_causal=False, **kwargs)
