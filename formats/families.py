"""From the sizes that a file states to the configuration of its family, and back."""

import math
from collections.abc import Mapping
from typing import Any

from ..configuration import CLIPConfig, DualEncoderConfig, SiglipConfig, SiglipVisionConfig
from .errors import FormatError

# What the forward pass depends on; special ids are not among it, for old folders have harmless wrong ones.
_TOWER = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
)
FORWARD_FIELDS = {
    "vision_config": (*_TOWER, "image_size", "patch_size", "num_channels", "vision_use_head"),
    "text_config": (*_TOWER, "vocab_size", "max_position_embeddings", "projection_size"),
}


def tower(
    sizes: Mapping[str, int], name: str, layers: int, *, heads: int, activation: str, eps: float
) -> dict[str, int | float | str]:
    """The fields that every tower has."""
    width = sizes[f"{name}.width"]
    if heads < 1 or width % heads:
        raise FormatError(f"the {name} tower is {width} wide, which cannot be cut into {heads} heads.")
    return {
        "hidden_size": width,
        "intermediate_size": sizes[f"{name}.mlp"],
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": activation,
        "layer_norm_eps": eps,
    }


def clip_config(
    sizes: Mapping[str, int], vision: Mapping[str, Any], text: Mapping[str, Any], image_size: int | None
) -> CLIPConfig:
    """CLIP's configuration around the fields of both towers; ids are taken from the vocabulary's end, as in `clip`."""
    vocabulary = sizes["text.vocabulary"]
    return CLIPConfig(
        projection_dim=sizes["embed"],
        vision_config={
            **vision,
            "projection_dim": sizes["embed"],
            "patch_size": sizes["vision.patch"],
            "image_size": image_side(sizes["vision.positions"] - 1, sizes["vision.patch"], image_size),
        },
        text_config={
            **text,
            "projection_dim": sizes["embed"],
            "vocab_size": vocabulary,
            "max_position_embeddings": sizes["text.positions"],
            "pad_token_id": 0,
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
        },
    )


def siglip_vision_config(
    sizes: Mapping[str, int], vision: Mapping[str, Any], image_size: int | None
) -> SiglipVisionConfig:
    """The image tower's configuration around the fields of every tower."""
    image_size = image_side(sizes["vision.positions"], sizes["vision.patch"], image_size)
    return SiglipVisionConfig(**vision, patch_size=sizes["vision.patch"], image_size=image_size)


def siglip_config(
    sizes: Mapping[str, int], vision: SiglipVisionConfig, text: Mapping[str, Any], *, scanned: bool = False
) -> SiglipConfig:
    """SigLIP's configuration around its image tower and the fields of the other; ids as in the official ones."""
    text_width, vision_width = sizes.get("embed", sizes["text.width"]), sizes["vision.width"]
    if text_width != vision_width:
        raise FormatError(f"text embeddings have {text_width} values, but image embeddings {vision_width}.")
    vocabulary = sizes["text.vocabulary"]
    return SiglipConfig(
        vision_config=vision,
        text_config={
            **text,
            "projection_size": text_width,
            "vocab_size": vocabulary,
            "max_position_embeddings": sizes["text.positions"],
            # SigLIP 2 (scanned, 256000 pieces of Gemma) pads with 0; SigLIP, its multilingual model included, with 1.
            "pad_token_id": 0 if scanned or vocabulary == 256_000 else 1,
            "bos_token_id": None,
            "eos_token_id": 1,
        },
    )


def sizes_of(config: DualEncoderConfig) -> dict[str, int]:
    """The sizes by which the tables call what a configuration has."""
    vision, text = config.vision_config, config.text_config
    sizes = {
        "embed": config.projection_dim if config.projection else text.projection_size,
        "vision.patch": vision.patch_size,
        "vision.positions": vision.num_positions,
        "text.vocabulary": text.vocab_size,
        "text.positions": text.max_position_embeddings,
    }
    for name, tower in (("vision", vision), ("text", text)):
        sizes |= {
            f"{name}.layers": tower.num_hidden_layers,
            f"{name}.width": tower.hidden_size,
            f"{name}.mlp": tower.intermediate_size,
            f"{name}.heads": tower.num_attention_heads,
            f"{name}.head_dim": tower.hidden_size // tower.num_attention_heads,
        }
    return sizes


def differences(wanted: DualEncoderConfig, given: DualEncoderConfig) -> list[str]:
    """Where another forward pass would be computed with `given` than with `wanted`."""
    if wanted.model_type != given.model_type:
        return [f"model_type would be {given.model_type}, this model's is {wanted.model_type}"]
    found = []
    for part, names in FORWARD_FIELDS.items():
        for name in names:
            value, other = (getattr(getattr(config, part), name, None) for config in (wanted, given))
            if value != other:
                found.append(f"{part}.{name} would be {other}, this model's is {value}")
    return found


def image_side(patches: int, patch: int, image_size: int | None) -> int:
    """Pixels a side; files only show whole patches, `image_size` also has those that fill none (384 = 27 * 14 + 6)."""
    grid = math.isqrt(patches)
    if grid < 1 or grid * grid != patches:
        raise FormatError(f"expected image positions on a square grid, got {patches} of them.")
    if image_size is None:
        return grid * patch
    if image_size // patch != grid:
        raise FormatError(
            f"image_size={image_size} makes {image_size // patch} patches of {patch} pixels a side, but the file has "
            f"positions for {grid}; give an image size from {grid * patch} to {(grid + 1) * patch - 1}."
        )
    return image_size
