"""Pooling: from the hidden states of all tokens to one vector. A configuration names its pooler in `POOLERS`."""

import logging
from contextlib import suppress
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils.import_utils import is_tracing

from ..configuration import ViTConfig
from .attention import PoolingAttention, image_mask
from .encoder import MLP

logger = logging.getLogger(__name__)
# Towers whose texts are no longer checked for their end. Not an attribute of theirs: it would be saved with a model.
_CHECKED: "WeakSet[PreTrainedModel]" = WeakSet()


class AttentionPoolingHead(nn.Module):
    """Attention pool over patches, then a residual MLP (`MAPHead_0` in big_vision)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.attention = PoolingAttention(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)

    def initialize_own_parameters(self, config: ViTConfig) -> None:
        init.xavier_uniform_(self.probe)

    def forward(self, hidden_states: Tensor, token_mask: Tensor | None = None, output_map: bool = False) -> Tensor:
        mask = image_mask(self.attention.config, self.probe, hidden_states, token_mask, output_map)
        pooled, _ = self.attention(self.probe, hidden_states, attention_mask=mask, output_attentions=output_map)
        return (pooled + self.mlp(self.layernorm(pooled)))[:, 0]  # (batch, 1, width) -> (batch, width)


class Pooler(Protocol):
    """Pools `hidden_states` (batch, length, width) to (batch, width). `inputs` are those of the tower's forward."""

    def __call__(self, tower: PreTrainedModel, hidden_states: Tensor, **inputs: Any) -> Tensor: ...


def pool_class_token(tower: PreTrainedModel, hidden_states: Tensor, **inputs: Any) -> Tensor:
    return hidden_states[:, 0]


def pool_last_token(tower: PreTrainedModel, hidden_states: Tensor, **inputs: Any) -> Tensor:
    return hidden_states[:, -1]


def pool_by_attention(tower: PreTrainedModel, hidden_states: Tensor, **inputs: Any) -> Tensor:
    mask, maps = inputs.get("token_mask"), inputs.get("output_pooling_attentions", False)
    # The states alone where that is all: client code puts nn.Identity in the place of the head.
    return tower.head(hidden_states, *(() if mask is None and not maps else (mask, maps)))


def pool_first_eos(
    tower: PreTrainedModel,
    hidden_states: Tensor,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    **inputs: Any,
) -> Tensor:
    """Pool at the end of the text: its first `eos_token_id`, or its highest id where `ends_at_highest_id`.

    What `attention_mask` (batch, length) hides is not looked at. Embeddings without ids are pooled at their last token,
    and so is, with one warning for each tower, a text without an end.
    """
    rows = torch.arange(hidden_states.shape[0], device=hidden_states.device)
    mask = attention_mask.bool() if attention_mask is not None and attention_mask.ndim == 2 else None
    if input_ids is not None:
        position = end_of_text(tower, input_ids, mask)
    elif mask is not None:
        position = last_token(mask)
    else:
        position = torch.full_like(rows, hidden_states.shape[1] - 1)
    return hidden_states[rows, position.to(rows.device)]


def end_of_text(tower: PreTrainedModel, input_ids: Tensor, mask: Tensor | None) -> Tensor:
    """Return the position (batch,) of the end of each text, of its last token where it has none."""
    config = tower.config
    pad = -1 if config.pad_token_id is None else config.pad_token_id
    is_token = input_ids.ne(pad) if mask is None else mask  # (batch, length)
    last = last_token(is_token)
    if config.ends_at_highest_id:
        ids = input_ids.int() if mask is None else input_ids.int().masked_fill(~mask, -1)
        position = ids.argmax(dim=-1)
        # A text whose first token has the highest id begins with the start of text and was cut: that is not its end.
        found = position.gt(is_token.int().argmax(dim=-1)) | position.eq(last)
    else:
        is_end = input_ids.eq(config.eos_token_id)
        is_end = is_end if mask is None else is_end & mask
        position, found = is_end.int().argmax(dim=-1), is_end.any(dim=-1)
    _warn_of_missing_end(tower, found)
    return torch.where(found, position, last)


def last_token(is_token: Tensor) -> Tensor:
    """Return the last position (batch,) where `is_token` (batch, length) is true."""
    return is_token.shape[1] - 1 - is_token.flip(-1).int().argmax(dim=-1)


def _warn_of_missing_end(tower: PreTrainedModel, found: Tensor) -> None:
    if is_tracing(found) or tower in _CHECKED or not logger.isEnabledFor(logging.WARNING):
        return
    if found.device.type != "cpu":
        _CHECKED.add(tower)  # looking at values waits for the device; the first batch shows ids of another vocabulary
    with suppress(RuntimeError):  # on the meta device and inside torch.func.vmap there are no values to look at
        if found.all():
            return
        _CHECKED.add(tower)
        end = "highest id after the first token" if tower.config.ends_at_highest_id else "end of text"
        logger.warning(
            "A text has no %s (config.eos_token_id is %d) and was pooled at its last token. Its ids were cut without "
            "keeping the end, or they are those of another vocabulary. There is one such warning only.",
            end,
            tower.config.eos_token_id,
        )


def mean_of_tokens(hidden_states: Tensor, token_mask: Tensor | None) -> Tensor:
    """Return the mean (batch, width) of those tokens (batch, length, width) whose `token_mask` is not 0."""
    if token_mask is None:
        return hidden_states.mean(dim=1)
    weights = token_mask.ne(0).to(hidden_states)[..., None]  # (batch, length, 1)
    return (hidden_states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


POOLERS: dict[str, Pooler] = {
    "class_token": pool_class_token,
    "last_token": pool_last_token,
    "attention": pool_by_attention,
    "first_eos": pool_first_eos,
}
