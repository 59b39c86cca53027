"""The float64 reference of CLIP: OpenAI's names (open_clip's own towers have them too) and transformers'.

Sources: openai/CLIP `clip/model.py@d05afc4`; beichenzbc/Long-CLIP `model/model_longclip.py@3966af9`; open_clip 3.3.0
`model.py`, `transformer.py`; transformers 5.23.0 `models/clip/modeling_clip.py`.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import transformers

from .reference_layers import (
    Array,
    Block,
    Ids,
    Images,
    Reference,
    Settings,
    TowerReference,
    WeightAndBias,
    embed_patches,
    encode,
    layer_norm,
    tower_reference,
)
from .reference_resnet import OPENAI_NAMES, TWINLENS_NAMES, resnet_tower
from .reference_weights import FileFacts, to_float64, torch_blocks, torch_pair, transformers_config, weights_below


class _ImageTower(NamedTuple):
    """Weights of CLIP's vision transformer."""

    patch_kernel: Array  # (width, 3, size, size)
    class_token: Array  # (width,)
    positions: Array  # (1 + patches, width)
    norm_before: WeightAndBias
    blocks: Iterable[Block]
    norm_after: WeightAndBias
    projection: Array  # (width, dim)

    def forward(self, images: Images, settings: Settings) -> TowerReference:
        x = embed_patches(images.pixels, self.patch_kernel)
        class_token = np.broadcast_to(self.class_token, (len(x), 1, x.shape[-1]))
        x = np.concatenate([class_token, x], axis=1) + self.positions
        states = encode(layer_norm(x, self.norm_before, settings.eps), self.blocks, settings)
        pooled = layer_norm(states[-1][:, 0], self.norm_after, settings.eps)
        return tower_reference(states, states[-1], pooled @ self.projection)


class _TextTower(NamedTuple):
    """Weights of CLIP's text transformer."""

    tokens: Any  # (vocabulary, width), as stored: only the rows that are used become float64
    positions: Array  # (length, width)
    blocks: Iterable[Block]
    norm_after: WeightAndBias
    projection: Array  # (width, dim)

    def forward(self, ids: Ids, end_of_text: Ids, settings: Settings) -> TowerReference:
        x = to_float64(self.tokens[ids]) + self.positions[: ids.shape[1]]
        states = encode(x, self.blocks, settings)
        last = layer_norm(states[-1], self.norm_after, settings.eps)
        return tower_reference(states, last, last[np.arange(len(ids)), end_of_text] @ self.projection)


def _reference(image: TowerReference, text: TowerReference, logit_scale: Array) -> Reference:
    return Reference(image, text, np.exp(logit_scale) * image.embeds @ text.embeds.T)


def _end_of_text(ids: Ids, end: int | None) -> Ids:
    """Return where the first `end` of each text is, or for None its highest id, which the official code pools.

    That code pools the start of a text where there is none. This is the one difference: here it is the last token.
    """
    position = ids.argmax(-1) if end is None else (ids == end).argmax(-1)
    found = position > 0 if end is None else (ids == end).any(-1)
    return np.where(found, position, ids.shape[1] - 1)


