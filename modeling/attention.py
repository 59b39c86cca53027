"""Multi-head attention: self-attention of tokens, and the attention of one learned probe to all tokens."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.attention.varlen import varlen_attn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import eager_attention_forward

from ..configuration import TextConfig, TransformerConfig, ViTConfig
from ..runtime import AttentionNames, PickledWithoutHooks
from .initialization import linear

Mask: TypeAlias = "Tensor | BlockMask | Packing | None"  # in the form that the kernel takes
Kernel: TypeAlias = Callable[..., tuple[Tensor, Tensor | None]]
_EAGER_CONFIG = PreTrainedConfig(attn_implementation="eager")
_CAN_BE_BLIND = "allow_is_causal_skip" in inspect.signature(create_causal_mask).parameters


class Packing:
    """Images of different lengths in one sequence without padding, each attending to itself: a mask, and its kernel.

    The shortest come first, so that images of one length are neighbours.
    """

    def __init__(self, token_mask: Tensor) -> None:
        """Take the tokens whose `token_mask` (images, tokens) is not 0."""
        lengths, order = token_mask.ne(0).sum(dim=1).sort()
        image, token = token_mask[order].nonzero().unbind(1)
        self.rows = (order[image], token)  # of (images, tokens), in the order of the sequence
        self.ends = nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))  # (1 + images,)
        sizes, images = lengths.unique_consecutive(return_counts=True)
        self.groups = list(zip(images.tolist(), sizes.tolist(), strict=True))  # how many images are how long

    def attend(
        self, kernel: Kernel, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Mask, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """Return (1, tokens, heads, head_dim) for heads (1, heads, tokens, head_dim) of the sequence.

        That is one call where PyTorch has a kernel for it. Otherwise `kernel` is called for each length.
        """
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (tokens, heads, head_dim) each
        if has_varlen_kernel(module, q) and not kwargs["dropout"]:
            ends, longest = self.ends.to(q.device), self.groups[-1][1]
            output: Any = varlen_attn(q, k, v, ends, ends, longest, longest)
            return output[None], None
        parts = [x.split([images * length for images, length in self.groups]) for x in (q, k, v)]
        outputs = []
        for group, *part in zip(self.groups, *parts, strict=True):
            heads = [x.unflatten(0, group).transpose(1, 2) for x in part]  # (images, heads, length, head_dim) each
            outputs.append(kernel(module, *heads, None, **kwargs)[0].flatten(0, 1))
        return torch.cat(outputs)[None], None


def text_mask(config: TextConfig, tokens: Tensor, attention_mask: Tensor | None, output_attentions: bool) -> Mask:
    """Return the mask that hides later `tokens` (batch, length, width), and those whose `attention_mask` is 0.

    `attention_mask` is (batch, length). The mask is None for a bidirectional family, whose texts attend to their
    padding too, and where the kernel needs no more than `is_causal`.
    """
    if not config.causal:
        return None
    # On a GPU, looking for padding would wait for it; older versions of transformers always look.
    blind = {} if attention_mask is None or tokens.is_cpu or not _CAN_BE_BLIND else {"allow_is_causal_skip": False}
    kernel = kernel_config(config, tokens, output_attentions)
    return create_causal_mask(kernel, tokens, attention_mask, None, **blind)  # no cache, which has had two names


def image_mask(
    config: ViTConfig, queries: Tensor, tokens: Tensor, token_mask: Tensor | None, output_attentions: bool
) -> Mask:
    """Return the mask that hides from `queries` those of `tokens` (batch, length, width) where `token_mask` is 0.

    It is None where that hides nothing, as far as that is known without waiting for a GPU.
    """
    if token_mask is None:
        return None
    kernel, may_look = kernel_config(config, tokens, output_attentions), tokens.device.type == "cpu"
    return create_bidirectional_mask(kernel, queries, token_mask, tokens, allow_is_bidirectional_skip=may_look)


def has_varlen_kernel(module: Any, x: Tensor) -> bool:
    """Return whether PyTorch's kernel takes sequences `x` of different lengths: Flash Attention, on recent GPUs."""
    if module.config._attn_implementation != "sdpa" or not x.is_cuda or x.dtype.itemsize != 2 or x.shape[-1] % 8:
        return False
    return torch.cuda.get_device_capability(x.device) >= (8, 0)


