"""transformers' own files: their names are ours, and their geometry is what config.json states."""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from torch import Tensor
from transformers.activations import ACT2FN

from ..configuration import (
    FAMILIES,
    OTHER_FAMILIES,
    DualEncoderConfig,
    TowerConfig,
    describe_model_type,
    family_of,
    title_of,
)
from ..configuration.known_names import POSITION_IDS_BUFFERS
from ..messages import listed, quoted, shown
from .big_vision import BigVisionLayout
from .errors import FormatError, readable_errors
from .geometry import sizes_of
from .layout import Layout
from .openai import OpenAILayout
from .operations import COUNT, KEEP
from .options import LoadOptions
from .small_files import read_json
from .table import Rule, solve, targets

# The layouts whose rules lead to every name that transformers has for a family. They are found by the first of its
# `official_formats`.
_FAMILY_LAYOUTS: dict[str, type[Layout]] = {layout.format: layout for layout in (OpenAILayout, BigVisionLayout)}

_POSITION_IDS = re.compile(POSITION_IDS_BUFFERS).search


@dataclass(frozen=True, kw_only=True)
class TransformersLayout(Layout):
    """Weights in a folder with their config.json: all names that the rules of the family's own format lead to."""

    format: ClassVar[str] = "transformers"
    containers: ClassVar[tuple[str, ...]] = ("safetensors", "torch")

    @classmethod
    def detect(
        cls, container: str, prefix: str, tensors: Mapping[str, Tensor], folder: Path
    ) -> "TransformersLayout | None":
        if not any(name.startswith(("vision_model.", "text_model.")) for name in tensors):
            return None
        sidecar_json = read_json(folder / "config.json")
        if sidecar_json is None:
            raise FormatError(
                "these are weights of transformers, which say neither heads nor activation without the config.json of "
                "their folder; put it beside them."
            )
        layout = cls.from_config(_config(sidecar_json))
        integer_buffers = {name: tensors[name] for name in tensors if _POSITION_IDS(name)}
        return replace(layout, container=container, sidecar_json=sidecar_json, integer_buffers=integer_buffers)

    @classmethod
    def from_config(cls, config: DualEncoderConfig) -> "TransformersLayout":
        """Return the layout of a model with this configuration."""
        return cls(
            container="safetensors",
            sidecar_json=config.to_dict(),
            image_layers=config.vision_config.num_hidden_layers,
            text_layers=config.text_config.num_hidden_layers,
            sizes=sizes_of(config),
        )

    def own_rules(self) -> list[Rule]:
        config = _config(self.sidecar_json)
        rules = _family_layout(config).own_rules()
        counts = {name for rule in rules if rule.operation is COUNT for name in rule.targets}
        return [
            Rule((name,), (name,), (tuple(map(str, shape)),), COUNT if name in counts else KEEP)
            for name, shape in targets(rules, sizes_of(config)).items()
        ]

    def config(self, options: LoadOptions) -> DualEncoderConfig:
        return _config(self.sidecar_json)


def _family_layout(config: DualEncoderConfig) -> Layout:
    """Return the layout of a model in its family's own format. Raises FormatError where the family has none here."""
    family = family_of(config)
    own_format = next(iter(family.official_formats), None)
    if own_format not in _FAMILY_LAYOUTS:
        raise FormatError(
            f"twinlens has no table of the weights' names of {family.title}; expected the first of its "
            f"official_formats to be {' or '.join(_FAMILY_LAYOUTS)}, got {own_format}."
        )
    return _FAMILY_LAYOUTS[own_format].from_config(config)


def read_config(folder: Path) -> DualEncoderConfig | TowerConfig:
    """Return the configuration in a folder of transformers, of a dual encoder or of one tower alone.

    Raises FileNotFoundError without a config.json, FormatError for one that is not sound or of another kind of model.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json, expected a folder that twinlens convert wrote.")
    with readable_errors(folder):
        values = read_json(folder / "config.json")
        refuse_other_model_types(values)
        family = family_of(values.get("model_type"))
        kinds = {kind.model_type: kind for kind in (family.config, *family.config.sub_configs.values())}
        return kinds[values["model_type"]].from_dict(values)


def check_image_tower(config: TowerConfig, tensors: Mapping[str, Tensor]) -> None:
    """Raise FormatError where the weights of an image tower alone are not those that its configuration describes."""
    shared = {"projection_dim": config.projection_dim} if hasattr(config, "projection_dim") else {}
    both = family_of(config).config(vision_config=config.to_dict(), **shared)
    rules = {rule.targets[0]: rule for rule in TransformersLayout.from_config(both).own_rules()}
    prefix = "vision_model."  # which older versions of transformers write, and newer ones do not
    names = {name.removeprefix(prefix): name for name in tensors if not _POSITION_IDS(name)}
    own = {name.removeprefix(prefix): rule for name, rule in rules.items() if name.startswith(prefix)}
    own |= {name: rule for name, rule in rules.items() if name == "visual_projection.weight" and name in names}
    expected = [rule._replace(sources=(names.get(name, name),)) for name, rule in own.items()]
    _, violations = solve(expected, {name: tensors[name] for name in names.values()})
    if violations:
        raise FormatError(f"config.json describes another image tower: {listed(violations)}.")


def refuse_other_model_types(values: Mapping[str, object]) -> None:
    """Raise FormatError where a config.json states the `model_type` of a model that is of no family here."""
    if (other := values.get("model_type")) in [*OTHER_FAMILIES]:
        raise FormatError(
            f"this is a folder of transformers, of {title_of(str(other))} ({quoted(other)}), which has no official "
            "format here and needs no conversion: DualEncoderModel.from_pretrained loads it."
        )
    known = [model_type for family in FAMILIES.values() for model_type in family.model_types]
    if (model_type := values.get("model_type")) is not None and model_type not in known:
        families = " or ".join(dict.fromkeys(family.title.split()[0] for family in FAMILIES.values()))
        raise FormatError(f"expected a {families} model, got the model_type {describe_model_type(model_type)}.")


def _config(values: Mapping[str, object]) -> DualEncoderConfig:
    if (model_type := values.get("model_type")) not in FAMILIES:
        if any(model_type in family.model_types for family in FAMILIES.values()):
            names = values.get("architectures")
            loader = shown(names[0]) if isinstance(names, list) and names else "the class of the tower"
            raise FormatError(
                f"config.json has model_type {quoted(model_type)}, one tower alone; expected both. It needs no "
                f"conversion: {loader} loads it."
            )
        raise FormatError(f"config.json has model_type {quoted(model_type)}, expected {' or '.join(FAMILIES)}.")
    config = FAMILIES[str(model_type)].config.from_dict(copy.deepcopy(dict(values)))
    for tower in (config.vision_config, config.text_config):
        if getattr(tower, "hidden_act", "relu") not in ACT2FN:
            raise FormatError(
                f"config.json has hidden_act {quoted(tower.hidden_act)}, which transformers does not know."
            )
    return config
