"""From pixels and token ids to the first hidden states, with checks that keep wrong input from passing silently."""

from typing import cast

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils.generic import maybe_autocast
from transformers.utils.import_utils import is_tracing

from ..configuration import ResNetConfig, SquareViTConfig, TextConfig, ViTConfig
from ..formats.positions import resize_table, resize_weights
from ..runtime import EmbeddingNames


class VisionEmbeddings(EmbeddingNames, nn.Module):
    """Patches as a convolution, a class token where the family has one, learned positions."""

    def __init__(self, config: SquareViTConfig) -> None:
        super().__init__()
        self.config = config
        if config.num_class_tokens:
            self.class_embedding = nn.Parameter(torch.empty(config.hidden_size))
        channels = config.num_channels, config.hidden_size
        self.patch_embedding = nn.Conv2d(*channels, config.patch_size, config.patch_size, bias=config.patch_bias)
        self.position_embedding = nn.Embedding(config.num_positions, config.hidden_size)

    def initialize_own_parameters(self, config: SquareViTConfig) -> None:
        if config.num_class_tokens:
            init.normal_(self.class_embedding, std=config.hidden_size**-0.5 * config.initializer_factor)

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        check_images(self.config, pixel_values, interpolate_pos_encoding)
        pixel_values = pixel_values.to(self.patch_embedding.weight.dtype)
        patches = self.patch_embedding(pixel_values)  # (batch, width, rows, columns)
        embeddings = patches.flatten(2).transpose(1, 2)  # (batch, patches, width)
        if self.config.num_class_tokens:
            class_token = self.class_embedding.expand(pixel_values.shape[0], 1, -1)
            embeddings = torch.cat([class_token, embeddings], dim=1)  # (batch, 1 + patches, width)
        return embeddings + self.positions(patches.shape[-2:] if interpolate_pos_encoding else None, patches.device)

    def positions(self, grid: torch.Size | None, device: torch.device) -> Tensor:
        """Return the position table (1, tokens, width), resized to `grid` as in transformers."""
        table = self.position_embedding(torch.arange(self.config.num_positions, device=device))[None]
        return table if grid is None else resize_table(table, self.config.num_class_tokens, grid, "transformers")


def check_images(config: SquareViTConfig | ResNetConfig, pixel_values: Tensor, interpolate_pos_encoding: bool) -> None:
    """Raise ValueError for images of another shape than the checkpoint was trained on."""
    channels, size = config.num_channels, config.image_size
    if len(shape := tuple(pixel_values.shape)) != 4 or shape[1] != channels:
        raise ValueError(f"pixel_values must have shape (batch, {channels}, height, width), got {shape}.")
    height, width = shape[-2:]
    if not interpolate_pos_encoding and (height, width) != (size, size):
        raise ValueError(
            f"Images must be {size}x{size} (config.image_size), got {height}x{width}. "
            "Use the checkpoint's processor, or pass interpolate_pos_encoding=True to resize the position table."
        )


