"""OpenAI's CLIP (openai/CLIP, clip/model.py), with a ViT or a ResNet: rows and geometry."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ..configuration import CLIPConfig
from .families import clip_config, sizes_of, tower
from .layout import Choices, Layout, decide, number_of_layers
from .table import KERNEL, SPLIT, FormatError, Row, expand, expand_layers, row

# In the order of OpenAI's own state dicts, by which these are told from open_clip's.
BLOCK = (
    row(
        "attn.in_proj_weight",
        "self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight",
        "3*.width .width",
        SPLIT,
    ),
    row("attn.in_proj_bias", "self_attn.q_proj.bias self_attn.k_proj.bias self_attn.v_proj.bias", "3*.width", SPLIT),
    row("attn.out_proj.weight", "self_attn.out_proj.weight", ".width .width"),
    row("attn.out_proj.bias", "self_attn.out_proj.bias", ".width"),
    row("ln_1.weight", "layer_norm1.weight", ".width"),
    row("ln_1.bias", "layer_norm1.bias", ".width"),
    row("mlp.c_fc.weight", "mlp.fc1.weight", ".mlp .width"),
    row("mlp.c_fc.bias", "mlp.fc1.bias", ".mlp"),
    row("mlp.c_proj.weight", "mlp.fc2.weight", ".width .mlp"),
    row("mlp.c_proj.bias", "mlp.fc2.bias", ".width"),
    row("ln_2.weight", "layer_norm2.weight", ".width"),
    row("ln_2.bias", "layer_norm2.bias", ".width"),
)
VISION = (
    row("conv1.weight", "embeddings.patch_embedding.weight", ".width 3 .patch .patch"),
    row("class_embedding", "embeddings.class_embedding", ".width"),
    row("positional_embedding", "embeddings.position_embedding.weight", ".positions .width"),
    row("ln_pre.weight", "pre_layrnorm.weight", ".width"),  # transformers' spelling
    row("ln_pre.bias", "pre_layrnorm.bias", ".width"),
    row("ln_post.weight", "post_layernorm.weight", ".width"),
    row("ln_post.bias", "post_layernorm.bias", ".width"),
)
TEXT = (
    row("token_embedding.weight", "embeddings.token_embedding.weight", ".vocabulary .width"),
    row("positional_embedding", "embeddings.position_embedding.weight", ".positions .width"),
)
TEXT_NORM = (
    row("ln_final.weight", "text_model.final_layer_norm.weight", ".width"),
    row("ln_final.bias", "text_model.final_layer_norm.bias", ".width"),
)
VISION_PROJECTION = row("proj", "visual_projection.weight", ".width embed", KERNEL)
TEXT_PROJECTION = row("text_projection", "text_projection.weight", ".width embed", KERNEL)
LOGIT_SCALE = row("logit_scale", "logit_scale", "")

# What `convert_weights` halves; norms, embeddings and the scale stay in float32.
HALVED = re.compile(r"conv1\.weight$|\.attn\.|\.mlp\.|^text_projection$|^visual\.proj$")
INTEGERS = ("input_resolution", "context_length", "vocab_size")  # buffers of the archives; they repeat the shapes


def tower_rows(tower: str, layers: int, source: str) -> list[Row]:
    """The rows of one transformer, whose names begin with `source`."""
    rows, target = {"vision": (VISION, "vision_model."), "text": (TEXT, "text_model.")}[tower]
    blocks = (f"{source}transformer.resblocks.{{n}}.", f"{target}encoder.layers.{{n}}.")
    return [*expand(rows, tower, source, target), *expand_layers(BLOCK, tower, layers, *blocks)]


@dataclass(frozen=True, kw_only=True)
class OpenAILayout(Layout):
    """An archive or a plain state dict; all of them name and shape their weights alike."""

    format: ClassVar[str] = "openai"
    containers: ClassVar[tuple[str, ...]] = ("torch", "torchscript", "safetensors")

    @classmethod
    def of(cls, container: str, tensors: Mapping[str, Tensor], folder: Path) -> "OpenAILayout | None":
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
        """The state dict of a model with this configuration, in the released dtypes: the reverse of `config`."""
        vision, text = config.vision_config, config.text_config
        layout = cls(
            container="torch",
            image_layers=vision.num_hidden_layers,
            text_layers=text.num_hidden_layers,
            sizes=sizes_of(config),
            integers={
                name: torch.tensor(value)
                for name, value in zip(
                    INTEGERS, (vision.image_size, text.max_position_embeddings, text.vocab_size), strict=True
                )
            },
        )
        kept = [name for row in layout.table() for name in row.sources if not HALVED.search(name)]
        return replace(layout, dtypes={"": "float16", **dict.fromkeys(kept, "float32")})

    def table(self) -> list[Row]:
        return [
            *tower_rows("vision", self.image_layers, "visual."),
            *expand([VISION_PROJECTION], "vision", "visual."),
            *tower_rows("text", self.text_layers, ""),
            *expand([*TEXT_NORM, TEXT_PROJECTION, LOGIT_SCALE], "text"),
        ]

    def config(self, choices: Choices) -> CLIPConfig:
        """Geometry from the shapes; heads of 64 as in `build_model`."""
        # The order of a state dict alone is no proof: against it the caller is right.
        proven = self.container == "torchscript" or self.integers or len(set(self.dtypes.values())) > 1
        chosen = choices.vision_activation
        activation = decide(
            "vision-activation", chosen, "quick_gelu" if proven else chosen or "quick_gelu", "the activation"
        )
        heads = {name: self.sizes[f"{name}.width"] // 64 for name in ("vision", "text")}
        decide("vision-heads", choices.vision_heads, heads["vision"], "the number of heads")
        vision, text = (
            tower(self.sizes, name, layers, heads=heads[name], activation=activation, eps=1e-5)
            for name, layers in (("vision", self.image_layers), ("text", self.text_layers))
        )
        return clip_config(self.sizes, vision, text, choices.image_size)


@dataclass(frozen=True, kw_only=True)
class ResNetLayout(OpenAILayout):
    """A CLIP with a ResNet: checked like any other, for which this version has no model."""

    stages: tuple[int, ...]  # blocks in each

    @classmethod
    def of(cls, container: str, tensors: Mapping[str, Tensor], folder: Path) -> "ResNetLayout | None":
        if "visual.layer1.0.conv1.weight" not in tensors:
            return None
        stages = tuple(number_of_layers(tensors, rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
        counters = [name for name in tensors if name.endswith(".num_batches_tracked")]
        return cls(
            container=container,
            image_layers=sum(stages),
            text_layers=number_of_layers(tensors, r"transformer\.resblocks\.(\d+)\."),
            integers={name: tensors[name] for name in (*INTEGERS, *counters) if name in tensors},
            stages=stages,
        )

    def table(self) -> list[Row]:
        return [
            *expand([*_resnet_rows(self.stages), *RESNET_POOLING], "vision", "visual.", "vision_model."),
            *tower_rows("text", self.text_layers, ""),
            *expand([*TEXT_NORM, TEXT_PROJECTION, LOGIT_SCALE], "text"),
        ]

    def config(self, choices: Choices) -> CLIPConfig:
        stages = ", ".join(map(str, self.stages))
        raise FormatError(
            f"this is a CLIP with a ResNet ({stages} blocks, {2 * self.sizes['vision.stem']} wide), sound in all its "
            "names and shapes, but this version has no model for it; it converts CLIPs with a ViT."
        )


def _resnet_rows(stages: Sequence[int]) -> Iterator[Row]:
    """Convolutions and batch norms of `ModifiedResNet`; every width is a multiple of the first convolution's."""

    def convolution(name: str, norm: str, width: int, into: int, kernel: int) -> Iterator[Row]:
        size = f"{width}*.stem" if width > 1 else ".stem"
        yield row(f"{name}.weight", f"{name}.weight", f"{size} {f'{into}*.stem' if into else 3} {kernel} {kernel}")
        for part in ("weight", "bias", "running_mean", "running_var"):
            yield row(f"{norm}.{part}", f"{norm}.{part}", size)

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
    row("attnpool.positional_embedding", "attnpool.positional_embedding", ".positions 64*.stem"),
    *(
        row(f"attnpool.{name}.{part}", f"attnpool.{name}.{part}", shape)
        for name, size in (("q_proj", "64*.stem"), ("k_proj", "64*.stem"), ("v_proj", "64*.stem"), ("c_proj", "embed"))
        for part, shape in (("weight", f"{size} 64*.stem"), ("bias", size))
    ),
)
