"""Tables of positions at other sizes than they were trained for, as the official code of each family makes them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# How a table of positions is resized: arguments of `interpolate`. The method is named after the code that has it:
# `resample_posemb` of big_vision, which is scipy.ndimage.zoom(order=1), `resize_pos_embed` of open_clip, and
# `interpolate_pos_encoding` of transformers.
RESAMPLING_METHODS: dict[str, dict[str, Any]] = {
    "big_vision": {"mode": "bilinear", "align_corners": True},
    "open_clip": {"mode": "bicubic", "antialias": True},
    "transformers": {"mode": "bicubic"},
}


def resize_weights(index: Tensor, size: Tensor, side: int) -> Tensor:
    """Return what each of `side` values adds to the values at `index` (images, n) when they are resized to `size`.

    Those are the weights (images, n, side) of the triangle filter, antialiased, with the pixels' centres at halves: of
    `interpolate(mode="bilinear", antialias=True)` in PyTorch and `jax.image.resize(method="bilinear")`. They have the
    dtype of `size` (images, 1).
    """
    scale = (side / size)[..., None]  # (images, 1, 1)
    centers = (index.to(size)[..., None] + 0.5) * scale  # (images, n, 1)
    distances = (torch.arange(side, dtype=size.dtype, device=size.device) + 0.5 - centers).abs() / scale.clamp(min=1)
    weights = (1 - distances).clamp(min=0)
    return weights / weights.sum(dim=-1, keepdim=True)


@torch.no_grad()
def resize_positions(embedding: nn.Embedding, side: int, method: str) -> None:
    """Resize the positions of a square grid to `side` tokens per side, in place; the one before the grid stays."""
    old = embedding.weight
    table = old[None].to(torch.promote_types(old.dtype, torch.float32))
    table = resize_table(table, len(old) - math.isqrt(len(old)) ** 2, (side, side), method)[0].to(old.dtype)
    embedding.weight = nn.Parameter(table, requires_grad=old.requires_grad)
    embedding.num_embeddings = len(table)


def resize_table(table: Tensor, num_class_tokens: int, grid: Sequence[int], method: str) -> Tensor:
    """Return a position table (1, tokens, width) of a square grid for another one; positions of class tokens stay."""
    side = math.isqrt(table.shape[1] - num_class_tokens)
    if tuple(grid) == (side, side):
        return table
    class_positions, table = table.tensor_split([num_class_tokens], dim=1)
    table = table.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, width, side, side)
    table = nn.functional.interpolate(table, size=tuple(grid), **RESAMPLING_METHODS[method])
    return torch.cat([class_positions, table.flatten(2).transpose(1, 2)], dim=1)
