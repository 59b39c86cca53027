"""The float64 reference's arithmetic: the layers of a pre-norm transformer and their weights, in NumPy.

Sources: openai/CLIP `clip/model.py@d05afc4`; google-research/big_vision@0127fb6 `models/vit.py`,
`models/proj/image_text/naflex_vit.py`, and the layers of Flax and the resampling of JAX that they call.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
WeightAndBias = tuple[Array, Array]  # a linear map: (in, out) and (out,); a norm: (width,) both


class Images(NamedTuple):
    """What an image tower takes."""

    pixels: Array  # (images, 3, height, width); NaFlex: patches and padding (images, length, values of a patch)
    grids: Ids | None = None  # NaFlex: (images, 2), patches down and across

    @property
    def mask(self) -> Mask | None:
        """NaFlex: (images, length), True for patches and False for the padding behind them."""
        return None if self.grids is None else np.arange(self.pixels.shape[1]) < self.grids.prod(1)[:, None]


@dataclass(frozen=True)
class TowerReference:
    """The outputs of one tower, named and indexed as in transformers."""

    hidden_states: list[Array]  # [embeddings, after block 1, ..., after the last block], each (batch, length, width)
    last_hidden_state: Array  # after the final norm; CLIP's image tower: before it
    pooler_output: Array  # (batch, dim), projected
    embeds: Array  # (batch, dim), unit length


@dataclass(frozen=True)
class Reference:
    """Both towers and logits_per_image (images, texts); the last two are None where a file has an image tower only."""

    image: TowerReference
    text: TowerReference | None
    logits_per_image: Array | None


class Settings(NamedTuple):
    """The settings by which the arithmetic of one tower differs from another's."""

    heads: int
    activation: str
    eps: float
    causal: bool = False


class Attention(NamedTuple):
    """Weights of multi-head attention."""

    query: WeightAndBias
    key: WeightAndBias
    value: WeightAndBias
    out: WeightAndBias


class MLP(NamedTuple):
    """Weights of the two linear maps around an activation."""

    fc1: WeightAndBias
    fc2: WeightAndBias


class Block(NamedTuple):
    """Weights of one layer of an encoder."""

    norm_1: WeightAndBias
    attention: Attention
    norm_2: WeightAndBias
    mlp: MLP


class PoolingHead(NamedTuple):
    """Weights of SigLIP's attention pooling (`MAPHead` in big_vision)."""

    probe: Array  # (1, 1, width)
    attention: Attention
    norm: WeightAndBias
    mlp: MLP


def encode(x: Array, blocks: Iterable[Block], settings: Settings, mask: Mask | None = None) -> list[Array]:
    """Return [x, after block 1, ..., after the last block], each (batch, length, width).

    Tokens attend to those that `mask` (batch, length) has as True.
    """
    states = [x]
    for block in blocks:
        y = layer_norm(x, block.norm_1, settings.eps)
        x = x + attend(y, y, block.attention, settings, mask)
        x = x + _mlp(layer_norm(x, block.norm_2, settings.eps), block.mlp, settings)
        states.append(x)
    return states


def attention_pool(x: Array, head: PoolingHead, settings: Settings, mask: Mask | None = None) -> Array:
    """Pool (batch, length, width), where `mask` (batch, length) is True, to (batch, width)."""
    probe = np.broadcast_to(head.probe, (len(x), 1, x.shape[-1]))
    pooled = attend(probe, x, head.attention, settings, mask)
    return (pooled + _mlp(layer_norm(pooled, head.norm, settings.eps), head.mlp, settings))[:, 0]


def attend(
    query_input: Array, key_input: Array, weights: Attention, settings: Settings, mask: Mask | None = None
) -> Array:
    """Return the attention of (batch, queries, width) to (batch, keys, width), mapped by `weights.out`.

    Keys are those where `mask` (batch, keys) is True.
    """

    def heads(x: Array, projection: WeightAndBias) -> Array:  # shape = [batch, heads, length, head_dim]
        return linear(x, projection).reshape(*x.shape[:2], settings.heads, -1).transpose(0, 2, 1, 3)

    queries = heads(query_input, weights.query)
    keys, values = heads(key_input, weights.key), heads(key_input, weights.value)
    scores = queries @ keys.swapaxes(-1, -2) / math.sqrt(queries.shape[-1])
    if settings.causal:
        scores += np.triu(np.full(scores.shape[-2:], -np.inf), 1)
    if mask is not None:
        scores = np.where(mask[:, None, None], scores, -np.inf)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    out = (scores / scores.sum(-1, keepdims=True)) @ values
    return linear(out.transpose(0, 2, 1, 3).reshape(query_input.shape), weights.out)


def _mlp(x: Array, weights: MLP, settings: Settings) -> Array:
    if settings.activation not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise ValueError(f"The float64 reference knows the activations {known}, got {settings.activation!r}.")
    return linear(_ACTIVATIONS[settings.activation](linear(x, weights.fc1)), weights.fc2)


def linear(x: Array, weights: WeightAndBias) -> Array:
    """Apply a linear map to the last axis."""
    return x @ weights[0] + weights[1]


def layer_norm(x: Array, weights: WeightAndBias, eps: float) -> Array:
    """Normalise the last axis, then scale and shift it."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weights[0] + weights[1]


def embed_patches(pixels: Array, kernel: Array) -> Array:
    """Apply a patch convolution (width, 3, size, size) without bias; pixels that fill no whole patch are dropped."""
    size = kernel.shape[-1]
    rows, columns = pixels.shape[2] // size, pixels.shape[3] // size
    grid = pixels[:, :, : rows * size, : columns * size].reshape(-1, 3, rows, size, columns, size)
    patches = grid.transpose(0, 2, 4, 1, 3, 5).reshape(len(pixels), rows * columns, -1)
    return patches @ kernel.reshape(len(kernel), -1).T


def resize_positions(table: Array, rows: int, columns: int) -> Array:
    """Resize a table of positions (old rows, old columns, width) to those of a grid, (rows * columns, width).

    As `jax.image.scale_and_translate` does with `method="bilinear", antialias=True`.
    """
    down, across = _resampling(len(table), rows), _resampling(table.shape[1], columns)
    return np.einsum("ry,cx,yxw->rcw", down, across, table).reshape(rows * columns, -1)


def _resampling(old: int, new: int) -> Array:
    """Return the weights of old positions for each new one, (new, old): a triangle, which is wider when shrinking."""
    centres = (np.arange(new)[:, None] + 0.5) * old / new - 0.5
    weights = np.maximum(0, 1 - np.abs(centres - np.arange(old)) / max(1, old / new))
    return weights / weights.sum(1, keepdims=True)


def tower_reference(states: list[Array], last: Array, pooled: Array, norm_floor: float = 0.0) -> TowerReference:
    """Normalise the pooled output to unit length. big_vision adds 1e-8 to the norm; CLIP divides by the norm alone."""
    norm = np.linalg.norm(pooled, axis=-1, keepdims=True) + norm_floor
    return TowerReference(states, last, pooled, pooled / norm)


def _quick_gelu(x: Array) -> Array:
    return x * 0.5 * (1 + np.tanh(0.851 * x))  # x * sigmoid(1.702 x), without overflow


def _exact_gelu(x: Array) -> Array:
    return x * torch.special.ndtr(torch.from_numpy(x)).numpy()  # NumPy has no error function


def _tanh_gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


_ACTIVATIONS = {"quick_gelu": _quick_gelu, "gelu": _exact_gelu, "gelu_pytorch_tanh": _tanh_gelu}
