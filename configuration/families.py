"""The table of families: the names of a family's classes in every room, and the formats of its official checkpoints.

No other place asks which family it has; `other_families.py` has those that only transformers writes. "Adding a family"
in docs/architecture.md lists the steps, of which an entry in `_FAMILIES` is the first.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .base import DualEncoderConfig, TowerConfig
from .clip import CLIPConfig
from .clip_resnet import CLIPResNetConfig
from .siglip import SiglipConfig
from .siglip2 import Siglip2Config

if TYPE_CHECKING:
    from typing_extensions import TypeIs  # part of `typing` from Python 3.13 on


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family. Classes of higher rooms are given by name, because this room may not import them.

    `official_formats` are those that `twinlens export` writes. The first is the family's own: from the rules of its
    layout follow the names and shapes of all weights in a folder of transformers too, so that without one a model of
    the family can be built, saved and loaded, but its folder cannot be read as a checkpoint, and so not converted or
    verified.
    """

    title: str  # as people write it, for model cards
    config: type[DualEncoderConfig]
    model: str  # the dual encoder in `twinlens.modeling`
    vision_model: str  # its image tower in `twinlens.modeling`
    processor: str  # in `twinlens.processing`; it names its image processor and its tokenizer
    official_formats: tuple[str, ...]  # the family's own first

    @property
    def model_type(self) -> str:
        """The `model_type` of the dual encoder."""
        return self.config.model_type

    @property
    def model_types(self) -> tuple[str, ...]:
        """The `model_type` of the dual encoder, and those of its towers."""
        return (self.model_type, *(tower.model_type for tower in self.config.sub_configs.values()))


_FAMILIES = (
    Family(
        title="CLIP",
        config=CLIPConfig,
        model="CLIPModel",
        vision_model="CLIPVisionModel",
        processor="CLIPProcessor",
        official_formats=("openai", "open_clip"),
    ),
    Family(
        title="CLIP (ResNet)",
        config=CLIPResNetConfig,
        model="CLIPResNetModel",
        vision_model="CLIPResNetVisionModel",
        processor="CLIPProcessor",
        official_formats=("openai", "open_clip"),
    ),
    Family(
        title="SigLIP",
        config=SiglipConfig,
        model="SiglipModel",
        vision_model="SiglipVisionModel",
        processor="SiglipProcessor",
        official_formats=("big_vision", "open_clip"),
    ),
    Family(
        title="SigLIP 2 NaFlex",
        config=Siglip2Config,
        model="Siglip2Model",
        vision_model="Siglip2VisionModel",
        processor="Siglip2Processor",
        official_formats=("big_vision",),
    ),
)
FAMILIES = {family.model_type: family for family in _FAMILIES}


def family_of(config: DualEncoderConfig | TowerConfig | str | None) -> Family:
    """Return the family of a configuration or of a `model_type`, be it of a dual encoder or of one tower.

    Raises ValueError for a `model_type` of no family.
    """
    model_type = config if isinstance(config, str) or config is None else config.model_type
    for family in FAMILIES.values():
        if model_type in family.model_types:
            return family
    known = ", ".join(FAMILIES)
    raise ValueError(
        f"Expected the model_type of a dual encoder ({known}) or of one of its towers, got "
        f"{describe_model_type(model_type)}."
    )


def loader_of(model_type: object) -> str | None:
    """Return the name of the class that loads a `model_type`, of both towers or one; None where it is of no family."""
    from .other_families import OTHER_FAMILIES  # which imports this module

    for family in FAMILIES.values():
        for config in (family.config, *family.config.sub_configs.values()):
            if config.model_type == model_type:
                return config.__name__.removesuffix("Config") + "Model"
    return "DualEncoderModel" if isinstance(model_type, str) and model_type in OTHER_FAMILIES else None


def carries_code(model_type: object) -> bool:
    """Return whether a folder carries its model's code: twinlens has a class for it, and transformers has none."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return loader_of(model_type) is not None and model_type not in CONFIG_MAPPING_NAMES


def describe_model_type(model_type: object) -> str:
    """Return a `model_type` with the kind of model that it stands for in transformers: "'bert' (a Bert model)"."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    name = CONFIG_MAPPING_NAMES.get(model_type) if isinstance(model_type, str) else None
    stated = repr(model_type)[:60]
    if name is None:
        return stated
    return f"{stated} ({'an' if name[0] in 'AEIOU' else 'a'} {name.removesuffix('Config')} model)"


def is_single_tower(config: DualEncoderConfig | TowerConfig) -> "TypeIs[TowerConfig]":
    """Return whether a configuration is that of one tower alone, not of a dual encoder."""
    return isinstance(config, TowerConfig)
