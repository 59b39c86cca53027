"""OpenAI's CLIP (openai/CLIP, clip/model.py), with a ViT or a ResNet: rules and geometry."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ..configuration import CLIPConfig, DualEncoderConfig
from .geometry import clip_config, sizes_of, tower_fields
from .layout import Layout, number_of_layers
from .openai_resnet import counts_batches, resnet_fields, resnet_rules, stages_of
from .operations import KEPT_THEN_STRETCHED, KERNEL, SPLIT
from .options import LoadOptions, resolve_option
from .table import Rule, expand, expand_layers, rule

# In the order of OpenAI's own state dicts, which distinguishes them from open_clip's.
BLOCK = (
    rule(
        "attn.in_proj_weight",
        "self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight",
        "3*.width .width",
        SPLIT,
    ),
    rule("attn.in_proj_bias", "self_attn.q_proj.bias self_attn.k_proj.bias self_attn.v_proj.bias", "3*.width", SPLIT),
    rule("attn.out_proj.weight", "self_attn.out_proj.weight", ".width .width"),
    rule("attn.out_proj.bias", "self_attn.out_proj.bias", ".width"),
    rule("ln_1.weight", "layer_norm1.weight", ".width"),
    rule("ln_1.bias", "layer_norm1.bias", ".width"),
    rule("mlp.c_fc.weight", "mlp.fc1.weight", ".mlp .width"),
    rule("mlp.c_fc.bias", "mlp.fc1.bias", ".mlp"),
    rule("mlp.c_proj.weight", "mlp.fc2.weight", ".width .mlp"),
    rule("mlp.c_proj.bias", "mlp.fc2.bias", ".width"),
    rule("ln_2.weight", "layer_norm2.weight", ".width"),
    rule("ln_2.bias", "layer_norm2.bias", ".width"),
)
VISION = (
    rule("conv1.weight", "embeddings.patch_embedding.weight", ".width 3 .patch .patch"),
    rule("class_embedding", "embeddings.class_embedding", ".width"),
    rule("positional_embedding", "embeddings.position_embedding.weight", ".positions .width"),
    rule("ln_pre.weight", "pre_layrnorm.weight", ".width"),  # transformers' spelling
    rule("ln_pre.bias", "pre_layrnorm.bias", ".width"),
    rule("ln_post.weight", "post_layernorm.weight", ".width"),
    rule("ln_post.bias", "post_layernorm.bias", ".width"),
)
TEXT = (
    rule("token_embedding.weight", "embeddings.token_embedding.weight", ".vocabulary .width"),
    rule("positional_embedding", "embeddings.position_embedding.weight", ".positions .width"),
)
# Long-CLIP (beichenzbc/Long-CLIP, model/model_longclip.py, `encode_text`): see `operations.KEPT_THEN_STRETCHED`.
STRETCHED_POSITIONS = "positional_embedding_res"
TEXT_OF_LONG_CLIP = (
    TEXT[0],
    rule(
        f"positional_embedding {STRETCHED_POSITIONS}",
        "embeddings.position_embedding.weight",
        ".positions .width",
        KEPT_THEN_STRETCHED,
    ),
)
TEXT_NORM = (
    rule("ln_final.weight", "text_model.final_layer_norm.weight", ".width"),
    rule("ln_final.bias", "text_model.final_layer_norm.bias", ".width"),
)
VISION_PROJECTION = rule("proj", "visual_projection.weight", ".width embed", KERNEL)
TEXT_PROJECTION = rule("text_projection", "text_projection.weight", ".width embed", KERNEL)
LOGIT_SCALE = rule("logit_scale", "logit_scale", "")

# The weights that `convert_weights` halves; norms, embeddings and the scale stay in float32.
HALVED = re.compile(
    r"conv\d\.weight$|downsample\.0\.|attnpool\.\w_proj\.|\.attn\.|\.mlp\.|^text_projection$|^visual\.proj$"
)
INTEGER_BUFFERS = ("input_resolution", "context_length", "vocab_size")  # in archives; they repeat the shapes


def tower_rules(tower: str, layers: int, source: str, *, two_tables: bool = False) -> list[Rule]:
    """Return the rules of one transformer, whose official names begin with `source`; `two_tables` as in Long-CLIP."""
    text = TEXT_OF_LONG_CLIP if two_tables else TEXT
    rules, target = {"vision": (VISION, "vision_model."), "text": (text, "text_model.")}[tower]
    blocks = (f"{source}transformer.resblocks.{{n}}.", f"{target}encoder.layers.{{n}}.")
    return [*expand(rules, tower, source, target), *expand_layers(BLOCK, tower, layers, *blocks)]


def vision_rules(
    layers: int, stages: Sequence[int], batch_counts: bool, source: str = "visual.", *, projected: bool = True
) -> list[Rule]:
    """Return the rules of an image tower with its projection: a ResNet where it has `stages`, else a ViT."""
    if stages:
        return resnet_rules(stages, batch_counts, source)
    projection = [VISION_PROJECTION] if projected else []
    return [*tower_rules("vision", layers, source), *expand(projection, "vision", source)]


@dataclass(frozen=True, kw_only=True)
class OpenAILayout(Layout):
    """An archive or a plain state dict of OpenAI's CLIP; their weights have the same names and shapes."""

    format: ClassVar[str] = "openai"
    containers: ClassVar[tuple[str, ...]] = ("torch", "torchscript", "safetensors")

    two_tables: bool = False  # of text positions, as in Long-CLIP
    stages: list[int] = field(default_factory=list)  # the blocks in each stage of a ResNet; none for a ViT
    batch_counts: bool = False  # of a ResNet's batch norms

    @classmethod
    def detect(cls, container: str, prefix: str, tensors: Mapping[str, Tensor], folder: Path) -> "OpenAILayout | None":
        stages = stages_of(tensors)
        if not stages and not any(name.startswith("visual.transformer.resblocks.") for name in tensors):
            return None
        return cls(
            container=container,
            prefix=prefix,
            two_tables=STRETCHED_POSITIONS in tensors,
            stages=stages,
            batch_counts=counts_batches(tensors),
            image_layers=len(stages) or number_of_layers(tensors, r"visual\.transformer\.resblocks\.(\d+)\."),
            text_layers=number_of_layers(tensors, r"transformer\.resblocks\.(\d+)\."),
            integer_buffers={name: tensors[name] for name in INTEGER_BUFFERS if name in tensors},
        )

    @classmethod
    def from_config(cls, config: DualEncoderConfig) -> "OpenAILayout":
        """Return the layout of a model with this configuration, in the released dtypes: the reverse of `config`."""
        vision, text = config.vision_config, config.text_config
        layout = cls(
            container="torch",
            stages=getattr(vision, "depths", []),
            batch_counts=True,
            image_layers=vision.num_hidden_layers,
            text_layers=text.num_hidden_layers,
            sizes=sizes_of(config),
            integer_buffers={
                name: torch.tensor(value)
                for name, value in zip(
                    INTEGER_BUFFERS, (vision.image_size, text.max_position_embeddings, text.vocab_size), strict=True
                )
            },
        )
        not_halved = [name for rule in layout.rules() for name in rule.sources if not HALVED.search(name)]
        return replace(layout, dtypes={"": "float16", **dict.fromkeys(not_halved, "float32")})

    def own_rules(self) -> list[Rule]:
        return [
            *vision_rules(self.image_layers, self.stages, self.batch_counts),
            *tower_rules("text", self.text_layers, "", two_tables=self.two_tables),
            *expand([*TEXT_NORM, TEXT_PROJECTION, LOGIT_SCALE], "text"),
        ]

    def config(self, options: LoadOptions) -> CLIPConfig:
        """Return the configuration: geometry from the shapes, and heads that are 64 wide, as in `build_model`."""
        # A state dict that looks like OpenAI's by its order alone may still be open_clip's if the caller says so.
        mixture = len({dtype for dtype in self.dtypes.values() if "float" in dtype}) > 1
        proven = self.container == "torchscript" or self.integer_buffers or mixture
        chosen = options.get("vision_activation")
        activation = resolve_option(
            "vision_activation", chosen, "quick_gelu" if proven else chosen or "quick_gelu", "the activation"
        )
        vision, text = (
            resnet_fields(self.sizes, self.stages, heads=self.sizes["vision.stem"])
            if name == "vision" and self.stages
            else tower_fields(
                self.sizes, name, layers, heads=self.sizes[f"{name}.width"] // 64, activation=activation, eps=1e-5
            )
            for name, layers in (("vision", self.image_layers), ("text", self.text_layers))
        )
        heads = vision["num_attention_heads"]
        resolve_option("vision_heads", options.get("vision_heads"), heads, "the number of heads")
        return clip_config(self.sizes, vision, text, options)
