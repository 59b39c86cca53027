"""The float64 reference of SigLIP: big_vision's names, open_clip's, timm's (image tower alone) and transformers'.

Sources: google-research/big_vision@0127fb6 `models/vit.py`,
`models/proj/image_text/{two_towers,text_transformer,naflex_vit}.py`; open_clip 3.3.0 `model.py`, `transformer.py`; timm
1.0.31 `models/vision_transformer.py`, `layers/attention_pool.py`; transformers 5.23.0
`models/siglip/modeling_siglip.py`, `models/siglip2/modeling_siglip2.py`.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .reference_layers import (
    MLP,
    Array,
    Attention,
    Block,
    Ids,
    Images,
    PoolingHead,
    Reference,
    Settings,
    TowerReference,
    WeightAndBias,
    attention_pool,
    embed_patches,
    encode,
    layer_norm,
    linear,
    resize_positions,
    tower_reference,
)
from .reference_weights import (
    FileFacts,
    GetWeight,
    flax_blocks,
    flax_linear,
    flax_norm,
    flax_pooling_head,
    flax_settings,
    to_float64,
    torch_blocks,
    torch_pair,
    torch_stacked,
    transformers_config,
    weights_below,
)

_BIG_VISION_NORM_FLOOR = 1e-8  # two_towers.py


class _ImageTower(NamedTuple):
    """Weights of SigLIP's vision transformer."""

    patch_kernel: Array  # (width, 3, size, size); NaFlex: (width, values of a patch)
    patch_bias: Array  # (width,)
    positions: Array  # (1, patches, width) or (patches, width); NaFlex: (rows, columns, width)
    blocks: Iterable[Block]  # read one at a time
    norm_after: WeightAndBias
    head: Callable[[], PoolingHead]  # read after the blocks: it is as large as one of them

    def forward(self, images: Images, settings: Settings, norm_floor: float = 0.0) -> TowerReference:
        mask = images.mask
        if (self.patch_kernel.ndim == 2) != (mask is not None):
            raise ValueError("A NaFlex model takes patches with their spatial_shapes, any other model takes pixels.")
        if mask is None or images.grids is None:
            patches, positions = embed_patches(images.pixels, self.patch_kernel), self.positions
        else:
            patches = np.where(mask[..., None], images.pixels, 0) @ self.patch_kernel.T
            positions = np.zeros_like(patches)
            positions[mask] = np.concatenate([resize_positions(self.positions, *grid) for grid in images.grids])
        states = encode(patches + self.patch_bias + positions, self.blocks, settings, mask)
        last = layer_norm(states[-1], self.norm_after, settings.eps)
        return tower_reference(states, last, attention_pool(last, self.head(), settings, mask), norm_floor)


class _TextTower(NamedTuple):
    """Weights of SigLIP's text transformer."""

    tokens: Any  # (vocabulary, width), as stored: only the rows that are used become float64
    positions: Array  # (1, length, width) or (length, width)
    blocks: Iterable[Block]
    norm_after: WeightAndBias
    head: WeightAndBias | None  # small models have none

    def forward(self, ids: Ids, settings: Settings, norm_floor: float = 0.0) -> TowerReference:
        x = to_float64(self.tokens[ids]) + self.positions
        states = encode(x, self.blocks, settings)
        last = layer_norm(states[-1], self.norm_after, settings.eps)
        pooled = last[:, -1] if self.head is None else linear(last[:, -1], self.head)
        return tower_reference(states, last, pooled, norm_floor)


def _reference(image: TowerReference, text: TowerReference, logit_scale: Array, logit_bias: Array) -> Reference:
    return Reference(image, text, np.exp(logit_scale) * image.embeds @ text.embeds.T + logit_bias)


def big_vision_forward(tensors: Mapping[str, Any], images: Images, ids: Ids, facts: FileFacts) -> Reference:
    """Run a SigLIP, NaFlex or not, under big_vision's names; `facts` are not needed."""
    weight = weights_below(tensors)
    kernel = weight("img/embedding/kernel")  # (height, width, 3, width of the tower); NaFlex: the first three are one
    old_layout = "img/Transformer/pos_embedding" in tensors
    image_tower = _ImageTower(
        patch_kernel=kernel.T if kernel.ndim == 2 else kernel.transpose(3, 2, 0, 1),
        patch_bias=weight("img/embedding/bias"),
        positions=weight("img/Transformer/pos_embedding" if old_layout else "img/pos_embedding"),
        blocks=flax_blocks(tensors, "img/Transformer/"),
        norm_after=flax_norm(weight, "img/Transformer/encoder_norm"),
        head=lambda: flax_pooling_head(tensors, "img/MAPHead_0/"),
    )
    text_positions = weight("txt/pos_embedding")
    if "txt/Encoder_0/pos_embedding" in tensors:  # old files have a second table, which the model adds
        text_positions = text_positions + weight("txt/Encoder_0/pos_embedding")
    text_tower = _TextTower(
        tokens=tensors["txt/Embed_0/embedding"],
        positions=text_positions,
        blocks=flax_blocks(tensors, "txt/Encoder_0/"),
        norm_after=flax_norm(weight, "txt/Encoder_0/encoder_norm"),
        head=flax_linear(weight, "txt/head") if "txt/head/kernel" in tensors else None,
    )
    return _reference(
        image_tower.forward(images, flax_settings(tensors, "img/Transformer/"), _BIG_VISION_NORM_FLOOR),
        text_tower.forward(ids, flax_settings(tensors, "txt/Encoder_0/"), _BIG_VISION_NORM_FLOOR),
        weight("t"),
        weight("b"),
    )


