"""Geometry: from the named sizes of a file's shapes to the configuration of its family, and back."""

import math
from collections.abc import Mapping
from typing import Any

from ..configuration import (
    CLIPConfig,
    CLIPResNetConfig,
    DualEncoderConfig,
    Siglip2Config,
    Siglip2VisionConfig,
    SiglipConfig,
    SiglipVisionConfig,
    TextConfig,
    TowerConfig,
    is_single_tower,
)
from ..configuration.clip import HIGHEST_ID, VOCABULARY_SIZE
from ..configuration.siglip import SiglipViTConfig
from .errors import FormatError
from .options import LoadOptions

# The fields that the forward pass depends on. Special ids are not among them: old folders have harmless wrong ones. The
# end of texts that are pooled there is compared by itself.
_TOWER_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
)
FORWARD_FIELDS = {
    "vision_config": (
        *_TOWER_FIELDS,
        "image_size",
        "num_patches",
        "patch_size",
        "num_channels",
        "vision_use_head",
        "depths",
    ),
    "text_config": (*_TOWER_FIELDS, "vocab_size", "max_position_embeddings", "projection_size"),
}

_SIZES = (  # the named sizes of a tower in rules, and the fields of its configuration that state them
    ("patch", "patch_size"),
    ("positions", "num_positions"),
    ("positions", "max_position_embeddings"),
    ("vocabulary", "vocab_size"),
    ("layers", "num_hidden_layers"),
    ("width", "hidden_size"),
    ("stem", "stem_size"),
    ("mlp", "intermediate_size"),
    ("heads", "num_attention_heads"),
)
_KNOWN_VOCABULARIES = (VOCABULARY_SIZE, 672)  # the sizes of OpenAI's and of the bundled clip-shapes'


def tower_fields(
    sizes: Mapping[str, int], name: str, layers: int, *, heads: int, activation: str, eps: float
) -> dict[str, int | float | str]:
    """Return the fields that the configuration of every tower has."""
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
    sizes: Mapping[str, int], vision: Mapping[str, Any], text: Mapping[str, Any], options: LoadOptions
) -> CLIPConfig:
    """Return CLIP's configuration from the fields of both towers.

    OpenAI's and open_clip's code takes the highest id of a text for its end. In a known vocabulary that is the last id;
    in any other there may be added tokens behind the end.
    """
    vocabulary, end = sizes["text.vocabulary"], options.get("eos_token_id")
    if end is None:
        end = vocabulary - 1 if vocabulary in _KNOWN_VOCABULARIES else HIGHEST_ID
    is_resnet = "depths" in vision
    config_class = CLIPResNetConfig if is_resnet else CLIPConfig
    patch = 32 if is_resnet else sizes["vision.patch"]  # of a ResNet the stride, which is no field
    return config_class(
        projection_dim=sizes["embed"],
        vision_config={
            **vision,
            "projection_dim": sizes["embed"],
            **({} if is_resnet else {"patch_size": patch}),
            "image_size": resolve_image_size(
                sizes["vision.positions"] - 1, patch, options.get("image_size"), rounded_up=is_resnet
            ),
        },
        text_config={
            **text,
            "projection_dim": sizes["embed"],
            "vocab_size": vocabulary,
            "max_position_embeddings": sizes["text.positions"],
            "pad_token_id": 0,
            "eos_token_id": end,
        },
    )


def siglip_vision_config(
    sizes: Mapping[str, int], vision: Mapping[str, Any], image_size: int | None
) -> SiglipVisionConfig:
    """Return the image tower's configuration from the fields that every tower has."""
    image_size = resolve_image_size(sizes["vision.positions"], sizes["vision.patch"], image_size)
    return SiglipVisionConfig(**vision, patch_size=sizes["vision.patch"], image_size=image_size)


