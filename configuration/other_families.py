"""Dual encoders that transformers has and this package does not write again: their names and traits, by `model_type`.

Their configurations are transformers' own objects, so that their traits stand in this table and not in a class.
"""

import inspect
import math
from dataclasses import dataclass, replace
from typing import Any, get_args

from transformers import PreTrainedConfig

from .families import family_of


@dataclass(frozen=True, kw_only=True)
class OtherFamily:
    """One family of transformers. Its traits have the names that they have in `DualEncoderConfig`."""

    title: str
    model: str  # the class in transformers
    processor: str  # the class in transformers
    loss: str = "softmax"  # a name in losses.LOSSES
    has_logit_bias: bool = False
    has_any_towers: bool = False  # also those without a pooled output, with which it cannot work
    has_temperature: bool = False  # cosines are divided by `temperature`, not multiplied by exp(logit_scale)
    max_logit_scale: float | None = math.log(100)
    text_length: int | None = None  # to which every text is padded; None: a batch is padded to its longest text


OTHER_FAMILIES = {
    "align": OtherFamily(
        title="ALIGN",
        model="AlignModel",
        processor="AlignProcessor",
        loss="smoothed_softmax",
        has_temperature=True,
        max_logit_scale=None,
        text_length=64,
    ),
    "altclip": OtherFamily(title="AltCLIP", model="AltCLIPModel", processor="AltCLIPProcessor"),
    "chinese_clip": OtherFamily(title="Chinese-CLIP", model="ChineseCLIPModel", processor="ChineseCLIPProcessor"),
    "metaclip_2": OtherFamily(title="MetaCLIP 2", model="MetaClip2Model", processor="CLIPProcessor"),
    "vision-text-dual-encoder": OtherFamily(
        title="dual encoder of two towers",
        model="VisionTextDualEncoderModel",
        processor="VisionTextDualEncoderProcessor",
        has_any_towers=True,
    ),
}

_INPUTS = {"vision": "pixel_values", "text": "input_ids"}  # of a tower
# Text towers that count positions from the one after the id of the padding: those of a text are fewer by that.
_POSITIONS_AFTER_PADDING = ("altclip_text_model", "camembert", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl")


def other_family_of(config: PreTrainedConfig) -> OtherFamily:
    """Return the family of a configuration, with the loss that the configuration states.

    `DualEncoderModel.from_towers` has it stated in config.json. The sigmoid loss has a bias and no largest scale.
    Raises ValueError for an unknown loss.
    """
    family = OTHER_FAMILIES[config.model_type]
    loss = getattr(config, "loss", family.loss)
    if loss not in (family.loss, "sigmoid"):
        raise ValueError(f"Expected {family.loss!r} or 'sigmoid' as the loss of {family.title}, got {loss!r}.")
    if loss == "sigmoid":
        return replace(family, loss="sigmoid", has_logit_bias=True, max_logit_scale=None)
    return family


def title_of(model_type: str) -> str:
    """Return the name of a family as people write it, of this package's or of transformers'."""
    return OTHER_FAMILIES[model_type].title if model_type in OTHER_FAMILIES else family_of(model_type).title


def max_text_length(config: PreTrainedConfig) -> int | None:
    """Return the number of tokens that the text tower of a dual encoder, or a text tower, has positions for."""
    text = getattr(config, "text_config", None) or config
    length = getattr(text, "max_position_embeddings", None)
    if length is not None and text.model_type in _POSITIONS_AFTER_PADDING:
        length -= text.pad_token_id + 1
    return length


def output_class(model: Any) -> Any:
    """Return the class of a model's outputs, which its `forward` declares, alone or beside `tuple`; or None."""
    declared = inspect.signature(model.forward).return_annotation
    return next((kind for kind in (declared, *get_args(declared)) if hasattr(kind, "__dataclass_fields__")), None)


def check_tower(tower: object, kind: str) -> None:
    """Raise an error unless transformers can make a model the tower of a `kind` ("vision" or "text") of a dual encoder.

    That is TypeError for what is no model of transformers, and ValueError for one that takes or returns something else.
    """
    from transformers import CONFIG_MAPPING, MODEL_MAPPING, PreTrainedModel  # which take a while

    if not isinstance(tower, PreTrainedModel):
        raise TypeError(f"Expected a Hub id, a folder or a model of transformers as {kind}, got a {type(tower)}.")
    name, config, inputs = type(tower).__name__, tower.config, _INPUTS[kind]
    stated = f"got a {name} ({config.model_type!r})"
    if tower.main_input_name != inputs:
        raise ValueError(f"Expected a {kind} tower for {inputs}, {stated}, which takes {tower.main_input_name}.")
    check_pooled(tower, kind)
    if config.model_type not in CONFIG_MAPPING or CONFIG_MAPPING[config.model_type] is not type(config):
        raise ValueError(f"Expected a {kind} tower in transformers' own class, {stated} of {type(tower).__module__}.")
    if type(config) not in MODEL_MAPPING:
        raise ValueError(f"Expected a {kind} tower that AutoModel loads, {stated}: a saved folder could not be read.")
    if getattr(config, "hidden_size", None) is None:
        raise ValueError(f"Expected a {kind} tower whose configuration has a hidden_size, {stated} without one.")


def check_pooled(tower: Any, kind: str) -> None:
    """Raise ValueError for a model of transformers without pooled output, which the tower of a dual encoder needs."""
    outputs = getattr(output_class(tower), "__dataclass_fields__", {"pooler_output"})
    if "pooler_output" not in outputs or getattr(tower, "pooler", tower) is None:
        stated = f"got a {type(tower).__name__} ({tower.config.model_type!r}) without one"
        raise ValueError(f"Expected a {kind} tower with a pooler_output, which is projected, {stated}.")
