"""The layers of an optimised model: subclasses of the plain ones with another way through them.

Whoever watches a module by hooks, or wants hidden states, attention maps or gradients, gets the way of the plain class.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from ..modeling.encoder import Encoder, EncoderLayer
from ..runtime.pickling import has_hooks
from .optimization import WithoutWeights
from .products import FUSED, Product, attend_by_products, is_plain, parts


class OptimizedLinear(WithoutWeights, nn.Linear):
    """A linear layer with its weights among the `rows` of a product."""

    products: Product
    rows: slice

    def forward(self, x: Tensor) -> Tensor:
        product, rows = self.products, self.rows
        if rows == slice(0, product.rows) and is_plain(self, x):
            return product(x)
        return nn.functional.linear(x, product.dense()[rows], self.bias)


class OptimizedPatches(WithoutWeights, nn.Conv2d):
    """The convolution to patches, which do not overlap, as a product."""

    products: Product

    def forward(self, x: Tensor) -> Tensor:
        size = self.kernel_size[0]
        rows, columns = (side // size for side in x.shape[-2:])
        if not is_plain(self, x):
            weight = self.products.dense().view(self.weight.shape)
            return nn.functional.conv2d(x, weight, self.bias, self.stride)
        x = x[..., : rows * size, : columns * size].unflatten(3, (columns, size)).unflatten(2, (rows, size))
        patches = x.permute(0, 2, 4, 1, 3, 5).reshape(-1, rows * columns, self.products.inputs)
        return self.products(patches).mT.unflatten(2, (rows, columns))


class OptimizedLayer(EncoderLayer):
    """A block with one product for q, k and v, the activation and the residuals inside products."""

    products: tuple[Product, Product, Product, Product]  # q, k and v together, out_proj, fc1, fc2
    attention_choice: str

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> Tensor:
        x = hidden_states  # (batch, length, width)
        if not is_plain(self, x) or kwargs.get("output_attentions") or has_hooks(self):
            return super().forward(x, attention_mask=attention_mask, **kwargs)
        qkv, out_proj, fc1, fc2 = self.products
        query, key, value = qkv(self.layer_norm1(x)).chunk(3, dim=-1)
        if self.attention_choice == "products" and attention_mask is None:
            attended = attend_by_products(query, key, value, self.self_attn.head_dim, bool(kwargs.get("is_causal")))
        else:
            attended, _ = self.self_attn.attend(query, key, value, attention_mask, **kwargs)
        x = out_proj.added_to(x, attended)
        activation, algorithm, scale = FUSED[self.self_attn.config.hidden_act]
        norm = self.layer_norm2
        weight, bias = (norm.weight, norm.bias) if scale == 1 else (norm.weight * scale, norm.bias * scale)
        normed = nn.functional.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)
        return fc2.added_to(x, fc1(normed, activation, algorithm, scale), scale)


class OptimizedEncoder(Encoder):
    """A stack of blocks through which a batch goes in parts that stay in the cache."""

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Any = None, depth: int | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        x, mask = inputs_embeds, attention_mask
        slices = parts(x)
        is_watched = any(kwargs.get(name) for name in ("output_hidden_states", "output_attentions"))
        first: Any = self.layers[0] if len(self.layers) else None
        is_watched = is_watched or bool(first and first.self_attn.config.output_hidden_states)
        takes_parts = mask is None or (isinstance(mask, Tensor) and mask.shape[0] == x.shape[0])
        if len(slices) == 1 or is_watched or not takes_parts or not is_plain(self, x) or has_hooks(self):
            return super().forward(x, attention_mask=mask, depth=depth, **kwargs)
        output = torch.empty_like(x)
        for part in slices:
            of_part = mask if mask is None else mask[part]
            output[part] = super().forward(x[part], attention_mask=of_part, depth=depth, **kwargs).last_hidden_state
        return BaseModelOutput(last_hidden_state=output)