def siglip2_vision_config(
    sizes: Mapping[str, int], vision: Mapping[str, Any], image_size: int | None
) -> Siglip2VisionConfig:
    """Return the image tower's configuration of a NaFlex model from the fields that every tower has."""
    values = sizes["vision.patch_values"]
    patch = math.isqrt(values // 3)
    if 3 * patch**2 != values:
        raise FormatError(
            f"img/embedding/kernel takes patches of {values} values, expected 3 * patch_size**2, such as 768 for "
            "patches of 16x16 pixels."
        )
    if image_size is not None:
        raise FormatError(f"--image-size {image_size} was given, but a NaFlex model takes images of any size.")
    return Siglip2VisionConfig(**vision, patch_size=patch, num_patches=sizes["vision.grid"] ** 2)


def siglip_config(
    sizes: Mapping[str, int], vision: SiglipViTConfig, text: Mapping[str, Any], *, scanned: bool = False
) -> SiglipConfig:
    """Return SigLIP's configuration from its image tower and the fields of its text tower; special ids are official."""
    text_width, vision_width = sizes.get("embed", sizes["text.width"]), sizes["vision.width"]
    if text_width != vision_width:
        raise FormatError(f"text embeddings have {text_width} values, but image embeddings {vision_width}.")
    vocabulary = sizes["text.vocabulary"]
    naflex = vision.flexible_size
    return (Siglip2Config if naflex else SiglipConfig)(
        vision_config=vision,
        text_config={
            **text,
            "projection_size": text_width,
            "vocab_size": vocabulary,
            "max_position_embeddings": sizes["text.positions"],
            # SigLIP 2 (NaFlex, or scanned, or 256000 pieces of Gemma) pads with 0; SigLIP, its multilingual model
            # included, with 1.
            "pad_token_id": 0 if naflex or scanned or has_gemma_pieces(vocabulary) else 1,
            "bos_token_id": None,
            "eos_token_id": 1,
        },
    )


def has_gemma_pieces(vocabulary: int) -> bool:
    """Return whether a SigLIP with so many token embeddings has SigLIP 2's vocabulary, perhaps with added tokens."""
    return vocabulary >= 256_000  # the next smaller is mT5's with 250,000


def sizes_of(config: DualEncoderConfig) -> dict[str, int]:
    """Return a configuration's sizes under the names that the rules have for them: the reverse of reading a file."""
    vision, text = config.vision_config, config.text_config
    sizes = {"embed": config.projection_dim if config.text_projection else text.projection_size}
    for name, tower in (("vision", vision), ("text", text)):
        sizes |= {f"{name}.{size}": getattr(tower, field) for size, field in _SIZES if hasattr(tower, field)}
        sizes[f"{name}.head_dim"] = tower.hidden_size // tower.num_attention_heads
    if vision.flexible_size:
        sizes |= {
            "vision.grid": vision.grid_size,
            "vision.patch_values": vision.num_channels * vision.patch_size**2,
        }
    return sizes


def differences(expected: DualEncoderConfig, actual: DualEncoderConfig | TowerConfig) -> list[str]:
    """Return every field by which `actual` computes another forward pass than `expected`."""
    if is_single_tower(actual) or expected.model_type != actual.model_type:
        return [f"model_type would be {actual.model_type}, this model's is {expected.model_type}"]
    faults = []
    for part, names in FORWARD_FIELDS.items():
        for name in names:
            value, other = (getattr(getattr(config, part), name, None) for config in (expected, actual))
            if value != other:
                faults.append(f"{part}.{name} would be {other}, this model's is {value}")
    ends = [_end_of_text(config.text_config) for config in (expected, actual)]
    if expected.text_config.pooling == "first_eos" and ends[0] != ends[1]:
        faults.append(f"a text would end at {ends[1]}, this model's at {ends[0]} (text_config.eos_token_id)")
    return faults


def _end_of_text(text: TextConfig) -> str:
    return "its highest id" if text.eos_token_id in (HIGHEST_ID, text.vocab_size - 1) else f"id {text.eos_token_id}"


def resolve_image_size(patches: int, patch: int, image_size: int | None, *, rounded_up: bool = False) -> int:
    """Return the pixels per side. A file only shows whole patches; `image_size` may have more (384 = 27 * 14 + 6).

    `rounded_up`: one missing pixel makes no difference, as to a ResNet, whose first convolution rounds up.
    """
    grid = math.isqrt(patches)
    if grid < 1 or grid * grid != patches:
        raise FormatError(f"expected image positions on a square grid, got {patches} of them.")
    if image_size is None:
        return grid * patch
    given = (image_size + rounded_up) // patch
    if given != grid:
        raise FormatError(
            f"image_size={image_size} makes {given} patches of {patch} pixels per side, but the file has positions for "
            f"{grid}; pass an image size from {grid * patch - rounded_up} to {(grid + 1) * patch - 1 - rounded_up}."
        )
    return image_size
