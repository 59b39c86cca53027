"""OpenAI's CLIP (openai/CLIP, clip/model.py), with a ViT or a ResNet: rules and geometry."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ..configuration import CLIPConfig, DualEncoderConfig
from .errors import FormatError
from .geometry import clip_config, sizes_of, tower_fields
from .layout import Layout, number_of_layers
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
HALVED = re.compile(r"conv1\.weight$|\.attn\.|\.mlp\.|^text_projection$|^visual\.proj$")
INTEGER_BUFFERS = ("input_resolution", "context_length", "vocab_size")  # in archives; they repeat the shapes


def tower_rules(tower: str, layers: int, source: str, *, two_tables: bool = False) -> list[Rule]:
    """Return the rules of one transformer, whose official names begin with `source`; `two_tables` as in Long-CLIP."""
    text = TEXT_OF_LONG_CLIP if two_tables else TEXT
    rules, target = {"vision": (VISION, "vision_model."), "text": (text, "text_model.")}[tower]
    blocks = (f"{source}transformer.resblocks.{{n}}.", f"{target}encoder.layers.{{n}}.")
    return [*expand(rules, tower, source, target), *expand_layers(BLOCK, tower, layers, *blocks)]


@dataclass(frozen=True, kw_only=True)
class OpenAILayout(Layout):
    """An archive or a plain state dict of OpenAI's CLIP; their weights have the same names and shapes."""

    format: ClassVar[str] = "openai"
    containers: ClassVar[tuple[str, ...]] = ("torch", "torchscript", "safetensors")

    two_tables: bool = False  # of text positions, as in Long-CLIP

    @classmethod
    def detect(cls, container: str, prefix: str, tensors: Mapping[str, Tensor], folder: Path) -> "OpenAILayout | None":
        if not any(name.startswith("visual.transformer.resblocks.") for name in tensors):
            return None
        return cls(
            container=container,
            prefix=prefix,
            two_tables=STRETCHED_POSITIONS in tensors,
            image_layers=number_of_layers(tensors, r"visual\.transformer\.resblocks\.(\d+)\."),
            text_layers=number_of_layers(tensors, r"transformer\.resblocks\.(\d+)\."),
            integer_buffers={name: tensors[name] for name in INTEGER_BUFFERS if name in tensors},
        )

    @classmethod
    def from_config(cls, config: DualEncoderConfig) -> "OpenAILayout":
        """Return the layout of a model with this configuration, in the released dtypes: the reverse of `config`."""
        vision, text = config.vision_config, config.text_config
        layout = cls(
            container="torch",
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
            *tower_rules("vision", self.image_layers, "visual."),
            *expand([VISION_PROJECTION], "vision", "visual."),
            *tower_rules("text", self.text_layers, "", two_tables=self.two_tables),
            *expand([*TEXT_NORM, TEXT_PROJECTION, LOGIT_SCALE], "text"),
        ]

    def config(self, options: LoadOptions) -> CLIPConfig:
        """Return the configuration: geometry from the shapes, and heads that are 64 wide, as in `build_model`."""
        # A state dict that looks like OpenAI's by its order alone may still be open_clip's if the caller says so.
        proven = self.container == "torchscript" or self.integer_buffers or len(set(self.dtypes.values())) > 1
        chosen = options.get("vision_activation")
        activation = resolve_option(
            "vision_activation", chosen, "quick_gelu" if proven else chosen or "quick_gelu", "the activation"
        )
        heads = {name: self.sizes[f"{name}.width"] // 64 for name in ("vision", "text")}
        resolve_option("vision_heads", options.get("vision_heads"), heads["vision"], "the number of heads")
        vision, text = (
            tower_fields(self.sizes, name, layers, heads=heads[name], activation=activation, eps=1e-5)
            for name, layers in (("vision", self.image_layers), ("text", self.text_layers))
        )
        return clip_config(self.sizes, vision, text, options)


@dataclass(frozen=True, kw_only=True)
class ResNetLayout(OpenAILayout):
    """A CLIP with a ResNet: its file is checked like any other, but this version has no model for it."""

    stages: tuple[int, ...]  # blocks in each

    @classmethod
    def detect(cls, container: str, prefix: str, tensors: Mapping[str, Tensor], folder: Path) -> "ResNetLayout | None":
        if "visual.layer1.0.conv1.weight" not in tensors:
            return None
        stages = tuple(number_of_layers(tensors, rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
        counters = [name for name in tensors if name.endswith(".num_batches_tracked")]
        return cls(
            container=container,
            prefix=prefix,
            image_layers=sum(stages),
            text_layers=number_of_layers(tensors, r"transformer\.resblocks\.(\d+)\."),
            integer_buffers={name: tensors[name] for name in (*INTEGER_BUFFERS, *counters) if name in tensors},
            stages=stages,
        )

    def own_rules(self) -> list[Rule]:
        return [
            *expand([*_resnet_rules(self.stages), *RESNET_POOLING], "vision", "visual.", "vision_model."),
            *tower_rules("text", self.text_layers, ""),
            *expand([*TEXT_NORM, TEXT_PROJECTION, LOGIT_SCALE], "text"),
        ]

    def config(self, options: LoadOptions) -> CLIPConfig:
        stages = ", ".join(map(str, self.stages))
        raise FormatError(
            f"this is a CLIP with a ResNet ({stages} blocks, {2 * self.sizes['vision.stem']} wide), sound in all its "
            "names and shapes, but this version has no model for it; it converts CLIPs with a ViT."
        )


def _resnet_rules(stages: Sequence[int]) -> Iterator[Rule]:
    """Yield rules for convolutions and batch norms of `ModifiedResNet`; widths are multiples of the stem's."""

    def convolution(name: str, norm: str, width: int, into: int, kernel: int) -> Iterator[Rule]:
        size = f"{width}*.stem" if width > 1 else ".stem"
        yield rule(f"{name}.weight", f"{name}.weight", f"{size} {f'{into}*.stem' if into else 3} {kernel} {kernel}")
        for part in ("weight", "bias", "running_mean", "running_var"):
            yield rule(f"{norm}.{part}", f"{norm}.{part}", size)

    yield from convolution("conv1", "bn1", 1, 0, 3)
    yield from convolution("conv2", "bn2", 1, 1, 3)
    yield from convolution("conv3", "bn3", 2, 1, 3)
    into = 2
    for stage, blocks in enumerate(stages, 1):
        width = 2**stage
        for block in (f"layer{stage}.{number}." for number in range(blocks)):
            yield from convolution(f"{block}conv1", f"{block}bn1", width, into, 1)
            yield from convolution(f"{block}conv2", f"{block}bn2", width, width, 3)
            yield from convolution(f"{block}conv3", f"{block}bn3", 4 * width, width, 1)
            if block.endswith(".0."):
                yield from convolution(f"{block}downsample.0", f"{block}downsample.1", 4 * width, into, 1)
            into = 4 * width


RESNET_POOLING = (
    rule("attnpool.positional_embedding", "attnpool.positional_embedding", ".positions 64*.stem"),
    *(
        rule(f"attnpool.{name}.{part}", f"attnpool.{name}.{part}", shape)
        for name, size in (("q_proj", "64*.stem"), ("k_proj", "64*.stem"), ("v_proj", "64*.stem"), ("c_proj", "embed"))
        for part, shape in (("weight", f"{size} 64*.stem"), ("bias", size))
    ),
)
