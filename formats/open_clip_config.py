"""`model_cfg` of open_clip_config.json: what it states about a model, its checks against the weights, its writing."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..configuration import DualEncoderConfig, ResNetConfig
from ..configuration.base import TextConfig, TowerConfig
from ..configuration.clip import HIGHEST_ID
from ..messages import quoted
from . import timm
from .options import Activation

CONFIG_FILE = "open_clip_config.json"

# open_clip's defaults (model.py, CLIPVisionCfg and CLIPTextCfg) of the fields that are read here.
_VISION_DEFAULTS = {
    "layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16, "image_size": 224,
}  # fmt: skip
_TEXT_DEFAULTS = {
    "layers": 12, "width": 512, "heads": 8, "mlp_ratio": 4.0, "context_length": 77, "vocab_size": 49408,
}  # fmt: skip
# Fields without a default above that are read here too, or that concern training, initialisation and tokens alone.
IGNORED_FIELDS = {
    "act_kwargs", "norm_kwargs", "timm_model_name", "timm_model_pretrained", "timm_proj_bias", "timm_drop",
    "timm_drop_path", "patch_dropout", "output_tokens", "hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode",
    "pad_id", "eos_id", "quick_gelu",
}  # fmt: skip
# The values that make an open_clip model a CLIP or a SigLIP, each with open_clip's default for a missing field.
_CLIP_REQUIREMENTS: dict[str, dict[str, tuple[Any, Any]]] = {
    "vision_cfg": {"pool_type": ("tok", "tok"), "pos_embed_type": ("learnable", "learnable")},
    "text_cfg": {"pool_type": ("argmax", "argmax"), "proj_type": ("linear", "linear")},
}
_SIGLIP_REQUIREMENTS: dict[str, dict[str, tuple[Any, Any]]] = {
    "vision_cfg": {"timm_pool": ("map", "avg"), "timm_proj": ("none", "linear")},
    "text_cfg": {"pool_type": ("last", "argmax"), "no_causal_mask": (True, False)},
}
_TANH = {"approximate": "tanh"}
_SUPPORTED_ACT_KWARGS: tuple[Any, ...] = (None, {}, {"approximate": "none"}, _TANH)
_TOKENIZERS = {  # by the size of the vocabulary; without a name open_clip would take CLIP's
    32_000: "timm/ViT-B-16-SigLIP",
    250_000: "timm/ViT-B-16-SigLIP-i18n-256",
    256_000: "timm/ViT-B-16-SigLIP2",
}


@dataclass(frozen=True)
class StatedTower:
    """`vision_cfg` or `text_cfg`, with open_clip's defaults for the fields that are missing."""

    section: str
    fields: Mapping[str, Any]
    defaults: Mapping[str, Any]
    quick_gelu: bool

    def __getitem__(self, name: str) -> Any:
        return self.fields[name] if name in self.fields else self.defaults[name]

    @property
    def activation(self) -> Activation:
        if self.quick_gelu:
            return "quick_gelu"
        return "gelu_pytorch_tanh" if self.fields.get("act_kwargs") == _TANH else "gelu"

    @property
    def layer_norm_eps(self) -> float:
        return (self.fields.get("norm_kwargs") or {}).get("eps", 1e-5)

    @property
    def end_of_text(self) -> int | None:
        """The id at which the texts of a CLIP end; None where it is their highest, as open_clip's default is."""
        return self.fields.get("eos_id", 2) if self.fields.get("pool_type") == "eos" else None

    @property
    def mlp_size(self) -> int:
        return int(self["width"] * self["mlp_ratio"])  # rounded down, as in open_clip

    def unsupported(self, requirements: Mapping[str, tuple[Any, Any]]) -> Iterator[str]:
        """Yield every field that makes a model which the configurations of this package cannot describe."""
        for name, (required, default) in requirements.items():
            if (stated := self.fields.get(name, default)) != required:
                yield f"{self.section}.{name} is {quoted(stated)}, expected {required!r}"
        for name in sorted(self.fields.keys() - self.defaults.keys() - requirements.keys() - IGNORED_FIELDS):
            if self.fields[name] not in (None, False):
                yield f"{self.section}.{name} is {quoted(self.fields[name])}, which this version does not compute"
        act_kwargs = self.fields.get("act_kwargs")
        if act_kwargs not in _SUPPORTED_ACT_KWARGS or (act_kwargs and self.quick_gelu):
            yield f"{self.section}.act_kwargs is {quoted(act_kwargs)}, which this version does not compute"


