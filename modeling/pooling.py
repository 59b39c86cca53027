"""Pooling: from the hidden states of all tokens to one vector. A configuration names its pooler in `POOLERS`."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
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
        pooled, _ = self.attention(self.probe, hidden_states, output_attentions=output_attentions)  # (batch, 1, width)
        return (pooled + self.mlp(self.layernorm(pooled)))[:, 0]  # (batch, width)


class Pooler(Protocol):
    """Pools `hidden_states` (batch, length, width) to (batch, width). `inputs` are those of the tower's forward."""

    def __call__(self, tower: PreTrainedModel, hidden_states: Tensor, **inputs: Any) -> Tensor: ...


def pool_class_token(tower: PreTrainedModel, hidden_states: Tensor, **inputs: Any) -> Tensor:
    return hidden_states[:, 0]


def pool_last_token(tower: PreTrainedModel, hidden_states: Tensor, **inputs: Any) -> Tensor:
    return hidden_states[:, -1]


def pool_by_attention(
    tower: PreTrainedModel, hidden_states: Tensor, output_pooling_attentions: bool = False, **inputs: Any
) -> Tensor:
    return tower.head(hidden_states, output_attentions=output_pooling_attentions)


def pool_first_eos(
    tower: PreTrainedModel,
    hidden_states: Tensor,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    **inputs: Any,
) -> Tensor:
    """Pool at the first end-of-text; for embeddings without ids, at the last token that is not masked."""
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


POOLERS: dict[str, Pooler] = {
    "class_token": pool_class_token,
    "last_token": pool_last_token,
    "attention": pool_by_attention,
    "first_eos": pool_first_eos,
}
