"""One tower of a CLIP under OpenAI's names: `model.visual.state_dict()`, or a checkpoint without the other tower."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..configuration import CLIPResNetVisionConfig, CLIPTextConfig, CLIPVisionConfig
from .geometry import clip_config, tower_fields
from .layout import Layout, number_of_layers
from .openai import INTEGER_BUFFERS, STRETCHED_POSITIONS, TEXT_NORM, TEXT_PROJECTION, tower_rules, vision_rules
from .openai_resnet import counts_batches, resnet_fields, stages_of
from .options import LoadOptions, resolve_option
from .table import Rule, expand

# The sizes of the tower that is not there, which only fill `clip_config`.
_ABSENT = {
    "vision": {"vision.patch": 32, "vision.positions": 50},
    "text": {"text.vocabulary": 49408, "text.positions": 77},
}


@dataclass(frozen=True, kw_only=True)
class OpenAITowerLayout(Layout):
    """CLIP's image tower or its text tower alone, with its projection or, unless it is a ResNet, without."""

    format: ClassVar[str] = "openai"
    containers: ClassVar[tuple[str, ...]] = ("torch", "torchscript", "safetensors")

    tower: Literal["vision", "text"]
    below: str  # stands before the tower's names, "visual." or nothing
    projected: bool
    quick_gelu: bool  # the weights are seen to be OpenAI's
    two_tables: bool  # of text positions, as in Long-CLIP
    stages: list[int] = field(default_factory=list)  # the blocks in each stage of a ResNet; none for a ViT
    batch_counts: bool = False  # of a ResNet's batch norms

    @classmethod
    def detect(
        cls, container: str, prefix: str, tensors: Mapping[str, Tensor], folder: Path
    ) -> "OpenAITowerLayout | None":
        if all(name.startswith("visual.") for name in tensors):
            below = "visual."
        elif not any(name.startswith("visual.") for name in tensors):
            below = ""
        else:
            return None
        # Other models' ResNets, such as torchvision's, have no attention pooling.
        marks = (f"{below}class_embedding", f"{below}attnpool.positional_embedding")
        has_image_tower = f"{below}conv1.weight" in tensors and any(mark in tensors for mark in marks)
        if not has_image_tower and "token_embedding.weight" not in tensors:
            return None
        # What the rest of a whole file also has: no weights of a tower.
        beside = {name: tensors[name] for name in (*INTEGER_BUFFERS, "logit_scale") if name in tensors}
        stages = stages_of(tensors, below)
        layers = len(stages) or number_of_layers(tensors, rf"{below}transformer\.resblocks\.(\d+)\.")
        blocks = [name for name in tensors if name.startswith(f"{below}transformer.resblocks.0.")]
        # As in `open_clip._is_openai`: integers of an archive, dtypes, or the attention as the first part of a block.
        has_integers = any(name in beside for name in INTEGER_BUFFERS)
        dtypes = {tensor.dtype for tensor in tensors.values()} if not prefix else set()
        attention_first = container != "safetensors" and blocks[:1] == [
            f"{below}transformer.resblocks.0.attn.in_proj_weight"
        ]
        return cls(
            container=container,
            prefix=prefix,
            image_layers=layers if has_image_tower else 0,
            text_layers=0 if has_image_tower else layers,
            tower="vision" if has_image_tower else "text",
            below=below,
            projected=(f"{below}proj" if has_image_tower else "text_projection") in tensors,
            quick_gelu=container == "torchscript"
            or has_integers
            or attention_first
            or dtypes == {torch.float16, torch.float32},
            integer_buffers=beside,
            two_tables=STRETCHED_POSITIONS in tensors,
            stages=stages,
            batch_counts=counts_batches(tensors),
        )

    def own_rules(self) -> list[Rule]:
        if self.tower == "vision":
            return vision_rules(self.image_layers, self.stages, self.batch_counts, self.below, projected=self.projected)
        return [
            *tower_rules("text", self.text_layers, "", two_tables=self.two_tables),
            *expand([*TEXT_NORM, *([TEXT_PROJECTION] if self.projected else [])], "text"),
        ]

    def config(self, options: LoadOptions) -> CLIPVisionConfig | CLIPResNetVisionConfig | CLIPTextConfig:
        """Return the configuration of the tower: geometry from the shapes, and heads that are 64 wide."""
        fields = self._resnet_fields(options) if self.stages else self._transformer_fields(options)
        absent = "text" if self.tower == "vision" else "vision"
        sizes = {"embed": 512, **_ABSENT[absent], **self.sizes}
        towers = {self.tower: fields, absent: {}}
        config = clip_config(sizes, towers["vision"], towers["text"], options)
        return config.vision_config if self.tower == "vision" else config.text_config

    def _resnet_fields(self, options: LoadOptions) -> dict[str, Any]:
        published = self.sizes["vision.stem"]
        heads = resolve_option("vision_heads", options.get("vision_heads"), published, "the number of its heads")
        return resnet_fields(self.sizes, self.stages, heads)

    def _transformer_fields(self, options: LoadOptions) -> dict[str, Any]:
        activation = resolve_option(
            "vision_activation",
            options.get("vision_activation"),
            "quick_gelu" if self.quick_gelu else None,
            "whether its GELU is quick_gelu (OpenAI's) or gelu (open_clip's own)",
        )
        width = self.sizes[f"{self.tower}.width"]
        heads = width // 64
        if self.tower == "vision":
            published = heads if self.quick_gelu or width <= 1024 else None  # as in `open_clip`
            heads = resolve_option("vision_heads", options.get("vision_heads"), published, "the number of its heads")
        layers = self.image_layers + self.text_layers
        return tower_fields(self.sizes, self.tower, layers, heads=heads, activation=activation, eps=1e-5)