def open_clip_siglip_forward(tensors: Mapping[str, Any], images: Images, ids: Ids, facts: FileFacts) -> Reference:
    """Run a SigLIP of open_clip: timm's image tower and a text tower of open_clip's own."""
    weight, tokens = weights_below(tensors), tensors["text.token_embedding.weight"]
    vocabulary, width = tokens.shape
    text_tower = _TextTower(
        tokens=tokens,
        positions=weight("text.positional_embedding"),
        blocks=torch_blocks(tensors, "text.transformer.resblocks."),
        norm_after=torch_pair(weight, "text.ln_final"),
        head=torch_pair(weight, "text.text_projection") if "text.text_projection.weight" in tensors else None,
    )
    # Without the JSON, the values in the JSON of all published models: So400m's heads, SigLIP 2's activation.
    text_settings = Settings(
        facts.open_clip("text_cfg").get("heads", 16 if width == 1152 else width // 64),
        facts.open_clip_activation("text_cfg") or ("gelu_pytorch_tanh" if vocabulary == 256_000 else "gelu"),
        facts.open_clip_eps("text_cfg") if facts.sidecar_json else 1e-6,
    )
    image_settings = facts.timm_settings(facts.open_clip("vision_cfg").get("timm_model_name"))
    return _reference(
        _timm_image_tower(tensors, "visual.trunk.").forward(images, image_settings),
        text_tower.forward(ids, text_settings),
        weight("logit_scale"),
        weight("logit_bias"),
    )


def timm_forward(tensors: Mapping[str, Any], images: Images, ids: Ids, facts: FileFacts) -> Reference:
    """Run timm's image tower alone; `ids` are ignored."""
    settings = facts.timm_settings(facts.sidecar_json.get("architecture"))
    return Reference(_timm_image_tower(tensors, "").forward(images, settings), None, None)


def _timm_image_tower(tensors: Mapping[str, Any], prefix: str) -> _ImageTower:
    weight = weights_below(tensors, prefix)
    return _ImageTower(
        patch_kernel=weight("patch_embed.proj.weight"),
        patch_bias=weight("patch_embed.proj.bias"),
        positions=weight("pos_embed"),
        blocks=torch_blocks(tensors, f"{prefix}blocks."),
        norm_after=torch_pair(weight, "norm"),
        head=lambda: _timm_pooling_head(weight),
    )


def _timm_pooling_head(weight: GetWeight) -> PoolingHead:
    key, value = torch_stacked(weight, "attn_pool.kv.", count=2)
    return PoolingHead(
        weight("attn_pool.latent"),
        Attention(torch_pair(weight, "attn_pool.q"), key, value, torch_pair(weight, "attn_pool.proj")),
        torch_pair(weight, "attn_pool.norm"),
        MLP(torch_pair(weight, "attn_pool.mlp.fc1"), torch_pair(weight, "attn_pool.mlp.fc2")),
    )


def transformers_siglip_forward(tensors: Mapping[str, Any], images: Images, ids: Ids, facts: FileFacts) -> Reference:
    """Run a SigLIP, NaFlex or not, under transformers' names."""
    weight, config = weights_below(tensors), transformers_config(facts.sidecar_json)
    vision, text = config.vision_config, config.text_config
    patch_kernel, positions = (
        weight(f"vision_model.embeddings.{name}_embedding.weight") for name in ("patch", "position")
    )
    if patch_kernel.ndim == 2:
        side = math.isqrt(len(positions))
        positions = positions.reshape(side, side, -1)
    image_tower = _ImageTower(
        patch_kernel=patch_kernel,
        patch_bias=weight("vision_model.embeddings.patch_embedding.bias"),
        positions=positions,
        blocks=torch_blocks(tensors, "vision_model.encoder.layers."),
        norm_after=torch_pair(weight, "vision_model.post_layernorm"),
        head=lambda: _transformers_pooling_head(weights_below(tensors, "vision_model.head.")),
    )
    text_tower = _TextTower(
        tokens=tensors["text_model.embeddings.token_embedding.weight"],
        positions=weight("text_model.embeddings.position_embedding.weight"),
        blocks=torch_blocks(tensors, "text_model.encoder.layers."),
        norm_after=torch_pair(weight, "text_model.final_layer_norm"),
        head=torch_pair(weight, "text_model.head"),
    )
    return _reference(
        image_tower.forward(images, Settings(vision.num_attention_heads, vision.hidden_act, vision.layer_norm_eps)),
        text_tower.forward(ids, Settings(text.num_attention_heads, text.hidden_act, text.layer_norm_eps)),
        weight("logit_scale"),
        weight("logit_bias"),
    )


def _transformers_pooling_head(weight: GetWeight) -> PoolingHead:
    query, key, value = torch_stacked(weight, "attention.in_proj_")
    return PoolingHead(
        weight("probe"),
        Attention(query, key, value, torch_pair(weight, "attention.out_proj")),
        torch_pair(weight, "layernorm"),
        MLP(torch_pair(weight, "mlp.fc1"), torch_pair(weight, "mlp.fc2")),
    )
