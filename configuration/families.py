"""The families, an entry each: what a family is called in every room, and where its checkpoints come from.

A new family is a module beside this one (its configuration, with the traits that the models read), an entry here, and
the classes that the entry names. No other place asks which family it has.
"""

from dataclasses import dataclass

from .base import DualEncoderConfig, TowerConfig
from .clip import CLIPConfig
from .siglip import SiglipConfig


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family. Classes of rooms above this one are given by name, and looked up there when they are needed."""

    title: str  # as people write it, for model cards
    config: type[DualEncoderConfig]
    model: str  # the dual encoder in `twinlens.modeling`
    vision_model: str  # the image tower there
    processor: str  # in `twinlens.processing`, where it names its image processor and its tokenizer
    official_formats: tuple[str, ...]  # that its checkpoints come in, and can be exported to; the first is its own

    @property
    def model_type(self) -> str:
        """That of the dual encoder."""
        return self.config.model_type

    @property
    def model_types(self) -> tuple[str, ...]:
        """That of the dual encoder, and those of its towers alone."""
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
        title="SigLIP",
        config=SiglipConfig,
        model="SiglipModel",
        vision_model="SiglipVisionModel",
        processor="SiglipProcessor",
        official_formats=("big_vision", "open_clip"),
    ),
)
FAMILIES = {family.model_type: family for family in _FAMILIES}  # by the `model_type` of the dual encoder


def family_of(config: DualEncoderConfig | TowerConfig | str | None) -> Family:
    """The family of a configuration, or of a `model_type`; that of a tower alone is its family's too.

    Raises ValueError for a `model_type` of none.
    """
    model_type = config if isinstance(config, str) or config is None else config.model_type
    for family in FAMILIES.values():
        if model_type in family.model_types:
            return family
    known = ", ".join(FAMILIES)
    raise ValueError(
        f"Expected the model_type of a dual encoder ({known}) or of one of its towers, got {model_type!r}."
    )
