"""transformers' own files: names that are ours, under the geometry that `config.json` states."""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ..configuration import FAMILIES, DualEncoderConfig, family_of
from .big_vision import BigVisionLayout
from .families import sizes_of
from .layout import Choices, Layout, read_json
from .openai import OpenAILayout
from .table import KEEP, FormatError, Row, targets

# The layouts whose rows lead to every name that transformers has for a family.
_OWN_LAYOUTS: dict[str, type[Any]] = {layout.format: layout for layout in (OpenAILayout, BigVisionLayout)}
POSITION_IDS_BUFFERS = r"(^|\.)position_ids$"  # the names of buffers in old folders, which hold 0, 1, 2, ...


@dataclass(frozen=True, kw_only=True)
class TransformersLayout(Layout):
    """Weights beside their `config.json`: all that the rows of another format lead to."""

    format: ClassVar[str] = "transformers"
    containers: ClassVar[tuple[str, ...]] = ("safetensors", "torch")

    @classmethod
    def of(cls, container: str, tensors: Mapping[str, Tensor], folder: Path) -> "TransformersLayout | None":
        if not any(name.startswith(("vision_model.", "text_model.")) for name in tensors):
            return None
        beside = read_json(folder / "config.json")
        if beside is None:
            raise FormatError(
                "these are weights of transformers, which say neither heads nor activation without the config.json of "
                "their folder; put it beside them."
            )
        layout = cls.of_config(_config(beside))
        integers = {name: tensor for name, tensor in tensors.items() if re.search(POSITION_IDS_BUFFERS, name)}
        return cls(**{**vars(layout), "container": container, "beside": beside, "integers": integers})

    @classmethod
    def of_config(cls, config: DualEncoderConfig) -> "TransformersLayout":
        """The weights of a model with this configuration."""
        return cls(
            container="safetensors",
            beside=config.to_dict(),
            image_layers=config.vision_config.num_hidden_layers,
            text_layers=config.text_config.num_hidden_layers,
            sizes=sizes_of(config),
        )

    def table(self) -> list[Row]:
        config = _config(self.beside)
        layout = _OWN_LAYOUTS[family_of(config).official_formats[0]].of_config(config)
        shapes = targets(layout.table(), sizes_of(config))
        return [Row((name,), (name,), (tuple(map(str, shape)),), KEEP) for name, shape in shapes.items()]

    def config(self, choices: Choices) -> DualEncoderConfig:
        return _config(self.beside)


def _config(values: Mapping[str, object]) -> DualEncoderConfig:
    if (model_type := values.get("model_type")) not in FAMILIES:
        raise FormatError(f"config.json has model_type {model_type!r}, expected {' or '.join(FAMILIES)}.")
    return FAMILIES[str(model_type)].config.from_dict(copy.deepcopy(dict(values)))
