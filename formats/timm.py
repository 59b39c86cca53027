"""SigLIP's image tower in timm (huggingface/pytorch-image-models, timm/models/vision_transformer.py)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from ..configuration import SiglipVisionConfig
from ..messages import quoted
from .errors import FormatError
from .geometry import siglip_vision_config, tower_fields
from .layout import Layout, number_of_layers
from .operations import CONCATENATE, SPLIT, SQUEEZE
from .options import Activation, LoadOptions, resolve_option
from .pixels import image_settings
from .small_files import read_json
from .table import Rule, expand, expand_layers, rule

BLOCK = (
    rule("norm1.weight", "layer_norm1.weight", ".width"),
    rule("norm1.bias", "layer_norm1.bias", ".width"),
    rule(
        "attn.qkv.weight",
        "self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight",
        "3*.width .width",
        SPLIT,
    ),
    rule("attn.qkv.bias", "self_attn.q_proj.bias self_attn.k_proj.bias self_attn.v_proj.bias", "3*.width", SPLIT),
    rule("attn.proj.weight", "self_attn.out_proj.weight", ".width .width"),
    rule("attn.proj.bias", "self_attn.out_proj.bias", ".width"),
    rule("norm2.weight", "layer_norm2.weight", ".width"),
    rule("norm2.bias", "layer_norm2.bias", ".width"),
    rule("mlp.fc1.weight", "mlp.fc1.weight", ".mlp .width"),
    rule("mlp.fc1.bias", "mlp.fc1.bias", ".mlp"),
    rule("mlp.fc2.weight", "mlp.fc2.weight", ".width .mlp"),
    rule("mlp.fc2.bias", "mlp.fc2.bias", ".width"),
)
VISION = (
    rule("patch_embed.proj.weight", "embeddings.patch_embedding.weight", ".width 3 .patch .patch"),
    rule("patch_embed.proj.bias", "embeddings.patch_embedding.bias", ".width"),
    rule("pos_embed", "embeddings.position_embedding.weight", "1 .positions .width", SQUEEZE),
    rule("norm.weight", "post_layernorm.weight", ".width"),
    rule("norm.bias", "post_layernorm.bias", ".width"),
    rule("attn_pool.latent", "head.probe", "1 1 .width"),
    rule(
        "attn_pool.q.weight attn_pool.kv.weight",
        "head.attention.in_proj_weight",
        ".width .width | 2*.width .width",
        CONCATENATE,
    ),
    rule("attn_pool.q.bias attn_pool.kv.bias", "head.attention.in_proj_bias", ".width | 2*.width", CONCATENATE),
    rule("attn_pool.proj.weight", "head.attention.out_proj.weight", ".width .width"),
    rule("attn_pool.proj.bias", "head.attention.out_proj.bias", ".width"),
    rule("attn_pool.norm.weight", "head.layernorm.weight", ".width"),
    rule("attn_pool.norm.bias", "head.layernorm.bias", ".width"),
    rule("attn_pool.mlp.fc1.weight", "head.mlp.fc1.weight", ".mlp .width"),
    rule("attn_pool.mlp.fc1.bias", "head.mlp.fc1.bias", ".mlp"),
    rule("attn_pool.mlp.fc2.weight", "head.mlp.fc2.weight", ".width .mlp"),
    rule("attn_pool.mlp.fc2.bias", "head.mlp.fc2.bias", ".width"),
)


# timm's defaults (models/_pretrained.py, PretrainedCfg) of the fields that concern pixels.
_DEFAULT_PIXELS: dict[str, Any] = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
}
_RESIZE_MODES = {"center": "shortest", "squash": "squash", "border": "longest"}  # open_clip's name for timm's crop_mode


class Trunk(NamedTuple):
    """The model that a name of timm stands for."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    patch_size: int
    image_size: int
    hidden_act: Activation


_SIZES = {
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "giantopt": (1536, 40, 16, 6144),
}
# All were trained with tanh; the names that timm gave before it knew compute exact GELU.
_NAMES: dict[Activation, str] = {
    "gelu": "base_16_224 base_16_256 base_16_384 base_16_512 large_16_256 large_16_384 "
    "so400m_14_224 so400m_14_378 so400m_14_384",
    "gelu_pytorch_tanh": "base_32_256 large_16_512 so400m_16_256 so400m_16_384 so400m_16_512 "
    "giantopt_16_256 giantopt_16_384",
}
TRUNKS = {
    f"vit_{size}_patch{patch}_siglip_{pixels}": Trunk(*_SIZES[size], int(patch), int(pixels), activation)
    for activation, names in _NAMES.items()
    for size, patch, pixels in (name.split("_") for name in names.split())
}


