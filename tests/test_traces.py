"""`torch.jit.trace`, PyTorch's older exporter that uses it, and the newer one, at other sizes than the example's."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import families
from torch import Tensor, nn

import twinlens
from twinlens.deployment.inputs import EXAMPLE, Case, cases

RESNET = {"hidden_size": 64, "depths": (1, 2, 1, 1), "num_attention_heads": 2, "image_size": 32}
TEXT = {**families.TEXT, **families.IDS["CLIP"]}
KINDS = [
    *((family, kind) for family in (*families.FAMILIES, "CLIPResNet") for kind in ("Model", "VisionModel")),
    *((family, "ForImageClassification") for family in (*families.FAMILIES, "CLIPResNet")),
    *((family, "TextModel") for family in families.FAMILIES),
    ("CLIP", "VisionModelWithProjection"),
    ("CLIP", "TextModelWithProjection"),
]


def model_of(family: str, kind: str) -> Any:
    if family != "CLIPResNet":
        return families.model(family, kind)
    torch.manual_seed(0)
    config = twinlens.CLIPResNetConfig(vision_config=RESNET, text_config=TEXT, projection_dim=24)
    config = config.vision_config if kind == "VisionModel" else config
    return getattr(twinlens, f"CLIPResNet{kind}")(config).eval()


class Tuples(nn.Module):
    """A model as a function of tensors: the inputs that it was made for, by their places, and what is to be compared."""

    def __init__(self, model: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(**dict(zip(self.names, inputs, strict=True)))
        return tuple(value for value in outputs.values() if isinstance(value, Tensor))
