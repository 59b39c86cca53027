"""From pixels and token ids to the first hidden states, with the guards that keep wrong input from passing silently."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ..configuration import TextConfig, VisionConfig


class VisionEmbeddings(nn.Module):
    """Patches as a convolution, a class token where the family has one, learned positions."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        if config.class_token:
            self.class_embedding = nn.Parameter(torch.empty(config.hidden_size))
        channels = config.num_channels, config.hidden_size
        self.patch_embedding = nn.Conv2d(*channels, config.patch_size, config.patch_size, bias=config.patch_bias)
        self.num_positions = config.grid_size**2 + config.class_token
        self.position_embedding = nn.Embedding(self.num_positions, config.hidden_size)

    def initialize_own_parameters(self, config: VisionConfig) -> None:
        if config.class_token:
            init.normal_(self.class_embedding, std=config.hidden_size**-0.5 * config.initializer_factor)

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        self.check(pixel_values, interpolate_pos_encoding)
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        embeddings = patches.flatten(2).transpose(1, 2)  # (batch, patches, width)
        if self.config.class_token:
            class_token = self.class_embedding.expand(pixel_values.shape[0], 1, -1)
            embeddings = torch.cat([class_token, embeddings], dim=1)
        return embeddings + self.positions(patches.shape[-2:] if interpolate_pos_encoding else None, patches.device)

    def positions(self, grid: torch.Size | None, device: torch.device) -> Tensor:
        """The position table (1, tokens, width), resized to `grid` as transformers does: bicubic, no antialias."""
        table = self.position_embedding(torch.arange(self.num_positions, device=device))
        table, side = table[None], self.config.grid_size
        if grid is None or tuple(grid) == (side, side):
            return table
        class_position, table = table[:, : self.config.class_token], table[:, self.config.class_token :]
        table = table.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, width, side, side)
        table = nn.functional.interpolate(table, size=tuple(grid), mode="bicubic", align_corners=False)
        return torch.cat([class_position, table.flatten(2).transpose(1, 2)], dim=1)

    def check(self, pixel_values: Tensor, interpolate_pos_encoding: bool) -> None:
        channels, size = self.config.num_channels, self.config.image_size
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            expected = f"(batch, {channels}, height, width)"
            raise ValueError(f"pixel_values must have shape {expected}, got {tuple(pixel_values.shape)}.")
        height, width = pixel_values.shape[-2:]
        if not interpolate_pos_encoding and (height, width) != (size, size):
            raise ValueError(
                f"Images must be {size}x{size} (config.image_size), got {height}x{width}. "
                "Use the checkpoint's processor, or pass interpolate_pos_encoding=True to resize the position table."
            )


class TextEmbeddings(nn.Module):
    """Token and position embeddings."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config: Any = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, input_ids: Any, position_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """Hidden states (batch, length, width) of ids (batch, length) or, given these, of embeddings."""
        limit = self.config.max_position_embeddings
        if inputs_embeds is None:
            inputs_embeds = self.token_embedding(fit_length(input_ids, self.config))
        elif self.config.fixed_length and (missing := limit - inputs_embeds.shape[1]) > 0:
            shape = (inputs_embeds.shape[0], missing)
            padding = torch.full(shape, self.config.pad_token_id, device=inputs_embeds.device)
            inputs_embeds = torch.cat([inputs_embeds, self.token_embedding(padding)], dim=1)
        if (length := inputs_embeds.shape[1]) > limit:
            raise ValueError(
                f"Texts may have at most {limit} tokens (config.max_position_embeddings), got {length}. "
                "Use the checkpoint's processor, or truncation=True."
            )
        if position_ids is None:
            position_ids = torch.arange(length, device=inputs_embeds.device)[None]
        elif position_ids.shape[-1] != length:
            raise ValueError(f"position_ids must name all {length} positions, got {position_ids.shape[-1]}.")
        return inputs_embeds + self.position_embedding(position_ids)


def fit_length(input_ids: Tensor, config: Any) -> Tensor:
    """Token ids (batch, length) as the tower was trained on them: (batch, max_position_embeddings) for a fixed length.

    Padding stands on the right, short texts are padded, long ones cut, and a text that fills all positions ends in
    end-of-text. Ids that are right already come back unchanged.
    """
    if not config.fixed_length:
        return input_ids
    length, pad, eos = config.max_position_embeddings, config.pad_token_id, config.eos_token_id
    # Padded on the left (the default of transformers' Siglip2Tokenizer): padding first, end-of-text last.
    is_left_padded = input_ids[:, :1].eq(pad) & input_ids[:, -1:].eq(eos)
    leading = input_ids.ne(pad).int().argmax(dim=1, keepdim=True) * is_left_padded
    places = torch.arange(input_ids.shape[1], device=input_ids.device) + leading
    input_ids = input_ids.gather(1, places % input_ids.shape[1])
    if input_ids.shape[1] > length:
        kept, last = input_ids[:, : length - 1], input_ids[:, length - 1]
        return torch.cat([kept, last.masked_fill(last.ne(pad), eos)[:, None]], dim=1)
    return nn.functional.pad(input_ids, (0, length - input_ids.shape[1]), value=pad)
