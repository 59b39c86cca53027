"""Maps of an image, one value for each patch: how similar it is to a text, and how much the model attends to it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ..modeling import DualEncoderModel
from ..modeling.dual_encoder import l2_normalize
from ..modeling.encoder import EncoderLayer
from ..modeling.towers import ImageTower, VisionTower
from ..processing import DualEncoderProcessor


def encode_patches(model: DualEncoderModel, inputs: Mapping[str, Any]) -> Tensor:
    """Return unit vectors (images, rows, columns, dim) of all patches in the common space, in float32.

    They are the patches of `last_hidden_state`, each projected alone: see `project_tokens`. `inputs` are those of
    `encode_image`.
    """
    inputs = image_inputs(model, inputs)
    norm = getattr(model.vision_model.config, "norm_first", False)
    (features,) = model.forward_features(**inputs, layers=(-1,), norm=norm)
    return project_tokens(model, features.permute(0, 2, 3, 1))


def project_tokens(model: DualEncoderModel, tokens: Tensor) -> Tensor:
    """Return unit vectors (..., dim), in float32, of tokens (..., width) of the image tower's `last_hidden_state`.

    Each becomes what the image would be if this token were the only one to pool. For an attention pooling head that is
    its value path, because all attention is on this token; for a class token it is the final norm and projection, as if
    this were the class token.
    """
    pooled = model.vision_model.pool_each(tokens.flatten(0, -2))
    if pooled is not None and model.config.visual_projection:
        pooled = model.visual_projection(pooled)
    return l2_normalize(pooled).unflatten(0, tokens.shape[:-1])


@torch.no_grad()
def encode_image_and_patches(model: DualEncoderModel, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return unit vectors (images, dim) of images and (images, rows, columns, dim) of their patches, from one forward.

    The former are those of `encode_image`. The latter are not those of `encode_patches`, unless the tower is a ResNet:
    the last tokens of a transformer have seen the whole image, and say little about their own place. So here a patch is
    what attention adds to its token in the last half of the layers, where a token attends to those that have keys like
    its own, and without MLPs: as in CLIP Surgery (arXiv:2304.05653), with keys as in NACLIP (arXiv:2404.08181).
    docs/maps.md has a comparison.
    """
    inputs = image_inputs(model, inputs)
    tower = model.vision_model
    outputs = model.get_image_features(**inputs, output_hidden_states=True, return_dict=True)
    grid, tokens = tower.grid(**inputs), outputs.last_hidden_state
    if isinstance(tower, VisionTower):
        tokens = _attention_to_like_keys(tower, outputs.hidden_states, math.prod(grid))
    return l2_normalize(outputs.pooler_output), project_tokens(model, tokens).unflatten(1, grid)


def _attention_to_like_keys(tower: VisionTower, hidden_states: Sequence[Tensor], patches: int) -> Tensor:
    """Return the patches (images, patches, width) that `encode_image_and_patches` describes, with the final norm."""
    first = len(tower.encoder.layers) // 2
    layers = cast("list[EncoderLayer]", tower.encoder.layers[first:])
    added = []
    for layer, states in zip(layers, hidden_states[first:-1], strict=True):
        x = layer.layer_norm1(states[:, tower.config.num_class_tokens :][:, :patches])
        key, value = layer.self_attn.k_proj(x), layer.self_attn.v_proj(x)
        added.append(layer.self_attn.multi_head_attention(key, key, value)[0])
    total = torch.stack(added).sum(dim=0)
    return tower.post_layernorm(total) if tower.config.norm_first else total


def image_inputs(model: DualEncoderModel, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a processor's outputs that the image tower takes. Raises ValueError for a foreign tower."""
    if not isinstance(model.vision_model, ImageTower):
        raise ValueError(
            f"Maps need image towers of this package; {type(model.vision_model).__name__} is transformers'."
        )
    return {name: value for name, value in inputs.items() if name in model.image_input_names}


@torch.no_grad()
def similarity_map(
    model: DualEncoderModel, processor: DualEncoderProcessor, image: Any, texts: Sequence[str]
) -> Tensor:
    """Return the cosine of every patch of an image with every text: (texts, rows, columns), float32 on the CPU.

    An image is anything that the processor takes as one. See `encode_image_and_patches` for what a patch is.
    """
    _, patches = encode_image_and_patches(model, _inputs_of_one(model, processor, image))
    return torch.einsum("rcd,td->trc", patches[0].cpu(), model.encode(texts, processor, kind="text"))


@torch.no_grad()
def pooling_attention(model: DualEncoderModel, processor: DualEncoderProcessor, image: Any) -> Tensor:
    """Return how much the embedding of an image attends to every patch: (rows, columns), float32 on the CPU.

    That is the attention of the pooling head (SigLIP), or in the last layer that of the class token (CLIP), which also
    attends to itself; the mean over the heads.
    """
    inputs = _inputs_of_one(model, processor, image)
    layers, pooling = _attention(model, inputs)
    return _to_grid(model, inputs, layers[-1][0] if pooling is None else pooling)


@torch.no_grad()
def attention_rollout(model: DualEncoderModel, processor: DualEncoderProcessor, image: Any) -> Tensor:
    """Return how much of every patch reaches the embedding of an image: (rows, columns), float32 on the CPU.

    This is attention roll-out (arXiv:2005.00928): the product of the attention maps of all layers and of the pooling
    head, each the mean over the heads; half of a layer's map is the identity, for the residual connection.
    """
    inputs = _inputs_of_one(model, processor, image)
    layers, pooling = _attention(model, inputs)
    if not layers:
        raise ValueError(f"A {type(model.vision_model).__name__} has no attention layers: see pooling_attention.")
    reached = torch.eye(len(layers[0]), device=layers[0].device)  # (tokens, tokens of the image)
    for attention in layers:
        reached = (attention @ reached + reached) / 2
    return _to_grid(model, inputs, reached[0] if pooling is None else pooling @ reached)


def _inputs_of_one(model: DualEncoderModel, processor: DualEncoderProcessor, image: Any) -> dict[str, Any]:
    """Return the inputs of the image tower for one image. Raises ValueError for several."""
    inputs = image_inputs(model, processor(images=image).to(model.device))
    if (count := len(inputs["pixel_values"])) != 1:
        raise ValueError(f"A map is of one image, got {count}.")
    return inputs


def _attention(model: DualEncoderModel, inputs: Mapping[str, Any]) -> tuple[list[Tensor], Tensor | None]:
    """Return the attention maps (tokens, tokens) of all layers for one image, and the pooling head's (tokens,) if any.

    They are means over the heads.
    """
    outputs = model.vision_model(**inputs, output_attentions=True, output_pooling_attentions=True, return_dict=True)
    layers = [attention[0].float().mean(dim=0) for attention in outputs.attentions or ()]
    if model.vision_model.config.pooling != "attention":
        return layers, None
    pooling = outputs.pooling_attentions[0][0, :, 0].float().mean(dim=0)
    return layers, pooling[-outputs.last_hidden_state.shape[1] :]  # without the mean token of a ResNet


def _to_grid(model: DualEncoderModel, inputs: Mapping[str, Any], weights: Tensor) -> Tensor:
    """Return the weights of patches out of those (tokens,) of all tokens, as (rows, columns)."""
    grid = model.vision_model.grid(**inputs)
    patches = weights[model.vision_model.config.num_class_tokens :][: math.prod(grid)]
    return patches.unflatten(0, grid).cpu()
