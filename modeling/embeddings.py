"""From pixels and token ids to the first hidden states, with checks that keep wrong input from passing silently."""

from typing import cast

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils.import_utils import is_tracing

from ..configuration import SquareViTConfig, TextConfig, ViTConfig

HINT = "Use the checkpoint's processor, which cuts images of any size into patches."


class VisionEmbeddings(nn.Module):
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
        self.check(pixel_values, interpolate_pos_encoding)
        pixel_values = pixel_values.to(self.patch_embedding.weight.dtype)
        patches = self.patch_embedding(pixel_values)  # (batch, width, rows, columns)
        embeddings = patches.flatten(2).transpose(1, 2)  # (batch, patches, width)
        if self.config.num_class_tokens:
            class_token = self.class_embedding.expand(pixel_values.shape[0], 1, -1)
            embeddings = torch.cat([class_token, embeddings], dim=1)  # (batch, 1 + patches, width)
        return embeddings + self.positions(patches.shape[-2:] if interpolate_pos_encoding else None, patches.device)

    def positions(self, grid: torch.Size | None, device: torch.device) -> Tensor:
        """Return the position table (1, tokens, width), resized to `grid` as in transformers: bicubic, no antialias."""
        table = self.position_embedding(torch.arange(self.config.num_positions, device=device))[None]
        side = self.config.grid_size
        if grid is None or tuple(grid) == (side, side):
            return table
        class_position, table = table.tensor_split([self.config.num_class_tokens], dim=1)
        table = table.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, width, side, side)
        table = nn.functional.interpolate(table, size=tuple(grid), mode="bicubic", align_corners=False)
        return torch.cat([class_position, table.flatten(2).transpose(1, 2)], dim=1)

    def check(self, pixel_values: Tensor, interpolate_pos_encoding: bool) -> None:
        """Raise ValueError for images of another shape than the checkpoint was trained on."""
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