def tower_rules(layers: int, source: str, target: str) -> list[Rule]:
    """Return the rules of the tower, whose official names begin with `source`."""
    blocks = expand_layers(BLOCK, "vision", layers, f"{source}blocks.{{n}}.", f"{target}encoder.layers.{{n}}.")
    return [*expand(VISION, "vision", source, target), *blocks]


def tower_config(sizes: Mapping[str, int], layers: int, name: str | None, options: LoadOptions) -> SiglipVisionConfig:
    """Return the geometry from the shapes; heads and activation from timm's `name`, or else from `options`."""
    trunk = TRUNKS.get(name or "")
    model = f"a timm model named {name}" if name else "a timm model without its name"
    activation = resolve_option(
        "vision_activation", options.get("vision_activation"), trunk and trunk.hidden_act, f"the activation of {model}"
    )
    heads = resolve_option(
        "vision_heads",
        options.get("vision_heads"),
        trunk and trunk.num_attention_heads,
        f"the number of heads of {model}",
    )
    fields = tower_fields(sizes, "vision", layers, heads=heads, activation=activation, eps=1e-6)
    return siglip_vision_config(sizes, fields, options.get("image_size") or (trunk and trunk.image_size))


def trunk_name(config: SiglipVisionConfig) -> str:
    """Return timm's name of this image tower. Raises FormatError where it has none."""
    for name, trunk in TRUNKS.items():
        if all(getattr(config, field) == value for field, value in trunk._asdict().items()):
            return name
    geometry = ", ".join(f"{field} {getattr(config, field)}" for field in Trunk._fields)
    raise FormatError(
        f"open_clip knows SigLIP's image towers by timm's names, and none of them has {geometry} "
        "(base, large and so400m at patch 16, 16 and 14 compute exact GELU there, the others tanh)."
    )


@dataclass(frozen=True, kw_only=True)
class TimmLayout(Layout):
    """The image tower alone; the config.json of a timm folder names its architecture."""

    format: ClassVar[str] = "timm"
    containers: ClassVar[tuple[str, ...]] = ("safetensors", "torch")

    @classmethod
    def detect(cls, container: str, prefix: str, tensors: Mapping[str, Tensor], folder: Path) -> "TimmLayout | None":
        if "attn_pool.latent" not in tensors:
            return None
        return cls(
            container=container,
            prefix=prefix,
            image_layers=number_of_layers(tensors, r"blocks\.(\d+)\."),
            text_layers=0,
            sidecar_json=read_json(folder / "config.json", {}),
        )

    def own_rules(self) -> list[Rule]:
        return tower_rules(self.image_layers, "", "")

    def config(self, options: LoadOptions) -> SiglipVisionConfig:
        return tower_config(self.sizes, self.image_layers, self.sidecar_json.get("architecture"), options)

    def image_settings(self, image_size: int, published: Mapping[str, Any]) -> dict[str, Any]:
        """Return mean, deviation, filter and crop as stated, with timm's defaults for what the JSON leaves open."""
        cfg = self.sidecar_json.get("pretrained_cfg", self.sidecar_json) or {}  # old files have it at the top
        if not (stated := {name: value for name, value in cfg.items() if value and name in _DEFAULT_PIXELS}):
            return {}
        stated = _DEFAULT_PIXELS | stated
        crop_pct, crop_mode = stated.pop("crop_pct"), stated.pop("crop_mode")
        if not isinstance(crop_pct, float | int) or not 0 < crop_pct <= 1 or crop_mode not in _RESIZE_MODES:
            raise FormatError(
                "the source states pixels that this version cannot make: pretrained_cfg.crop_pct is "
                f"{quoted(crop_pct)} and crop_mode {quoted(crop_mode)}, expected a fraction, and "
                f"{' or '.join(map(repr, _RESIZE_MODES))}."
            )
        stated |= {"resize_mode": _RESIZE_MODES[crop_mode], "size": (cfg.get("input_size") or ())[1:]}
        if crop_mode == "border":
            stated["fill_color"] = [round(255 * value) for value in stated["mean"]]
        resized_size = math.floor(image_size / crop_pct)
        settings = image_settings(stated, "pretrained_cfg", image_size=image_size, resized_size=resized_size)
        return settings | {"rgb_first": True}  # as timm's readers of images do (data/dataset.py, `input_img_mode`)