@dataclass(frozen=True)
class StatedModel:
    """All of `model_cfg` that is read here."""

    embed_dim: Any
    vision: StatedTower
    text: StatedTower

    @classmethod
    def from_json(cls, model_cfg: Mapping[str, Any]) -> "StatedModel":
        """Fill in open_clip's defaults."""
        quick_gelu = bool(model_cfg.get("quick_gelu"))
        return cls(
            model_cfg.get("embed_dim"),
            StatedTower("vision_cfg", dict(model_cfg["vision_cfg"]), _VISION_DEFAULTS, quick_gelu),
            StatedTower("text_cfg", dict(model_cfg["text_cfg"]), _TEXT_DEFAULTS, quick_gelu),
        )

    @property
    def image_size(self) -> int:
        """Pixels per side; of two different sides the longer one, which the grid of the weights then contradicts."""
        size = self.vision["image_size"]
        return max(size) if isinstance(size, list) else size

    def unsupported_fields(self, *, trunk: bool, text_head: bool) -> Iterator[str]:
        """Yield what the JSON asks for that is no CLIP or, with a timm `trunk`, no SigLIP."""
        requirements = _SIGLIP_REQUIREMENTS if trunk else _CLIP_REQUIREMENTS
        yield from self.vision.unsupported(requirements["vision_cfg"])
        text_requirements = dict(requirements["text_cfg"])
        if trunk:
            projection = "linear" if text_head else "none"
            text_requirements |= {"proj_bias": (text_head, False), "proj_type": (projection, "linear")}
        elif self.text.end_of_text == HIGHEST_ID:
            yield "text_cfg.eos_id is 2, which in a configuration of transformers stands for the highest id"
        elif self.text.end_of_text is not None:
            text_requirements |= {"pool_type": ("eos", "argmax")}
        yield from self.text.unsupported(text_requirements)

    def contradictions(
        self, sizes: Mapping[str, int], *, image_layers: int | list[int], text_layers: int, trunk: bool
    ) -> Iterator[str]:
        """Yield where the JSON states another geometry than the weights have.

        `image_layers` are those of a ViT, or the blocks in each stage of a ResNet.
        """
        vision, text = self.vision, self.text
        compared: dict[str, tuple[Any, Any]] = {
            "embed_dim": (self.embed_dim, sizes.get("embed", sizes["text.width"])),
            "text_cfg.layers": (text["layers"], text_layers),
            "text_cfg.width": (text["width"], sizes["text.width"]),
            "text_cfg.context_length": (text["context_length"], sizes["text.positions"]),
            "text_cfg.vocab_size": (text["vocab_size"], sizes["text.vocabulary"]),
            "text_cfg.mlp_ratio times width": (text.mlp_size, sizes["text.mlp"]),
        }
        if not trunk:
            compared["vision_cfg.layers"] = (vision["layers"], image_layers)
        if isinstance(image_layers, list):
            compared["vision_cfg.width"] = (vision["width"], 2 * sizes["vision.stem"])
        elif not trunk:
            compared |= {
                "vision_cfg.width": (vision["width"], sizes["vision.width"]),
                "vision_cfg.patch_size": (vision["patch_size"], sizes["vision.patch"]),
                "vision_cfg.mlp_ratio times width": (vision.mlp_size, sizes["vision.mlp"]),
            }
        for name, (stated, actual) in compared.items():
            if stated != actual:
                yield f"{name} is {quoted(stated)}, but the weights have {actual}"


def clip_model_cfg(config: DualEncoderConfig) -> dict[str, Any]:
    """Return the `model_cfg` from which open_clip builds this CLIP."""
    vision = config.vision_config
    if isinstance(vision, ResNetConfig):
        tower = {"layers": vision.depths, "width": 2 * vision.stem_size, "patch_size": None}
    else:
        tower = {**_tower_cfg(vision), "patch_size": vision.patch_size}
    head_width = vision.hidden_size // vision.num_attention_heads
    return {
        "embed_dim": config.projection_dim,
        "quick_gelu": getattr(vision, "hidden_act", config.text_config.hidden_act) == "quick_gelu",
        "vision_cfg": {**tower, "image_size": vision.image_size, "head_width": head_width},
        "text_cfg": {**_text_cfg(config.text_config), **end_of_text_cfg(config.text_config)},
    }


def end_of_text_cfg(text: TextConfig) -> dict[str, Any]:
    """Return the fields of `text_cfg` that say where the texts of a CLIP end, none for their highest id."""
    if text.eos_token_id in (HIGHEST_ID, text.vocab_size - 1):
        return {}
    return {"pool_type": "eos", "eos_id": text.eos_token_id}


def siglip_model_cfg(config: DualEncoderConfig, text_head: bool) -> dict[str, Any]:
    """Return the `model_cfg` from which open_clip builds this SigLIP.

    Raises FormatError where timm has no such trunk.
    """
    text = config.text_config
    tokenizer = _TOKENIZERS.get(text.vocab_size)
    return {
        "embed_dim": text.projection_size,
        "vision_cfg": {
            "image_size": config.vision_config.image_size,
            "timm_model_name": timm.trunk_name(config.vision_config),
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            **_text_cfg(text),
            **({"hf_tokenizer_name": tokenizer, "tokenizer_kwargs": {"clean": "canonicalize"}} if tokenizer else {}),
            "no_causal_mask": True,
            "pool_type": "last",
            **({"proj_bias": True} if text_head else {"proj_type": "none"}),
        },
    }


def _text_cfg(text: TextConfig) -> dict[str, Any]:
    return {
        **_tower_cfg(text),
        "heads": text.num_attention_heads,
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
    }


def _tower_cfg(tower: TowerConfig) -> dict[str, Any]:
    """Return the fields that both towers have."""
    fields: dict[str, Any] = {"layers": tower.num_hidden_layers, "width": tower.hidden_size}
    if tower.intermediate_size != 4 * tower.hidden_size:
        # Rounded up, because open_clip rounds `width * mlp_ratio` down.
        fields["mlp_ratio"] = math.ceil(tower.intermediate_size / tower.hidden_size * 10**6) / 10**6
    if tower.layer_norm_eps != 1e-5:
        fields["norm_kwargs"] = {"eps": tower.layer_norm_eps}
    if tower.hidden_act == "gelu_pytorch_tanh":
        fields["act_kwargs"] = _TANH
    return fields