class PatchEmbeddings(EmbeddingNames, nn.Module):
    """Ready-made patches through a linear layer; the square table of positions resized to the grid of each image."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        self.position_embedding = nn.Embedding(config.num_positions, config.hidden_size)

    def forward(self, pixel_values: Tensor, token_mask: Tensor | None, grids: Tensor | None) -> Tensor:
        """Return hidden states of patches (images, tokens, values), of `grids` (images, 2) of rows and columns.

        `token_mask` (images, tokens) is 0 for padding, which can hold anything.
        """
        grids = self.checked_grids(pixel_values, token_mask, grids).to(pixel_values.device)
        if token_mask is not None:  # 0 times NaN, which masked attention would do, is NaN
            pixel_values = pixel_values.masked_fill(token_mask.to(pixel_values.device).eq(0)[..., None], 0)
        # Not the dtype of the linear layer's weight: a quantised one has integers.
        patches = self.patch_embedding(pixel_values.to(self.position_embedding.weight.dtype))  # (images, tokens, width)
        return patches + self.positions(grids, patches.shape[1]).to(patches.dtype)

    def positions(self, grids: Tensor, tokens: int) -> Tensor:
        """Return positions (images, tokens, width): the table resized to `grids`, bilinear with antialias.

        They are float32, or float64 as the table. Padding has the position of the first patch, as in transformers.
        """
        side = self.config.grid_size
        table = self.position_embedding(torch.arange(side * side, device=grids.device))  # (positions, width)
        table = table.to(torch.promote_types(table.dtype, torch.float32))
        rows, columns = grids.clamp(min=1)[..., None].unbind(1)  # (images, 1) each
        token = torch.arange(tokens, device=grids.device)
        token = token * (token < rows * columns)  # (images, tokens)
        with maybe_autocast(grids.device.type, enabled=False):
            of_rows = resize_weights(token // columns, rows.to(table), side)  # (images, tokens, side)
            of_columns = resize_weights(token % columns, columns.to(table), side)
            return (of_rows[..., :, None] * of_columns[..., None, :]).flatten(2) @ table

    def checked_grids(self, pixel_values: Tensor, token_mask: Tensor | None, grids: Tensor | None) -> Tensor:
        """Return `grids` as integers. Raise ValueError for inputs that do not fit the checkpoint or each other."""
        grids = None if grids is None else torch.as_tensor(grids).long()  # 16 bits of float do not count patches
        images, tokens = (*pixel_values.shape, 0, 0)[:2]
        values, hint = self.config.num_channels * self.config.patch_size**2, "Use the checkpoint's processor."
        given = [None if x is None else (*x.shape,) for x in (pixel_values, grids, token_mask)]
        expected = [(images, tokens, values), (images, 2), token_mask if token_mask is None else (images, tokens)]
        if grids is None or given != expected:
            raise ValueError(
                f"Expected patches as pixel_values (images, tokens, {values}), the rows and columns of each image as "
                "spatial_shapes (images, 2) and, where there is padding, pixel_attention_mask (images, tokens), got "
                f"{given[0]}, {given[1]} and {given[2]}. {hint}"
            )
        if any(x is not None and x.device.type != "cpu" for x in (grids, token_mask)) or is_tracing(pixel_values):
            return grids  # looking at values would wait for the device
        patches = grids.clamp(min=0).prod(dim=-1)  # (images,)
        counted = torch.full_like(patches, tokens) if token_mask is None else token_mask.ne(0).sum(dim=-1)
        if (wrong := (counted < 1) | (counted > patches) | (patches > tokens)).any():
            image = int(wrong.nonzero()[0])
            raise ValueError(
                f"Image {image} has {grids[image].tolist()} rows and columns of patches (spatial_shapes), but "
                f"{counted[image]} of its {tokens} tokens are no padding (pixel_attention_mask). {hint}"
            )
        return grids


class TextEmbeddings(EmbeddingNames, nn.Module):
    """Token and position embeddings."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(
        self, input_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None
    ) -> Tensor:
        """Return hidden states (batch, length, width) of ids (batch, length) or, if given, of `inputs_embeds`."""
        if inputs_embeds is not None:
            inputs_embeds = self.pad_embeds(inputs_embeds)
        elif input_ids is not None:
            inputs_embeds = self.token_embedding(fit_length(input_ids, self.config))
        else:
            raise ValueError("A text tower needs input_ids (batch, length) or inputs_embeds, got neither.")
        if not 1 <= (length := inputs_embeds.shape[1]) <= self.config.max_position_embeddings:
            raise ValueError(
                f"Texts have at least 1 and at most {self.config.max_position_embeddings} tokens "
                f"(config.max_position_embeddings), got {length}. Use the checkpoint's processor, or truncation=True."
            )
        if position_ids is None:
            position_ids = torch.arange(length, device=inputs_embeds.device)[None]
        elif position_ids.shape[-1] != length:
            raise ValueError(f"position_ids must name all {length} positions, got {position_ids.shape[-1]}.")
        return inputs_embeds + self.position_embedding(position_ids)

    def pad_embeds(self, inputs_embeds: Tensor) -> Tensor:
        """Append embeddings of padding to (batch, length, width), for a family whose texts have a fixed length."""
        missing = self.config.max_position_embeddings - inputs_embeds.shape[1]
        if not self.config.fixed_length or missing <= 0:
            return inputs_embeds
        shape = (inputs_embeds.shape[0], missing)
        padding = torch.full(shape, cast(int, self.config.pad_token_id), device=inputs_embeds.device)
        return torch.cat([inputs_embeds, self.token_embedding(padding)], dim=1)


def flatten_texts(input_ids: Tensor | None, attention_mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return ids (..., length) as (texts, length), and a mask of the ids' shape likewise.

    Ids of one dimension are one text, those of three are several texts for each example.
    """
    if input_ids is None:
        return None, attention_mask
    if input_ids.ndim == 0 or input_ids.shape[-1] == 0:
        raise ValueError(f"input_ids must be (texts, length) with at least one token, got {tuple(input_ids.shape)}.")
    if attention_mask is not None and attention_mask.shape == input_ids.shape:
        attention_mask = attention_mask.reshape(-1, attention_mask.shape[-1])
    return input_ids.reshape(-1, input_ids.shape[-1]), attention_mask


def fit_length(input_ids: Tensor, config: TextConfig) -> Tensor:
    """Return token ids (batch, length) in the form (batch, max_position_embeddings) that the tower was trained on.

    Padding stands on the right, short texts are padded, long ones cut, and a text that fills all positions ends in
    end-of-text. Ids in that form, and those of a family without a fixed length, come back unchanged.
    """
    if not config.fixed_length:
        return input_ids
    length = config.max_position_embeddings
    pad, eos = cast(int, config.pad_token_id), cast(int, config.eos_token_id)  # TextConfig has checked both
    input_ids = roll_left_padded_rows(input_ids, pad, eos)
    # Without a question about their length, so that one exported graph serves all of them; -1 is no id.
    input_ids = nn.functional.pad(input_ids, (0, length), value=-1)
    input_ids, beyond = input_ids[:, :length], input_ids[:, length : length + 1]
    last = input_ids[:, -1:].masked_fill(input_ids[:, -1:].ne(pad) & beyond.ne(-1), eos)  # (batch, 1)
    return torch.cat([input_ids[:, :-1], last], dim=1).masked_fill(input_ids.eq(-1), pad)


def roll_left_padded_rows(input_ids: Tensor, pad: int, eos: int) -> Tensor:
    """Move the padding of left-padded rows to their end: [pad, pad, 5, 6, eos] becomes [5, 6, eos, pad, pad].

    transformers' Siglip2Tokenizer pads on the left by default.
    """
    length = input_ids.shape[1]
    is_left_padded = input_ids[:, :1].eq(pad) & input_ids[:, -1:].eq(eos)  # (batch, 1)
    first_token = input_ids.ne(pad).int().argmax(dim=1, keepdim=True)  # position of the first id that is not padding
    columns = torch.arange(length, device=input_ids.device) + first_token * is_left_padded  # (batch, length)
    return nn.functional.pad(input_ids, (0, length), value=pad).gather(1, columns)