def openai_forward(tensors: Mapping[str, Any], images: Images, ids: Ids, facts: FileFacts) -> Reference:
    """Run a CLIP under OpenAI's names. open_clip's own towers differ in activation, heads and epsilon."""
    weight = weights_below(tensors)
    text_prefix = "text." if "text.ln_final.weight" in tensors else ""  # open_clip's CustomTextCLIP
    positions = weight(f"{text_prefix}positional_embedding")
    if f"{text_prefix}positional_embedding_res" in tensors:  # Long-CLIP: mask1 is 1 below 20, mask2 from 20 on
        first = np.arange(len(positions))[:, None] < 20
        positions = positions * first + weight(f"{text_prefix}positional_embedding_res") * ~first
    text_tower = _TextTower(
        tokens=tensors[f"{text_prefix}token_embedding.weight"],
        positions=positions,
        blocks=torch_blocks(tensors, f"{text_prefix}transformer.resblocks."),
        norm_after=torch_pair(weight, f"{text_prefix}ln_final"),
        projection=weight(f"{text_prefix}text_projection"),
    )
    text_width = text_tower.positions.shape[-1]
    text_settings = Settings(
        facts.open_clip("text_cfg").get("heads", text_width // 64),
        facts.open_clip_activation("text_cfg") or facts.vision_activation or "quick_gelu",
        facts.open_clip_eps("text_cfg"),
        causal=True,
    )
    end, text_cfg = facts.eos_token_id, facts.open_clip("text_cfg")
    if end is None and text_cfg.get("pool_type") == "eos":
        end = text_cfg["eos_id"]
    elif end is None and len(text_tower.tokens) in (49408, 672):  # OpenAI's vocabulary; that of the bundled clip-shapes
        end = len(text_tower.tokens) - 1  # `<|endoftext|>` of clip/simple_tokenizer.py, the highest id that it gives
    end_of_text = _end_of_text(ids, None if end == 2 else end)  # 2: see below
    text = text_tower.forward(ids, end_of_text, text_settings)
    return _reference(_openai_image(tensors, images, facts), text, weight("logit_scale"))


def _openai_image(tensors: Mapping[str, Any], images: Images, facts: FileFacts) -> TowerReference:
    """Run the image tower, a ViT or a ResNet."""
    weight, head_width = weights_below(tensors), facts.open_clip("vision_cfg").get("head_width", 64)
    if "visual.attnpool.c_proj.weight" in tensors:
        width = len(weight("visual.attnpool.c_proj.weight").T)
        heads = facts.vision_heads or width // head_width
        return resnet_tower(images.pixels, weight, tensors.__contains__, OPENAI_NAMES, heads)
    tower = _ImageTower(
        patch_kernel=weight("visual.conv1.weight"),
        class_token=weight("visual.class_embedding"),
        positions=weight("visual.positional_embedding"),
        norm_before=torch_pair(weight, "visual.ln_pre"),
        blocks=torch_blocks(tensors, "visual.transformer.resblocks."),
        norm_after=torch_pair(weight, "visual.ln_post"),
        projection=weight("visual.proj"),
    )
    settings = Settings(
        facts.vision_heads or tower.positions.shape[-1] // head_width,
        facts.open_clip_activation("vision_cfg") or facts.vision_activation or "quick_gelu",
        facts.open_clip_eps("vision_cfg"),
    )
    return tower.forward(images, settings)


def transformers_clip_forward(tensors: Mapping[str, Any], images: Images, ids: Ids, facts: FileFacts) -> Reference:
    """Run a CLIP under transformers' names."""
    weight, config = weights_below(tensors), transformers_config(facts.sidecar_json)
    vision = config.vision_config
    image_tower = _ImageTower(
        patch_kernel=weight("vision_model.embeddings.patch_embedding.weight"),
        class_token=weight("vision_model.embeddings.class_embedding"),
        positions=weight("vision_model.embeddings.position_embedding.weight"),
        norm_before=torch_pair(weight, "vision_model.pre_layrnorm"),
        blocks=torch_blocks(tensors, "vision_model.encoder.layers."),
        norm_after=torch_pair(weight, "vision_model.post_layernorm"),
        projection=weight("visual_projection.weight").T,
    )
    settings = Settings(vision.num_attention_heads, vision.hidden_act, vision.layer_norm_eps)
    text = _transformers_text(tensors, ids, config.text_config)
    return _reference(image_tower.forward(images, settings), text, weight("logit_scale"))


def twinlens_resnet_forward(tensors: Mapping[str, Any], images: Images, ids: Ids, facts: FileFacts) -> Reference:
    """Run a CLIP with a ResNet under the names of twinlens, whose text tower is that of transformers' CLIP."""
    weight, values = weights_below(tensors), facts.sidecar_json
    heads = values["vision_config"]["num_attention_heads"]
    image = resnet_tower(images.pixels, weight, tensors.__contains__, TWINLENS_NAMES, heads)
    text = _transformers_text(tensors, ids, transformers.CLIPTextConfig(**values["text_config"]))
    return _reference(image, text, weight("logit_scale"))


def _transformers_text(tensors: Mapping[str, Any], ids: Ids, config: transformers.CLIPTextConfig) -> TowerReference:
    weight = weights_below(tensors)
    tower = _TextTower(
        tokens=tensors["text_model.embeddings.token_embedding.weight"],
        positions=weight("text_model.embeddings.position_embedding.weight"),
        blocks=torch_blocks(tensors, "text_model.encoder.layers."),
        norm_after=torch_pair(weight, "text_model.final_layer_norm"),
        projection=weight("text_projection.weight").T,
    )
    # Old folders say 2, which is not the id: their end of text, too, has the highest.
    end_of_text = _end_of_text(ids, None if config.eos_token_id == 2 else config.eos_token_id)
    settings = Settings(config.num_attention_heads, config.hidden_act, config.layer_norm_eps, causal=True)
    return tower.forward(ids, end_of_text, settings)
