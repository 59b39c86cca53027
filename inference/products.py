"""What an optimised model computes in another way: products with weights in oneDNN's layout, and attention by products.

PyTorch's default matrix product uses part of some processors only. oneDNN uses all of them, if weights are in its own
layout, and applies an activation or adds a residual while the result is in registers.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import eager_attention_forward

# The most tokens that go through the layers together. More do not stay in the cache; with fewer, the tiles of bfloat16
# (AMX) are a third slower.
ROWS = 2048
# How oneDNN calls the activations that it applies itself. Quick GELU is SiLU of 1.702 times its input, over 1.702.
QUICK_GELU_SCALE = 1.702
FUSED = {
    "gelu": ("gelu", "none", 1.0),
    "gelu_pytorch_tanh": ("gelu", "tanh", 1.0),
    "quick_gelu": ("swish", "", QUICK_GELU_SCALE),
    "silu": ("swish", "", 1.0),
    "relu": ("relu", "", 1.0),
}


class Product:
    """The product with the weights (outputs, inputs) of one linear layer, or of several, in oneDNN's layout."""

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        weight = torch.cat([*weights])
        self.rows, self.inputs = weight.shape
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        self.sizes = [len(part) for part in weights]
        self.biases = [*biases]  # the layers' own, which may change

    def __reduce__(self) -> Any:
        """Pickle and copy weights in their usual layout, since oneDNN's is that of a processor."""
        return Product, (self.dense().split(self.sizes), self.biases)

    @property
    def bias(self) -> Tensor | None:
        """The biases of all layers (outputs,)."""
        if len(self.biases) == 1 or not any(bias is not None for bias in self.biases):
            return self.biases[0]
        parts = zip(self.biases, self.sizes, strict=True)
        return torch.cat([torch.zeros(size, dtype=self.weight.dtype) if bias is None else bias for bias, size in parts])

    def dense(self) -> Tensor:
        """Return the weights in their usual layout, exactly."""
        return self.weight.to_dense()

    def __call__(self, x: Tensor, activation: str = "none", algorithm: str = "", scale: float = 1.0) -> Tensor:
        """Return the activation of `scale` times the layers' output for `x` (..., inputs), which has been scaled."""
        bias = self.bias
        if bias is not None and scale != 1:
            bias = bias * scale
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, bias, activation, [], algorithm)

    def added_to(self, residual: Tensor, x: Tensor, scale: float = 1.0) -> Tensor:
        """Return `residual` (..., outputs) plus the layer's output for `x` (..., inputs) over `scale`."""
        if scale == 1:
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")
        return torch.add(residual, self(x, scale=scale), alpha=1 / scale)


def parts(x: Tensor) -> list[slice]:
    """Return the parts of a batch `x` (batch, length, width) that go through the layers together, about equal."""
    batch, most = max(1, x.shape[0]), max(1, ROWS // max(1, x.shape[1]))
    size = math.ceil(batch / math.ceil(batch / most))
    return [slice(start, start + size) for start in range(0, batch, size)]


def is_plain(x: Tensor) -> bool:
    """Return whether oneDNN's products take `x` (..., inputs): on the CPU, of the weights' dtype, without gradients."""
    if (torch.is_grad_enabled() and x.requires_grad) or torch.is_autocast_enabled("cpu"):
        return False
    return x.device.type == "cpu" and x.numel() > 0


def has_usual_kernel(config: Any) -> bool:
    """Return whether attention is what PyTorch computes, and not what somebody registered."""
    kernel = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager_attention_forward)
    return kernel in (eager_attention_forward, sdpa_attention_forward)


def attend_by_products(query: Tensor, key: Tensor, value: Tensor, head_dim: int, is_causal: bool) -> Tensor:
    """Return the attention of query to key and value (batch, length, width): matrix products and a softmax."""
    batch, length, width = query.shape
    q, k, v = (
        x.unflatten(-1, (-1, head_dim)).transpose(1, 2).reshape(-1, length, head_dim) for x in (query, key, value)
    )
    if is_causal:
        bias = torch.full((length, length), -torch.inf, dtype=q.dtype).triu(1).expand(len(q), -1, -1)
        scores = torch.baddbmm(bias, q, k.mT, alpha=head_dim**-0.5)
    else:
        scores = torch.baddbmm(q.new_empty(()), q, k.mT, beta=0, alpha=head_dim**-0.5)
    attended = torch.bmm(scores.softmax(dim=-1), v)  # (batch * heads, length, head_dim)
    return attended.view(batch, -1, length, head_dim).transpose(1, 2).reshape(batch, length, width)


def attend_from_one(
    query: Tensor,
    tokens: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    value_bias: Tensor,
    head_dim: int,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the attention of one query (batch or 1, width) to `tokens` (batch, length, inputs): (batch, width).

    Weights are (width, inputs). `mask`, which broadcasts to (batch, 1, length), is false where a token is hidden.

    No token gets a key or a value. The score q (K x + b) is (q K) x, plus q b that is the same for all tokens and that
    the softmax takes away. The weights of a softmax sum up to 1, so that the values' mean is V (mean of x) + b.
    """
    queries, keys, values = (
        query.unflatten(-1, (-1, head_dim)),
        *(w.unflatten(0, (-1, head_dim)) for w in (key_weight, value_weight)),
    )
    probes = torch.einsum("bhd,hdi->bhi", queries * head_dim**-0.5, keys)
    scores = probes @ tokens.mT  # (batch, heads, length)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    means = scores.softmax(dim=-1) @ tokens  # (batch, heads, inputs)
    return torch.einsum("bhi,hdi->bhd", means, values).flatten(1) + value_bias
