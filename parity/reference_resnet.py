"""The float64 reference of CLIP's ResNet: OpenAI's names, which open_clip's have too, and those of twinlens.

Source: openai/CLIP `clip/model.py@d05afc4`, `ModifiedResNet`, `Bottleneck` and `AttentionPool2d`; the arithmetic of
convolution, batch norm and average pool is PyTorch's, whose defaults that code takes.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .reference_layers import Array, Attention, Settings, TowerReference, attend, tower_reference
from .reference_weights import GetWeight, torch_pair

BATCH_NORM_EPS = 1e-5


class ResNetNames(NamedTuple):
    """The names of one format; `{}` stands for a number, that of a stage and that of a block in it."""

    stem: Callable[[int], tuple[str, str]]  # of convolution 1, 2, 3: the names of the convolution and of its norm
    block: Callable[[int, int], str]  # the prefix of block 0, 1, ... in stage 1, 2, 3, 4
    within: Callable[[int], tuple[str, str]]  # of convolution 1, 2, 3 in a block, below its prefix
    shortcut: tuple[str, str]  # below the same prefix
    positions: str
    pool: str  # the prefix of query, key and value
    out: str


OPENAI_NAMES = ResNetNames(
    stem=lambda number: (f"visual.conv{number}", f"visual.bn{number}"),
    block=lambda stage, number: f"visual.layer{stage}.{number}.",
    within=lambda number: (f"conv{number}", f"bn{number}"),
    shortcut=("downsample.0", "downsample.1"),
    positions="visual.attnpool.positional_embedding",
    pool="visual.attnpool.",
    out="visual.attnpool.c_proj",
)
TWINLENS_NAMES = ResNetNames(
    stem=lambda number: (f"vision_model.embeddings.{number - 1}.conv", f"vision_model.embeddings.{number - 1}.norm"),
    block=lambda stage, number: f"vision_model.layers.{stage - 1}.{number}.",
    within=lambda number: (f"conv{number}.conv", f"conv{number}.norm"),
    shortcut=("downsample.conv", "downsample.norm"),
    positions="vision_model.head.position_embedding.weight",
    pool="vision_model.head.",
    out="vision_model.head.out_proj",
)


def resnet_tower(
    pixels: Array, weight: GetWeight, has: Callable[[str], bool], names: ResNetNames, heads: int | None
) -> TowerReference:
    """Run the image tower. Its hidden states are the tokens of the stem and of the four stages, row by row.

    `has` says whether a file has a name. Heads are 64 wide where their number is not given.
    """

    def convolve_and_norm(x: Array, conv_and_norm: tuple[str, str], prefix: str = "", stride: int = 1) -> Array:
        conv, norm = (prefix + name for name in conv_and_norm)
        return _batch_norm(_convolve(x, weight(f"{conv}.weight"), stride), weight, norm)

    x = pixels
    for number in (1, 2, 3):
        x = _relu(convolve_and_norm(x, names.stem(number), stride=2 if number == 1 else 1))
    x = _average(x)
    states = [_tokens(x)]
    for stage in (1, 2, 3, 4):
        number = 0
        while has(f"{(prefix := names.block(stage, number))}{names.within(1)[0]}.weight"):
            y = _relu(convolve_and_norm(x, names.within(1), prefix))
            y = _relu(convolve_and_norm(y, names.within(2), prefix))
            if stage > 1 and number == 0:
                x, y = _average(x), _average(y)
            if has(f"{prefix}{names.shortcut[0]}.weight"):
                x = convolve_and_norm(x, names.shortcut, prefix)
            x = _relu(convolve_and_norm(y, names.within(3), prefix) + x)
            number += 1
        states.append(_tokens(x))
    return tower_reference(states, states[-1], _attention_pool(states[-1], weight, names, heads))


def _attention_pool(tokens: Array, weight: GetWeight, names: ResNetNames, heads: int | None) -> Array:
    x = np.concatenate([tokens.mean(1, keepdims=True), tokens], axis=1) + weight(names.positions)
    query, key, value = (torch_pair(weight, f"{names.pool}{part}_proj") for part in "qkv")
    weights = Attention(query, key, value, torch_pair(weight, names.out))
    return attend(x[:, :1], x, weights, Settings(heads or x.shape[-1] // 64, "", BATCH_NORM_EPS))[:, 0]


def _tokens(x: Array) -> Array:
    """Return a map (batch, channels, rows, columns) as (batch, rows * columns, channels)."""
    return x.reshape(*x.shape[:2], -1).swapaxes(1, 2)


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


def _average(x: Array) -> Array:
    """Average squares of 2x2; a last odd row or column is dropped."""
    rows, columns = x.shape[2] // 2, x.shape[3] // 2
    x = x[:, :, : 2 * rows, : 2 * columns].reshape(*x.shape[:2], rows, 2, columns, 2)
    return x.mean((3, 5))


def _convolve(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolve (batch, in, rows, columns) with (out, in, size, size), padded with zeros by half of its size."""
    size = kernel.shape[-1]
    padded = np.pad(x, ((0, 0), (0, 0), (size // 2, size // 2), (size // 2, size // 2)))
    rows, columns = (-(-side // stride) for side in x.shape[2:])
    result = np.zeros((len(x), len(kernel), rows * columns))
    for top in range(size):  # one matrix product for each place of the kernel: no copy of all its windows at once
        for left in range(size):
            window = padded[:, :, top : top + stride * rows : stride, left : left + stride * columns : stride]
            result += kernel[:, :, top, left] @ window.reshape(*x.shape[:2], -1)
    return result.reshape(len(x), len(kernel), rows, columns)


def _batch_norm(x: Array, weight: GetWeight, name: str) -> Array:
    """Normalise every channel by the statistics of training."""
    scale = weight(f"{name}.weight") / np.sqrt(weight(f"{name}.running_var") + BATCH_NORM_EPS)
    shift = weight(f"{name}.bias") - weight(f"{name}.running_mean") * scale
    return x * scale[:, None, None] + shift[:, None, None]
