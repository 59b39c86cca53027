"""Dual encoders that transformers has: its own classes, with the methods of `DualEncoderModel` added to them.

The names of their weights and what `save_pretrained` writes are transformers' own.
"""

import inspect
import math
from functools import cache
from os import PathLike
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, VisionTextDualEncoderConfig
from transformers import initialization as init

from ..configuration import OTHER_FAMILIES, check_pooled, check_tower, other_family_of, output_class
from ..configuration.known_names import POSITION_IDS_BUFFERS
from ..runtime import checked
from .dual_encoder import DualEncoderModel, Source, l2_normalize

# The logarithm of the factor before training: CLIP's temperature of 0.07, SigLIP's factor of 10, with its bias.
_FIRST_SCALES = {"softmax": -math.log(0.07), "sigmoid": math.log(10)}
_FIRST_BIAS = -10.0
_FOR_ALL_TOWERS = {"output_attentions", "output_hidden_states", "return_dict"}  # which `forward` need not name


class OtherFamilyModel(DualEncoderModel):
    """What `class_of` adds to a class of transformers: its place in the order of bases is before that class."""

    def __init__(self, config: PreTrainedConfig, *towers: PreTrainedModel) -> None:
        super().__init__(config, *towers)
        for kind in ("vision", "text") if self.traits.has_any_towers else ():
            check_pooled(getattr(self, f"{kind}_model"), kind)
        if self.traits.has_logit_bias:
            self.logit_bias = nn.Parameter(torch.tensor(_FIRST_BIAS))

    @property
    def image_input_names(self) -> tuple[str, ...]:
        names = inspect.signature(self.vision_model.forward).parameters
        return tuple(name for name in names if name != "attention_mask")  # which is that of the texts

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and "logit_scale" in self._parameters:  # of which transformers leaves what is in memory
            init.constant_(self.logit_scale, self.config.logit_scale_init_value)
        if module is self and hasattr(self, "logit_bias"):
            init.constant_(self.logit_bias, _FIRST_BIAS)

    @checked("text")
    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: object) -> Tensor:
        outputs = self.get_text_features(input_ids, attention_mask, **{**inputs, "return_dict": True})
        return l2_normalize(outputs.pooler_output)

    def get_image_features(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False, **inputs: Any) -> Any:
        inputs["interpolate_pos_encoding"] = interpolate_pos_encoding
        pixel_values = pixel_values.to(self.dtype)  # as the towers of this package do, and not all of transformers
        return super().get_image_features(pixel_values, **_taken_by(self.vision_model, inputs))

    def get_text_features(self, *args: Any, **inputs: Any) -> Any:
        return super().get_text_features(*args, **_taken_by(self.text_model, inputs))


def _taken_by(tower: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    names = inspect.signature(tower.forward).parameters.keys() | _FOR_ALL_TOWERS
    return {name: value for name, value in inputs.items() if name in names}


@cache
def class_of(model_type: str) -> type[OtherFamilyModel]:
    """Return transformers' class for a `model_type` of `OTHER_FAMILIES`, with the methods of `DualEncoderModel`."""
    family = OTHER_FAMILIES[model_type]
    native: Any = getattr(transformers, family.model)
    attributes = {
        "__module__": __name__,  # where pickle finds it, through __getattr__
        "__doc__": f"transformers' {family.model} with the methods of `DualEncoderModel`.",
        "config_class": native.config_class,
        "is_custom_code": staticmethod(lambda: False),  # so that transformers renames the weights in old files
        "output_class": output_class(native),
        "traits": property(lambda model: other_family_of(model.config)),
        "_keys_to_ignore_on_load_unexpected": {POSITION_IDS_BUFFERS},
    }
    if family.has_temperature:
        attributes["logit_scale"] = property(lambda model: -model.temperature.float().log())
    return type(family.model, (OtherFamilyModel, native), attributes)


def __getattr__(name: str) -> type[OtherFamilyModel]:
    for model_type, family in OTHER_FAMILIES.items():
        if family.model == name:
            return class_of(model_type)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def join_towers(vision: Source, text: Source, projection_dim: int, loss: str) -> OtherFamilyModel:
    """Do what `DualEncoderModel.from_towers` says."""
    if loss not in _FIRST_SCALES or not isinstance(projection_dim, int) or projection_dim < 1:
        known = " or ".join(_FIRST_SCALES)
        raise ValueError(f"Expected loss {known}, projection_dim at least 1, got {loss!r} and {projection_dim!r}.")
    towers = [_load_tower(vision, "vision"), _load_tower(text, "text")]
    configs = (tower.config for tower in towers)
    settings = {"projection_dim": projection_dim, "logit_scale_init_value": _FIRST_SCALES[loss], "loss": loss}
    config = VisionTextDualEncoderConfig.from_vision_text_configs(*configs, **settings)
    dtype = torch.promote_types(*(tower.dtype for tower in towers))
    return class_of(config.model_type)(config, *towers).to(towers[0].device, dtype).eval()


def _load_tower(source: Source, kind: str) -> PreTrainedModel:
    model = AutoModel.from_pretrained(source) if isinstance(source, str | PathLike) else source
    tower: PreTrainedModel = getattr(model, f"{kind}_model", model)  # of a dual encoder, its tower
    check_tower(tower, kind)
    return tower
