"""The official forward passes in float64 NumPy, by the official weight names: what every conversion is held against.

Nothing here is shared with `modeling` or with the tables of `formats`, so that a mistake there cannot hide here.
Sources: openai/CLIP `clip/model.py@d05afc4`; google-research/big_vision@0127fb6 `models/vit.py`,
`models/proj/image_text/{two_towers,text_transformer}.py`, and the Flax layers these call.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]
Weight = Callable[[str], Array]  # official name below some prefix -> float64 array


@dataclass(frozen=True)
class TowerReference:
    """What one tower computes, named and indexed as in transformers' outputs."""

    hidden_states: list[Array]  # [embeddings, after block 1, ..., after the last block], each (batch, length, width)
    last_hidden_state: Array  # after the final norm; CLIP's image tower: before it
    pooler_output: Array  # (batch, dim), projected
    embeds: Array  # (batch, dim), unit length


@dataclass(frozen=True)
class Reference:
    """Both towers and logits_per_image (images, texts)."""

    image: TowerReference
    text: TowerReference
    logits_per_image: Array


def reference_forward(tensors: Mapping[str, Any], pixel_values: npt.ArrayLike, input_ids: npt.ArrayLike) -> Reference:
    """Run official weights on (images, 3, height, width) normalised pixels and (texts, length) ids.

    `tensors` maps official names to torch tensors or NumPy arrays of any float type (bfloat16 as `|V2` included); each
    weight is cast to float64 when used, so a full-size model needs no second copy.
    """
    pixels, ids = np.asarray(pixel_values, np.float64), np.asarray(input_ids, np.int64)
    if "visual.proj" in tensors:
        return _openai_clip(tensors, pixels, ids)
    prefix = "params/" if any(name.startswith("params/") for name in tensors) else ""
    if f"{prefix}img/MAPHead_0/probe" in tensors:
        return _siglip({name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, pixels, ids)
    raise ValueError(
        "Expected weights under OpenAI's names (visual.proj, ...) or big_vision's (img/MAPHead_0/probe, ...). "
        f"Got {sorted(tensors)[:3]}."
    )


def _openai_clip(tensors: Mapping[str, Any], pixels: Array, ids: npt.NDArray[np.int64]) -> Reference:
    def weight(name: str) -> Array:
        return _float64(tensors[name])

    kernel = weight("visual.conv1.weight")  # (width, 3, patch, patch)
    patches = _patches(pixels, kernel.shape[-1]).transpose(0, 1, 4, 2, 3)  # (images, patches, 3, patch, patch)
    x = patches.reshape(*patches.shape[:2], -1) @ kernel.reshape(len(kernel), -1).T
    class_token = np.broadcast_to(weight("visual.class_embedding"), (len(x), 1, x.shape[-1]))
    x = np.concatenate([class_token, x], axis=1) + weight("visual.positional_embedding")
    x = _layer_norm(x, weight("visual.ln_pre.weight"), weight("visual.ln_pre.bias"), 1e-5)
    states = _openai_blocks(weight, x, "visual.", _depth(tensors, "visual.transformer.resblocks."), causal=False)
    pooled = _layer_norm(states[-1][:, 0], weight("visual.ln_post.weight"), weight("visual.ln_post.bias"), 1e-5)
    image = _tower(states, states[-1], pooled @ weight("visual.proj"))

    x = _float64(tensors["token_embedding.weight"][ids]) + weight("positional_embedding")[: ids.shape[1]]
    states = _openai_blocks(weight, x, "", _depth(tensors, "transformer.resblocks."), causal=True)
    last = _layer_norm(states[-1], weight("ln_final.weight"), weight("ln_final.bias"), 1e-5)
    pooled = last[np.arange(len(ids)), ids.argmax(-1)]  # the end of text has the highest id
    text = _tower(states, last, pooled @ weight("text_projection"))
    return Reference(image, text, np.exp(weight("logit_scale")) * image.embeds @ text.embeds.T)


def _openai_blocks(weight: Weight, x: Array, tower: str, depth: int, *, causal: bool) -> list[Array]:
    states = [x]
    for index in range(depth):
        block = f"{tower}transformer.resblocks.{index}."
        y = _layer_norm(x, weight(block + "ln_1.weight"), weight(block + "ln_1.bias"), 1e-5)
        queries, keys, values = (
            y @ matrix.T + bias
            for matrix, bias in zip(
                np.split(weight(block + "attn.in_proj_weight"), 3),
                np.split(weight(block + "attn.in_proj_bias"), 3),
                strict=True,
            )
        )
        y = _attention(queries, keys, values, x.shape[-1] // 64, causal=causal)
        x = x + y @ weight(block + "attn.out_proj.weight").T + weight(block + "attn.out_proj.bias")
        y = _layer_norm(x, weight(block + "ln_2.weight"), weight(block + "ln_2.bias"), 1e-5)
        y = _quick_gelu(y @ weight(block + "mlp.c_fc.weight").T + weight(block + "mlp.c_fc.bias"))
        x = x + y @ weight(block + "mlp.c_proj.weight").T + weight(block + "mlp.c_proj.bias")
        states.append(x)
    return states


def _siglip(tensors: Mapping[str, Any], pixels: Array, ids: npt.NDArray[np.int64]) -> Reference:
    def weight(name: str) -> Array:
        return _float64(tensors[name])

    kernel = weight("img/embedding/kernel")  # (patch, patch, 3, width)
    patches = _patches(pixels, kernel.shape[0])  # (images, patches, patch, patch, 3)
    x = patches.reshape(*patches.shape[:2], -1) @ kernel.reshape(-1, kernel.shape[-1]) + weight("img/embedding/bias")
    old_layout = "img/Transformer/pos_embedding" in tensors
    x = x + weight("img/Transformer/pos_embedding" if old_layout else "img/pos_embedding")
    states = _flax_blocks(tensors, x, "img/Transformer/")
    last = _flax_norm(weight, "img/Transformer/encoder_norm/", states[-1])
    probe = np.broadcast_to(weight("img/MAPHead_0/probe"), (len(x), 1, x.shape[-1]))
    pooled = _flax_attention(weight, "img/MAPHead_0/MultiHeadDotProductAttention_0/", probe, last)
    pooled = pooled + _flax_mlp(weight, "img/MAPHead_0/", _flax_norm(weight, "img/MAPHead_0/LayerNorm_0/", pooled))
    image = _tower(states, last, pooled[:, 0], norm_floor=1e-8)

    positions = weight("txt/pos_embedding")
    if "txt/Encoder_0/pos_embedding" in tensors:
        positions = positions + weight("txt/Encoder_0/pos_embedding")
    x = _float64(tensors["txt/Embed_0/embedding"][ids]) + positions
    states = _flax_blocks(tensors, x, "txt/Encoder_0/")
    last = _flax_norm(weight, "txt/Encoder_0/encoder_norm/", states[-1])
    pooled = last[:, -1]
    if "txt/head/kernel" in tensors:
        pooled = pooled @ weight("txt/head/kernel") + weight("txt/head/bias")
    text = _tower(states, last, pooled, norm_floor=1e-8)
    return Reference(image, text, np.exp(weight("t")) * image.embeds @ text.embeds.T + weight("b"))


def _flax_blocks(tensors: Mapping[str, Any], x: Array, tower: str) -> list[Array]:
    scanned = f"{tower}encoderblock/LayerNorm_0/scale" in tensors  # one entry with a leading layer axis for all blocks
    if scanned:
        depth = len(tensors[f"{tower}encoderblock/LayerNorm_0/scale"])
    else:
        depth = _depth(tensors, f"{tower}encoderblock_")
    states = [x]
    for index in range(depth):

        def weight(name: str, index: int = index) -> Array:
            if scanned:
                return _float64(tensors[f"{tower}encoderblock/{name}"][index])
            return _float64(tensors[f"{tower}encoderblock_{index}/{name}"])

        y = _flax_norm(weight, "LayerNorm_0/", x)
        x = x + _flax_attention(weight, "MultiHeadDotProductAttention_0/", y, y)
        x = x + _flax_mlp(weight, "", _flax_norm(weight, "LayerNorm_1/", x))
        states.append(x)
    return states


def _flax_norm(weight: Weight, name: str, x: Array) -> Array:
    return _layer_norm(x, weight(name + "scale"), weight(name + "bias"), 1e-6)


def _flax_mlp(weight: Weight, name: str, x: Array) -> Array:
    x = _tanh_gelu(x @ weight(name + "MlpBlock_0/Dense_0/kernel") + weight(name + "MlpBlock_0/Dense_0/bias"))
    return x @ weight(name + "MlpBlock_0/Dense_1/kernel") + weight(name + "MlpBlock_0/Dense_1/bias")


def _flax_attention(weight: Weight, name: str, query_input: Array, key_input: Array) -> Array:
    kernels = [weight(f"{name}{part}/kernel") for part in ("query", "key", "value")]  # (width, heads, head_dim)
    biases = [weight(f"{name}{part}/bias") for part in ("query", "key", "value")]  # (heads, head_dim)
    queries, keys, values = (
        x @ kernel.reshape(len(kernel), -1) + bias.reshape(-1)
        for x, kernel, bias in zip((query_input, key_input, key_input), kernels, biases, strict=True)
    )
    out = weight(name + "out/kernel")  # (heads, head_dim, width)
    attended = _attention(queries, keys, values, heads=kernels[0].shape[1], causal=False)
    return attended @ out.reshape(-1, out.shape[-1]) + weight(name + "out/bias")


def _attention(queries: Array, keys: Array, values: Array, heads: int, *, causal: bool) -> Array:
    def split(x: Array) -> Array:
        return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)  # (batch, heads, length, head_dim)

    scores = split(queries) @ split(keys).swapaxes(-1, -2) / math.sqrt(queries.shape[-1] // heads)
    if causal:
        scores += np.triu(np.full(scores.shape[-2:], -np.inf), 1)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    out = (scores / scores.sum(-1, keepdims=True)) @ split(values)
    return out.transpose(0, 2, 1, 3).reshape(queries.shape)


def _patches(pixels: Array, size: int) -> Array:
    """Cut (images, 3, height, width) into (images, patches, size, size, 3); what is left at the edges is dropped."""
    rows, columns = pixels.shape[2] // size, pixels.shape[3] // size
    grid = pixels[:, :, : rows * size, : columns * size].reshape(-1, 3, rows, size, columns, size)
    return grid.transpose(0, 2, 4, 3, 5, 1).reshape(len(pixels), rows * columns, size, size, 3)


def _layer_norm(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * scale + bias


def _quick_gelu(x: Array) -> Array:
    return x * 0.5 * (1 + np.tanh(0.851 * x))  # x * sigmoid(1.702 x), without overflow


def _tanh_gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def _tower(states: list[Array], last: Array, pooled: Array, norm_floor: float = 0.0) -> TowerReference:
    # big_vision adds 1e-8 to the norm; CLIP divides by it as it is.
    norm = np.linalg.norm(pooled, axis=-1, keepdims=True) + norm_floor
    return TowerReference(states, last, pooled, pooled / norm)


def _depth(tensors: Mapping[str, Any], prefix: str) -> int:
    """The number of blocks whose names go `<prefix><index><. or />...`."""
    indices = {name[len(prefix) :].replace("/", ".").split(".")[0] for name in tensors if name.startswith(prefix)}
    return len(indices)


def _float64(tensor: Any) -> Array:
    if isinstance(tensor, torch.Tensor):
        return tensor.detach().cpu().to(torch.float64).numpy()
    if tensor.dtype == np.dtype("V2"):  # NumPy's name for bfloat16 in a file: the upper half of a float32
        tensor = (np.asarray(tensor).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.asarray(tensor, np.float64)
