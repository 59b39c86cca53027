"""Dual encoders that transformers has: its own classes, with the methods of `DualEncoderModel` added to them.

The names of their weights and what `save_pretrained` writes are transformers' own.
"""

import inspect
import math
from functools import cache
from os import PathLike
from typing import Any, get_args

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, VisionTextDualEncoderConfig
from transformers import initialization as init

from ..configuration import OTHER_FAMILIES, OtherFamily, check_tower, other_family_of
from ..configuration.known_names import POSITION_IDS_BUFFERS
from .dual_encoder import DualEncoderModel, Source, l2_normalize

# The logarithm of the factor before training: CLIP's temperature of 0.07, SigLIP's factor of 10, with its bias.
_FIRST_SCALES = {"softmax": -math.log(0.07), "sigmoid": math.log(10)}
_FIRST_BIAS = -10.0
_FOR_ALL_TOWERS = {"output_attentions", "output_hidden_states", "return_dict"}  # which `forward` need not name


class OtherFamilyModel(DualEncoderModel):
    """What `class_of` adds to a class of transformers: its place in the order of bases is before that class."""

    def __init__(self, config: PreTrainedConfig, *towers: PreTrainedModel) -> None:
        super().__init__(config, *towers)
        if self.traits.has_logit_bias:
            self.logit_bias = nn.Parameter(torch.tensor(_FIRST_BIAS))

    @property
    def traits(self) -> OtherFamily:
        return other_family_of(self.config)

    @property
    def image_input_names(self) -> tuple[str, ...]:
        return ("pixel_values", "interpolate_pos_encoding")  # and no mask, which would be that of the texts

    @property
    def log_scale(self) -> Tensor:
        return -self.temperature.float().log() if self.traits.has_temperature else self.logit_scale

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and not self.traits.has_temperature:  # of which transformers leaves what is in memory
            init.constant_(self.logit_scale, self.config.logit_scale_init_value)
        if module is self and hasattr(self, "logit_bias"):
            init.constant_(self.logit_bias, _FIRST_BIAS)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: object) -> Tensor:
        outputs = self.get_text_features(input_ids, attention_mask, **{**inputs, "return_dict": True})
        return l2_normalize(outputs.pooler_output)

    def get_image_features(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False, **inputs: Any) -> Any:
        inputs["interpolate_pos_encoding"] = interpolate_pos_encoding
        return super().get_image_features(pixel_values, **_taken_by(self.vision_model, inputs))

    def get_text_features(self, *args: Any, **inputs: Any) -> Any:
        return super().get_text_features(*args, **_taken_by(self.text_model, inputs))


def _taken_by(tower: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    names = inspect.signature(tower.forward).parameters.keys() | _FOR_ALL_TOWERS
    return {name: value for name, value in inputs.items() if name in names}


@cache
def class_of(model_type: str) -> type[OtherFamilyModel]:
    """Return transformers' class for a `model_type` of `OTHER_FAMILIES`, with the methods of `DualEncoderModel`."""
    native: Any = getattr(transformers, OTHER_FAMILIES[model_type].model)
    attributes = {
        "__module__": __name__,  # where pickle finds it, through __getattr__
        "__doc__": f"transformers' {native.__name__} with the methods of `DualEncoderModel`.",
        "config_class": native.config_class,
        "is_custom_code": staticmethod(lambda: False),  # so that transformers renames the weights in old files
        "output_class": _output_class(native),
        "_keys_to_ignore_on_load_unexpected": {POSITION_IDS_BUFFERS},
    }
    return type(native.__name__, (OtherFamilyModel, native), attributes)


def __getattr__(name: str) -> type[OtherFamilyModel]:
    for model_type, family in OTHER_FAMILIES.items():
        if family.model == name:
            return class_of(model_type)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _output_class(model: Any) -> Any:
    """Return the class of a model's outputs, which its `forward` declares, alone or beside `tuple`; or None."""
    declared = inspect.signature(model.forward).return_annotation
    return next((kind for kind in (declared, *get_args(declared)) if hasattr(kind, "__dataclass_fields__")), None)


def join_towers(vision: Source, text: Source, projection_dim: int, loss: str) -> OtherFamilyModel:
    """Do what `DualEncoderModel.from_towers` says."""
    if loss not in _FIRST_SCALES:
        raise ValueError(f"Expected a loss out of {', '.join(_FIRST_SCALES)}, got {loss!r}.")
    towers = [_load_tower(vision, "vision", "pixel_values"), _load_tower(text, "text", "input_ids")]
    configs = (tower.config for tower in towers)
    settings = {"projection_dim": projection_dim, "logit_scale_init_value": _FIRST_SCALES[loss], "loss": loss}
    config = VisionTextDualEncoderConfig.from_vision_text_configs(*configs, **settings)
    dtype = torch.promote_types(*(tower.dtype for tower in towers))
    return class_of(config.model_type)(config, *towers).to(towers[0].device, dtype).eval()


def _load_tower(source: Source, kind: str, inputs: str) -> PreTrainedModel:
    """Return a tower that takes `inputs`, also out of a dual encoder."""
    model = AutoModel.from_pretrained(source) if isinstance(source, str | PathLike) else source
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"Expected a Hub id, a folder or a model of transformers as {kind}, got a {type(model)}.")
    tower: PreTrainedModel = getattr(model, f"{kind}_model", model)
    name, pooled = type(tower).__name__, getattr(_output_class(tower), "__dataclass_fields__", {"pooler_output"})
    if tower.main_input_name != inputs:
        raise ValueError(f"Expected a {kind} tower for {inputs}, got a {name}, which takes {tower.main_input_name}.")
    if "pooler_output" not in pooled or getattr(tower, "pooler", inputs) is None:
        raise ValueError(f"Expected a {kind} tower with a pooler_output, which is projected, got a {name} without one.")
    check_tower(tower.config, kind)
    return tower
