"""From all tokens to one vector: a pooling is a function in a table, chosen by the family's `pooling` trait."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ..configuration import VisionConfig
from .attention import PoolingAttention
from .encoder import MLP


class AttentionPoolingHead(nn.Module):
    """Attention pool over patches, then a residual MLP (`MAPHead_0` in big_vision)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.attention = PoolingAttention(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)

    def initialize_own_parameters(self, config: VisionConfig) -> None:
        init.xavier_uniform_(self.probe)

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> Tensor:
        pooled, _ = self.attention(self.probe, hidden_states, output_attentions=output_attentions)
        return (pooled + self.mlp(self.layernorm(pooled)))[:, 0]  # (batch, width)


def class_token(tower: Any, hidden_states: Tensor, **inputs: Any) -> Tensor:
    return hidden_states[:, 0]


def last_token(tower: Any, hidden_states: Tensor, **inputs: Any) -> Tensor:
    return hidden_states[:, -1]


def attention(tower: Any, hidden_states: Tensor, **inputs: Any) -> Tensor:
    return tower.head(hidden_states, output_attentions=inputs.get("output_pooling_attentions", False))


def first_eos(
    tower: Any, hidden_states: Tensor, input_ids: Tensor | None, attention_mask: Tensor | None, **inputs: Any
) -> Tensor:
    """The first end-of-text; for embeddings without ids, the last token that is not masked."""
    rows = torch.arange(hidden_states.shape[0], device=hidden_states.device)
    if input_ids is not None and tower.config.eos_token_id == 2:
        # Hub folders from before transformers PR 24773 carry this id; the highest id is end-of-text, as in openai/CLIP.
        position = input_ids.int().argmax(dim=-1)
    elif input_ids is not None:
        position = (input_ids == tower.config.eos_token_id).int().argmax(dim=-1)
    elif attention_mask is not None and attention_mask.ndim == 2:
        position = attention_mask.shape[1] - 1 - attention_mask.flip(-1).int().argmax(dim=-1)
    else:
        position = torch.full_like(rows, hidden_states.shape[1] - 1)
    return hidden_states[rows, position.to(rows.device)]


POOLERS: dict[str, Any] = {f.__name__: f for f in (class_token, attention, last_token, first_eos)}
