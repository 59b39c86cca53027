"""The end of an optimised tower, where one position is pooled: the last attention has one query, and computes no more.

What that leaves out of `last_hidden_state` is computed when somebody reads it.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.import_utils import is_tracing

from ..modeling.attention import PoolingAttention, text_mask
from ..modeling.clip_resnet import AttentionPooling
from ..modeling.encoder import EncoderLayer
from ..modeling.pooling import POOLERS
from ..modeling.towers import TextTower, VisionTower
from ..runtime.outputs import deferred, later, states_of
from ..runtime.pickling import has_hooks
from .optimization import OptimizedModule
from .optimized_layers import WatchedLayer
from .products import attend_from_one, has_usual_kernel, is_plain, parts
from .shared_prefixes import SharedPrefixes, begin_alike

ONE_POSITION = ("class_token", "last_token", "first_eos")  # the poolers that take the state of one token


class PooledPosition:
    """The method `encode_tokens` of a tower: the last block computes the position that is pooled, and no other.

    It lies in the attributes of the tower, which keeps its class, because the name of that is saved with the model.
    """

    def __init__(self, tower: VisionTower | TextTower) -> None:
        self.tower: Any = tower

    @staticmethod
    def fits(tower: Any) -> bool:
        """Return whether a tower pools one position, by its class's own methods."""
        usual = next((x for x in (VisionTower, TextTower) if isinstance(tower, x)), None)
        if usual is None or tower.config.pooling not in ONE_POSITION or not getattr(tower, "pooled", True):
            return False
        methods = {"encode_tokens", "pool"}
        are_usual = all(getattr(type(tower), name, None) is getattr(usual, name, None) for name in methods)
        return are_usual and not methods & vars(tower).keys()

    def __call__(self, hidden_states: Tensor, *inputs: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Do what `encode_tokens` of the tower does; `inputs` are `input_ids` and `attention_mask` of a text tower."""
        tower, x = self.tower, hidden_states  # (batch, length, width)
        if not self.can_stop_early(x, *inputs, **kwargs):
            return type(tower).encode_tokens(tower, x, *inputs, **kwargs)
        options: dict[str, Any] = {}
        if isinstance(tower, TextTower):
            mask = text_mask(tower.config, x, inputs[1], output_attentions=False)
            options = {"attention_mask": mask, "is_causal": tower.config.causal}
        elif tower.config.pre_norm:
            x = tower.pre_layrnorm(x)
        # Pooled as if they were hidden states, positions (batch, length) give that of each row (batch,).
        positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        names = ("input_ids", "attention_mask")[: len(inputs)]
        position = POOLERS[tower.config.pooling](tower, positions, **dict(zip(names, inputs, strict=True)))
        ids, mask = inputs or (None, None)
        if options.get("is_causal") and ids is not None and begin_alike(x, ids, mask, position):
            pooled = self.pool_beginnings(x, ids, mask, position, options["attention_mask"])
            # Copies, because the caller may change the inputs before the states are read.
            copies = [value if value is None else value.clone() for value in inputs]
            states = later("cpu", partial(type(tower).encode_tokens, tower, x, *copies))
        else:
            x = self.encode_before(x, **options)
            pooled = self.pool_last(x, position, **options)
            states = later("cpu", partial(self.complete, x, **options))
        pooled = (
            tower.head(tower.final_layer_norm(pooled)) if isinstance(tower, TextTower) else tower.post_layernorm(pooled)
        )
        return deferred(BaseModelOutputWithPooling, last_hidden_state=states, pooler_output=pooled)

    def encode_before(self, x: Tensor, **options: Any) -> Tensor:
        """Return the states (batch, length, width) before the last block."""
        return states_of(self.tower.encoder(x, depth=len(self.tower.encoder.layers) - 1, **options))

    def pool_last(self, x: Tensor, position: Tensor, **options: Any) -> Tensor:
        """Return what the last block makes of the states `x` before it at one `position` (batch,) each."""
        last, mask = self.tower.encoder.layers[-1], visible_from(position, x.shape[1], **options)
        return torch.cat(
            [block_at(last, x[part], position[part], None if mask is None else mask[part]) for part in parts(x)]
        )

    def pool_beginnings(
        self, x: Tensor, input_ids: Tensor, attention_mask: Tensor | None, position: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Return the pooled states of texts, without what they share, or what follows their ends, more than once."""
        pooled = []
        for part in parts(x):
            shared = SharedPrefixes(
                input_ids[part], attention_mask if attention_mask is None else attention_mask[part], position[part]
            )
            length = slice(shared.length)
            shared.mask = mask if mask is None else mask.expand(len(x), -1, -1, -1)[part, :, length, length]
            sequence = self.encode_before(x[part][shared.rows][None], attention_mask=shared, is_causal=True)
            states = sequence[0][shared.place]
            pooled.append(self.pool_last(states, position[part], attention_mask=shared.mask, is_causal=True))
        return torch.cat(pooled)

    def can_stop_early(self, x: Tensor, *inputs: Any, **kwargs: Any) -> bool:
        """Return whether nobody sees the other positions in the last block, and the kernel is PyTorch's."""
        config, watched = self.tower.config, ("output_hidden_states", "output_attentions")
        is_usual = config._attn_implementation == "sdpa" and has_usual_kernel(config) and "pool" not in vars(self.tower)
        if self.tower.training or not is_usual or is_tracing(x) or not is_plain(x):
            return False
        last = [*self.tower.encoder.layers][-1:]
        if not last or not isinstance(last[0], WatchedLayer):
            if (optimization := vars(self.tower).get("optimization")) is not None:
                optimization.undo("Another last layer")
            return False
        if not last[0].takes(x):
            return False
        if any(kwargs.pop(name, getattr(config, name)) for name in watched) or kwargs or has_hooks(self.tower):
            return False
        return all(value is None or value.ndim == 2 for value in inputs)

    def complete(self, x: Tensor, **options: Any) -> BaseModelOutputWithPooling:
        """Return `last_hidden_state`, from the states `x` before the last block."""
        tower, last = self.tower, self.tower.encoder.layers[-1]
        x = last(x.to(last.layer_norm1.weight), **options)
        if isinstance(tower, TextTower):
            x = tower.final_layer_norm(x)
        elif tower.config.norm_first:
            x = tower.post_layernorm(x)
        return BaseModelOutputWithPooling(last_hidden_state=x)


def visible_from(
    position: Tensor, length: int, attention_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor | None:
    """Return which of `length` tokens are seen from `position` (batch,): (batch, 1, length), or None for all."""
    if attention_mask is not None:  # (batch or 1, 1, length, length)
        rows = attention_mask[:, 0].expand(len(position), -1, -1)
        return rows[torch.arange(len(position)), position][:, None]
    return (torch.arange(length) <= position[:, None])[:, None] if is_causal else None


def block_at(layer: EncoderLayer, x: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
    """Return what a block makes of `x` (batch, length, width) at one `position` (batch,) each: (batch, width)."""
    own, rows = layer.self_attn, torch.arange(len(x))
    normed = layer.layer_norm1(x)
    query, value = own.q_proj(normed[rows, position]), own.v_proj
    attended = attend_from_one(query, normed, own.k_proj.weight, value.weight, value.bias, own.head_dim, mask)
    states = x[rows, position] + own.out_proj(attended)
    return states + layer.mlp(layer.layer_norm2(states))


class OptimizedPoolingAttention(OptimizedModule, PoolingAttention):
    """The pooling head's attention, of one query."""

    def forward(self, query: Tensor, key: Tensor, value: Any = None, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        probe, x = query, key
        mask = kwargs.get("attention_mask")
        is_mask = mask is None or (isinstance(mask, Tensor) and mask.dtype == torch.bool)
        is_usual = is_mask and value is None and not kwargs.get("output_attentions") and has_usual_kernel(self.config)
        if not self.takes(x) or not is_usual:
            return PoolingAttention.forward(self, probe, x, value, **kwargs)
        query_weight, key_weight, value_weight = self.in_proj_weight.chunk(3)
        query_bias, _, value_bias = self.in_proj_bias.chunk(3)
        query = nn.functional.linear(probe[0], query_weight, query_bias)  # (1, width)
        visible = None if mask is None else mask[:, 0]  # (batch, 1, length)
        attended = attend_from_one(query, x, key_weight, value_weight, value_bias, self.head_dim, visible)
        return self.out_proj(attended)[:, None], None


class OptimizedAttentionPooling(OptimizedModule, AttentionPooling):
    """The attention of a ResNet's pooling, of one query."""

    def forward(self, tokens: Tensor, grid: torch.Size, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        is_usual = not kwargs.get("output_attentions") and has_usual_kernel(self.config)
        if not self.takes(tokens) or not is_usual or has_hooks(self):
            return AttentionPooling.forward(self, tokens, grid, **kwargs)
        x, value = self.with_mean(tokens, grid), self.v_proj
        query = self.q_proj(x[:, 0])
        return self.out_proj(
            attend_from_one(query, x, self.k_proj.weight, value.weight, value.bias, self.head_dim)
        ), None