class PatchEmbeddings(nn.Module):
    """Ready-made patches through a linear layer; the square table of positions resized to the grid of each image."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        self.position_embedding = nn.Embedding(config.num_positions, config.hidden_size)

    def forward(
        self, pixel_values: Tensor, pixel_attention_mask: Tensor | None, spatial_shapes: Tensor | None
    ) -> Tensor:
        grids = self.check(pixel_values, pixel_attention_mask, spatial_shapes).to(pixel_values.device)
        if pixel_attention_mask is not None:  # padding can hold anything, and 0 times NaN is NaN
            is_padding = pixel_attention_mask.to(pixel_values.device).eq(0)
            pixel_values = pixel_values.masked_fill(is_padding[..., None], 0)
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))  # (images, tokens, width)
        return patches + self.positions(grids, patches.shape[1]).to(patches.dtype)

    def positions(self, grids: Tensor, tokens: int) -> Tensor:
        """Return positions (images, tokens, width) in float32, for `grids` (images, 2) of rows and columns of patches.

        The table is resized bilinearly with antialias, as in big_vision. Padding has the position of the first patch.
        """
        side = self.config.grid_size
        table = self.position_embedding(torch.arange(side * side, device=grids.device))  # (positions, width)
        rows, columns = grids.clamp(min=1)[..., None].unbind(1)  # (images, 1) each
        token = torch.arange(tokens, device=grids.device)
        token = token * (token < rows * columns)  # (images, tokens)
        with torch.autocast(grids.device.type, enabled=False):
            of_rows = resize_weights(token // columns, rows, side)  # (images, tokens, side)
            of_columns = resize_weights(token % columns, columns, side)
            weights = of_rows[..., :, None] * of_columns[..., None, :]  # (images, tokens, side, side)
            return weights.flatten(2) @ table.float()

    def check(self, pixel_values: Tensor, pixel_attention_mask: Tensor | None, spatial_shapes: Tensor | None) -> Tensor:
        """Return `spatial_shapes`. Raise ValueError for inputs that do not fit each other or the checkpoint."""
        values = self.patch_embedding.in_features
        if pixel_values.ndim != 3 or pixel_values.shape[2] != values:
            expected = f"(images, patches, {values})"
            raise ValueError(f"pixel_values must have shape {expected}, got {tuple(pixel_values.shape)}. {HINT}")
        images, tokens = pixel_values.shape[:2]
        if spatial_shapes is None:
            raise ValueError(f"spatial_shapes, the rows and columns of patches of each image, are missing. {HINT}")
        for name, given, shape in (
            ("spatial_shapes", spatial_shapes, (images, 2)),
            ("pixel_attention_mask", pixel_attention_mask, (images, tokens)),
        ):
            if given is not None and given.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(given.shape)}. {HINT}")
        is_known = all(given is None or given.device.type == "cpu" for given in (pixel_attention_mask, spatial_shapes))
        if is_known and not is_tracing(pixel_values):
            self.check_values(tokens, pixel_attention_mask, spatial_shapes)
        return spatial_shapes

    def check_values(self, tokens: int, mask: Tensor | None, grids: Tensor) -> None:
        """Raise ValueError for an image without patches, with more than its grid has, or with a grid of too many."""
        patches = grids.clamp(min=0).prod(dim=-1)  # (images,)
        counted = torch.full_like(patches, tokens) if mask is None else mask.ne(0).sum(dim=-1)
        wrong = (counted < 1) | (counted > patches) | (patches > tokens)
        if wrong.any():
            image = int(wrong.nonzero()[0])
            raise ValueError(
                f"Image {image} has a grid of {grids[image].tolist()} patches (spatial_shapes), but {counted[image]} "
                f"of its {tokens} tokens are no padding (pixel_attention_mask). {HINT}"
            )


class TextEmbeddings(nn.Module):
    """Token and position embeddings."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, input_ids: Tensor | None, position_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """Return hidden states (batch, length, width) of ids (batch, length) or, if given, of `inputs_embeds`."""
        limit = self.config.max_position_embeddings
        if inputs_embeds is not None:
            inputs_embeds = self.pad_embeds(inputs_embeds)
        elif input_ids is not None:
            inputs_embeds = self.token_embedding(fit_length(input_ids, self.config))
        else:
            raise ValueError("A text tower needs input_ids (batch, length) or inputs_embeds, got neither.")
        if not 1 <= (length := inputs_embeds.shape[1]) <= limit:
            raise ValueError(
                f"Texts have at least 1 and at most {limit} tokens (config.max_position_embeddings), got {length}. "
                "Use the checkpoint's processor, or truncation=True."
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


def resize_weights(index: Tensor, size: Tensor, side: int) -> Tensor:
    """Return what each of `side` values adds to the values at `index` (images, n) when they are resized to `size`.

    Those are the weights (images, n, side) of the triangle filter, antialiased, with the pixels' centres at halves: of
    `interpolate(mode="bilinear", antialias=True)` in PyTorch and `jax.image.resize(method="bilinear")`.
    """
    scale = (side / size)[..., None]  # (images, 1, 1)
    centers = (index[..., None] + 0.5) * scale  # (images, n, 1)
    distances = (torch.arange(side, device=index.device) + 0.5 - centers).abs() / scale.clamp(min=1)
    weights = (1 - distances).clamp(min=0)
    return weights / weights.sum(dim=-1, keepdim=True)


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
    if (missing := length - input_ids.shape[1]) >= 0:
        return nn.functional.pad(input_ids, (0, missing), value=pad)
    last = input_ids[:, length - 1 : length]
    last = last.masked_fill(last.ne(pad), eos)  # (batch, 1)
    return torch.cat([input_ids[:, : length - 1], last], dim=1)


def roll_left_padded_rows(input_ids: Tensor, pad: int, eos: int) -> Tensor:
    """Move the padding of left-padded rows to their end: [pad, pad, 5, 6, eos] becomes [5, 6, eos, pad, pad].

    transformers' Siglip2Tokenizer pads on the left by default.
    """
    length = input_ids.shape[1]
    is_left_padded = input_ids[:, :1].eq(pad) & input_ids[:, -1:].eq(eos)  # (batch, 1)
    first_token = input_ids.ne(pad).int().argmax(dim=1, keepdim=True)  # position of the first id that is not padding
    shift = first_token * is_left_padded
    columns = torch.arange(length, device=input_ids.device) + shift  # (batch, length)
    return input_ids.gather(1, columns % length)
