"""The layers of an optimised model: subclasses of the plain ones with another way through them.

Whoever watches a module by hooks, or wants hidden states, attention maps or gradients, gets the way of the plain class.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from ..modeling.encoder import Encoder, EncoderLayer
from ..runtime.pickling import has_hooks
from .optimization import OptimizedModule
from .products import Product, attend_by_products, has_usual_kernel, is_plain, parts


class OptimizedLinear(OptimizedModule, nn.Linear):
    """A linear layer with its weights in some rows of a product."""

    products: tuple[Product, slice]  # one attribute, which another thread takes away at once

    def forward(self, x: Tensor) -> Tensor:
        is_taken, products = self.takes(x), vars(self).get("products")
        if products is None:  # it has been undone
            return nn.Linear.forward(self, x)
        product, rows = products
        if is_taken and rows == slice(0, product.rows):
            return product(x)
        return nn.functional.linear(x, product.dense()[rows], self.bias)


class OptimizedPatches(OptimizedModule, nn.Conv2d):
    """The convolution to patches, which do not overlap, as a product."""

    products: Product

    def forward(self, x: Tensor) -> Tensor:
        is_taken, product = self.takes(x), vars(self).get("products")
        if product is None:
            return nn.Conv2d.forward(self, x)
        if not is_taken:
            return nn.functional.conv2d(x, product.dense().view(self.weight.shape), self.bias, self.stride)
        size = self.kernel_size[0]
        rows, columns = (side // size for side in x.shape[-2:])
        x = x[..., : rows * size, : columns * size].unflatten(3, (columns, size)).unflatten(2, (rows, size))
        patches = x.permute(0, 2, 4, 1, 3, 5).reshape(-1, rows * columns, product.inputs)
        return product(patches).mT.unflatten(2, (rows, columns))


class WatchedLayer(OptimizedModule, EncoderLayer):
    """A block that is not changed itself: it is compiled, or its tower does its work."""

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> Tensor:
        return EncoderLayer.forward(self, hidden_states, attention_mask=attention_mask, **kwargs)


class OptimizedLayer(OptimizedModule, EncoderLayer):
    """A block with one product for q, k and v, the activation and the residuals inside products."""

    # The products of q, k and v together, of out_proj, fc1 and fc2; how attention is computed; the activation.
    products: tuple[Product, Product, Product, Product, str, tuple[str, str, float]]

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> Tensor:
        x = hidden_states  # (batch, length, width)
        is_taken, products = self.takes(x), vars(self).get("products")
        if products is None or not is_taken or kwargs.get("output_attentions") or has_hooks(self):
            return EncoderLayer.forward(self, x, attention_mask=attention_mask, **kwargs)
        qkv, out_proj, fc1, fc2, attention, (activation, algorithm, scale) = products
        query, key, value = qkv(self.layer_norm1(x)).chunk(3, dim=-1)
        if attention == "products" and attention_mask is None and has_usual_kernel(self.self_attn.config):
            attended = attend_by_products(query, key, value, self.self_attn.head_dim, bool(kwargs.get("is_causal")))
        else:
            attended, _ = self.self_attn.attend(query, key, value, attention_mask, **kwargs)
        x = out_proj.added_to(x, attended)
        norm = self.layer_norm2
        weight, bias = (norm.weight, norm.bias) if scale == 1 else (norm.weight * scale, norm.bias * scale)
        normed = nn.functional.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)
        return fc2.added_to(x, fc1(normed, activation, algorithm, scale), scale)


class OptimizedEncoder(OptimizedModule, Encoder):
    """A stack of blocks through which a batch goes in parts that stay in the cache."""

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Any = None, depth: int | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        x, mask = inputs_embeds, attention_mask
        slices = parts(x)
        is_watched = any(kwargs.get(name) for name in ("output_hidden_states", "output_attentions"))
        first: Any = next(iter(self.layers), None)
        config = getattr(getattr(first, "self_attn", None), "config", None)
        is_watched = is_watched or getattr(config, "output_hidden_states", True)
        takes_parts = mask is None or (isinstance(mask, Tensor) and mask.shape[0] == x.shape[0])
        if len(slices) == 1 or is_watched or not takes_parts or not is_plain(x) or has_hooks(self):
            return Encoder.forward(self, x, attention_mask=mask, depth=depth, **kwargs)
        output = torch.empty_like(x)
        for part in slices:
            kwargs["attention_mask"] = mask if mask is None else mask[part]
            output[part] = Encoder.forward(self, x[part], depth=depth, **kwargs).last_hidden_state
        return BaseModelOutput(last_hidden_state=output)