def kernel_config(config: TransformerConfig, x: Tensor, output_attentions: bool) -> PreTrainedConfig:
    """Return a configuration that names the kernel for `x`; no more of it is read by what makes masks.

    Only the eager kernel will do for attention maps, and for no images or texts at all (0, ...).
    """
    return _EAGER_CONFIG if output_attentions or x.shape[0] == 0 else config


class MultiHeadAttention(AttentionNames, PickledWithoutHooks, nn.Module):
    """The base of both kinds of attention: heads, and the choice of a kernel through the framework's interface."""

    is_causal = False  # for kernels that are called without this argument
    out_proj: nn.Linear

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Mask = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the heads' outputs for query, key and value (batch, length, width), and the map where there is one.

        Outputs are (batch, queries, width), for `out_proj`; the map is (batch, heads, queries, keys). Only the eager
        kernel makes maps, so that `output_attentions` selects it. Other keyword arguments are the kernel's.
        """
        implementation = kernel_config(self.config, query, output_attentions)._attn_implementation
        kernel = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        if isinstance(attention_mask, Packing):
            kernel = partial(attention_mask.attend, kernel)
        # (batch, length, width) -> (batch, heads, length, head_dim); by `unflatten`, a trace would keep all of these.
        size = self.head_dim
        heads = [x.view(*x.shape[:2], x.shape[2] // size, size).transpose(1, 2) for x in (query, key, value)]
        scaling, dropout = size**-0.5, self.config.attention_dropout if self.training else 0.0
        output, attention_map = kernel(self, *heads, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
        return output.flatten(2), attention_map

    def multi_head_attention(
        self, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attention of query to key and value (batch, length, width), and its map: see `attend`."""
        output, attention_map = self.attend(query, key, value, **kwargs)
        return self.out_proj(output), attention_map  # (batch, queries, width)


class Attention(MultiHeadAttention):
    """Self-attention."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        sizes = (config.hidden_size, config.hidden_size)
        # In transformers' order: an optimizer's state has no names, and would go to another weight of this shape.
        self.k_proj, self.v_proj, self.q_proj = (linear(*sizes, "attention_in") for _ in "kvq")
        self.out_proj = linear(*sizes, "attention_out")

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Return the attention of `hidden_states` (batch, length, width) to themselves, and its map or None."""
        x = hidden_states
        return self.multi_head_attention(self.q_proj(x), self.k_proj(x), self.v_proj(x), **kwargs)


class PoolingAttention(MultiHeadAttention):
    """Attention of a probe to tokens, under the parameter names of `torch.nn.MultiheadAttention`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * config.hidden_size, config.hidden_size))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * config.hidden_size))
        self.out_proj = linear(config.hidden_size, config.hidden_size, "attention_out")

    def initialize_own_parameters(self, config: TransformerConfig) -> None:
        bound = (3 / config.hidden_size) ** 0.5  # Xavier for each of query, key and value
        init.uniform_(self.in_proj_weight, -bound, bound)
        init.zeros_(self.in_proj_bias)

    def forward(self, query: Tensor, key: Tensor, value: Any = None, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Return the attention of `query` (1, 1, width) to `key` (batch, length, width), and its map or None.

        `value` is `key`, as clients pass it that call this as PyTorch's module. Raises ValueError for another one.
        """
        if value is not None and value is not key:
            raise ValueError("The pooling attends to one sequence: expected the same tensor as key and value.")
        width = self.config.hidden_size
        query = nn.functional.linear(query, self.in_proj_weight[:width], self.in_proj_bias[:width])
        key, value = nn.functional.linear(key, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, dim=-1)
        query = query.expand(key.shape[0], -1, -1)  # (batch, 1, width), for keys and values (batch, length, width)
        return self.multi_head_attention(query, key, value, is_causal=False, **kwargs)
