"""OpenAI's CLIP with a ViT (openai/CLIP, clip/model.py): rows and geometry."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..configuration import CLIPConfig
from .layout import Layout, image_side, number_of_layers
from .table import KERNEL, SPLIT, FormatError, Row, expand, expand_layers, row

BLOCK = (
    row("ln_1.weight", "layer_norm1.weight", ".width"),
    row("ln_1.bias", "layer_norm1.bias", ".width"),
    row(
        "attn.in_proj_weight",
        "self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight",
        "3*.width .width",
        SPLIT,
    ),
    row("attn.in_proj_bias", "self_attn.q_proj.bias self_attn.k_proj.bias self_attn.v_proj.bias", "3*.width", SPLIT),
    row("attn.out_proj.weight", "self_attn.out_proj.weight", ".width .width"),
    row("attn.out_proj.bias", "self_attn.out_proj.bias", ".width"),
    row("ln_2.weight", "layer_norm2.weight", ".width"),
    row("ln_2.bias", "layer_norm2.bias", ".width"),
    row("mlp.c_fc.weight", "mlp.fc1.weight", ".mlp .width"),
    row("mlp.c_fc.bias", "mlp.fc1.bias", ".mlp"),
    row("mlp.c_proj.weight", "mlp.fc2.weight", ".width .mlp"),
    row("mlp.c_proj.bias", "mlp.fc2.bias", ".width"),
)
VISION = (
    row("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight", ".width 3 .patch .patch"),
    row("visual.class_embedding", "vision_model.embeddings.class_embedding", ".width"),
    row("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight", ".positions .width"),
    row("visual.ln_pre.weight", "vision_model.pre_layrnorm.weight", ".width"),  # transformers' spelling
    row("visual.ln_pre.bias", "vision_model.pre_layrnorm.bias", ".width"),
    row("visual.ln_post.weight", "vision_model.post_layernorm.weight", ".width"),
    row("visual.ln_post.bias", "vision_model.post_layernorm.bias", ".width"),
    row("visual.proj", "visual_projection.weight", ".width embed", KERNEL),
)
TEXT = (
    row("token_embedding.weight", "text_model.embeddings.token_embedding.weight", ".vocabulary .width"),
    row("positional_embedding", "text_model.embeddings.position_embedding.weight", ".positions .width"),
    row("ln_final.weight", "text_model.final_layer_norm.weight", ".width"),
    row("ln_final.bias", "text_model.final_layer_norm.bias", ".width"),
    row("text_projection", "text_projection.weight", ".width embed", KERNEL),
    row("logit_scale", "logit_scale", ""),
)
INTEGERS = ("input_resolution", "context_length", "vocab_size")  # buffers of the archives; they repeat the shapes


@dataclass(frozen=True, kw_only=True)
class OpenAILayout(Layout):
    """An archive or a plain state dict; all of them name and shape their weights alike."""

    format: ClassVar[str] = "openai"

    @classmethod
    def of(cls, container: str, tensors: Mapping[str, Tensor]) -> "OpenAILayout | None":
        if not any(name.startswith("visual.transformer.resblocks.") for name in tensors):
            return None
        return cls(
            container=container,
            image_layers=number_of_layers(tensors, r"visual\.transformer\.resblocks\.(\d+)\."),
            text_layers=number_of_layers(tensors, r"transformer\.resblocks\.(\d+)\."),
            integers={name: tensors[name] for name in INTEGERS if name in tensors},
        )

    @classmethod
    def of_config(cls, config: CLIPConfig) -> "OpenAILayout":
        """The archive of a model with this configuration: the reverse of `config`."""
        vision, text = config.vision_config, config.text_config
        positions = {"vision": vision.grid_size**2 + 1, "text": text.max_position_embeddings}
        sizes = {"embed": config.projection_dim, "vision.patch": vision.patch_size, "text.vocabulary": text.vocab_size}
        for name, tower in (("vision", vision), ("text", text)):
            sizes |= {f"{name}.width": tower.hidden_size, f"{name}.mlp": tower.intermediate_size}
            sizes[f"{name}.positions"] = positions[name]
        values = (vision.image_size, text.max_position_embeddings, text.vocab_size)
        return cls(
            container="torchscript",
            image_layers=vision.num_hidden_layers,
            text_layers=text.num_hidden_layers,
            sizes=sizes,
            integers={name: torch.tensor(value) for name, value in zip(INTEGERS, values, strict=True)},
        )

    def table(self) -> list[Row]:
        block, layer = "transformer.resblocks.{n}.", "encoder.layers.{n}."
        return [
            *expand(VISION, "vision"),
            *expand_layers(BLOCK, "vision", self.image_layers, f"visual.{block}", f"vision_model.{layer}"),
            *expand(TEXT, "text"),
            *expand_layers(BLOCK, "text", self.text_layers, block, f"text_model.{layer}"),
        ]

    def config(self, image_size: int | None = None) -> CLIPConfig:
        """Geometry from the shapes; heads of 64 as in `build_model`, which also takes ids from the vocabulary's end."""
        sizes = self.sizes
        return CLIPConfig(
            projection_dim=sizes["embed"],
            vision_config={
                **_tower(sizes, "vision", self.image_layers),
                "patch_size": sizes["vision.patch"],
                "image_size": image_side(sizes["vision.positions"] - 1, sizes["vision.patch"], image_size),
            },
            text_config={
                **_tower(sizes, "text", self.text_layers),
                "vocab_size": sizes["text.vocabulary"],
                "max_position_embeddings": sizes["text.positions"],
                "pad_token_id": 0,
                "bos_token_id": sizes["text.vocabulary"] - 2,
                "eos_token_id": sizes["text.vocabulary"] - 1,
            },
        )


def _tower(sizes: Mapping[str, int], tower: str, layers: int) -> dict[str, int | float | str]:
    width = sizes[f"{tower}.width"]
    if width < 64 or width % (width // 64):
        raise FormatError(f"the {tower} tower is {width} wide, which cannot be cut into {width // 64} heads of 64.")
    return {
        "hidden_size": width,
        "intermediate_size": sizes[f"{tower}.mlp"],
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "projection_dim": sizes["embed"],
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }
