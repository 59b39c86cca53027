"""open_clip (mlfoundations/open_clip): CLIP under OpenAI's names, SigLIP around a timm trunk, and the JSON beside."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from ..configuration import CLIPConfig, DualEncoderConfig, SiglipConfig
from . import openai, timm
from .families import clip_config, siglip_config, sizes_of, tower
from .layout import Activation, Choices, Layout, decide, number_of_layers, read_json
from .table import DROP_ZERO, FLATTEN, IDENTITY_HEAD, FormatError, Row, expand, row

CONFIG = "open_clip_config.json"
TEXT_HEAD = (
    *openai.TEXT_NORM,
    row("text_projection.weight", "text_model.head.weight", "embed .width"),
    row("text_projection.bias", "text_model.head.bias", "embed"),
)
# The multilingual So400m has no projection: its head changes nothing.
NO_TEXT_HEAD = row(
    "ln_final.weight ln_final.bias",
    " ".join(
        f"text_model.{name}"
        for name in ("final_layer_norm.weight", "final_layer_norm.bias", "head.weight", "head.bias")
    ),
    ".width",
    IDENTITY_HEAD,
)
SCALE_AND_ZERO = row("logit_scale logit_bias", "logit_scale", "", DROP_ZERO)
SCALE_AND_BIAS = (row("logit_scale", "logit_scale", "", FLATTEN), row("logit_bias", "logit_bias", "", FLATTEN))

# open_clip's defaults (model.py, CLIPVisionCfg and CLIPTextCfg) of what is read here.
_VISION = {"layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16, "image_size": 224}
_TEXT = {"layers": 12, "width": 512, "heads": 8, "mlp_ratio": 4.0, "context_length": 77, "vocab_size": 49408}
# Read here too, or without effect on the model itself: on training, initialisation and tokens alone.
_HARMLESS = (
    *("act_kwargs", "norm_kwargs", "timm_model_name", "timm_model_pretrained", "timm_proj_bias", "timm_drop"),
    *("timm_drop_path", "patch_dropout", "output_tokens", "hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode"),
    *("pad_id", "eos_id"),
)
# What makes an open_clip model one of ours, and what it is where the JSON does not say.
_CLIP_CHOICES: dict[str, dict[str, tuple[Any, Any]]] = {
    "vision_cfg": {"pool_type": ("tok", "tok"), "pos_embed_type": ("learnable", "learnable")},
    "text_cfg": {"pool_type": ("argmax", "argmax"), "proj_type": ("linear", "linear")},
}
_SIGLIP_CHOICES: dict[str, dict[str, tuple[Any, Any]]] = {
    "vision_cfg": {"timm_pool": ("map", "avg"), "timm_proj": ("none", "linear")},
    "text_cfg": {"pool_type": ("last", "argmax"), "no_causal_mask": (True, False)},
}
_PROJECTION = {True: "linear", False: "none"}  # of texts
_TANH = {"approximate": "tanh"}
_TOKENIZERS = {  # by vocabulary, which open_clip would otherwise take for CLIP's
    32_000: "timm/ViT-B-16-SigLIP",
    250_000: "timm/ViT-B-16-SigLIP-i18n-256",
    256_000: "timm/ViT-B-16-SigLIP2",
}


@dataclass(frozen=True, kw_only=True)
class OpenClipLayout(Layout):
    """A checkpoint of training, or what was published from it."""

    format: ClassVar[str] = "open_clip"
    containers: ClassVar[tuple[str, ...]] = ("safetensors", "torch", "torch/state_dict")

    trunk: bool  # SigLIP: the image tower is timm's
    custom_text: bool  # the text tower is under `text.`
    text_head: bool  # a linear map after the text tower
    logit_bias: bool

    @classmethod
    def of(cls, container: str, tensors: Mapping[str, Tensor], folder: Path) -> "OpenClipLayout | None":
        prefix = "module." if any(name.startswith("module.") for name in tensors) else ""
        inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        trunk = any(name.startswith("visual.trunk.") for name in inside)
        if not trunk and "visual.conv1.weight" not in inside:
            return None
        beside = {} if container == "torchscript" else read_json(folder / CONFIG, {})
        text = "text." if any(name.startswith("text.") for name in inside) else ""
        marked = trunk or text or prefix or container == "torch/state_dict" or "logit_bias" in inside
        if not marked and _is_openai(container, inside, bool(beside)):
            return None
        blocks = r"visual\.trunk\.blocks" if trunk else r"visual\.transformer\.resblocks"
        layout = cls(
            container=container,
            prefix=prefix,
            beside=beside,
            trunk=trunk,
            custom_text=bool(text),
            text_head=any(name.startswith(f"{text}text_projection") for name in inside),
            logit_bias="logit_bias" in inside,
            image_layers=number_of_layers(inside, rf"{blocks}\.(\d+)\."),
            text_layers=number_of_layers(inside, rf"{text}transformer\.resblocks\.(\d+)\."),
        )
        if layout.logit_bias and not trunk and inside["logit_bias"].any():
            raise FormatError(
                f"this CLIP was trained with the sigmoid loss, and transformers' CLIP has no place for its logit_bias "
                f"of {inside['logit_bias'].flatten()[0].item():g}."
            )
        return layout

    @classmethod
    def of_config(cls, config: DualEncoderConfig) -> "OpenClipLayout":
        """The checkpoint of a model with this configuration, and the JSON that `open_clip.create_model` needs."""
        siglip = _has_trunk(config)
        layout = cls(
            container="safetensors",
            trunk=siglip,
            custom_text=siglip,
            text_head=True,
            logit_bias=siglip,
            image_layers=config.vision_config.num_hidden_layers,
            text_layers=config.text_config.num_hidden_layers,
            sizes=sizes_of(config),
        )
        return layout.described(config)

    def described(self, config: DualEncoderConfig) -> "OpenClipLayout":
        """This layout with the JSON from which open_clip builds its model. Raises FormatError where it has none."""
        model = _siglip_json(config, self.text_head) if _has_trunk(config) else _clip_json(config)
        model |= {"custom_text": True} if self.custom_text else {}
        model |= {"init_logit_bias": -10} if self.logit_bias else {}
        return replace(self, beside={"model_cfg": model})

    def table(self) -> list[Row]:
        text = f"{self.prefix}text." if self.custom_text else self.prefix
        text_rows = openai.tower_rows("text", self.text_layers, text)
        if self.trunk:
            return [
                *timm.tower_rows(self.image_layers, f"{self.prefix}visual.trunk.", "vision_model."),
                *text_rows,
                *expand(TEXT_HEAD if self.text_head else [NO_TEXT_HEAD], "text", text),
                *expand(SCALE_AND_BIAS, "", self.prefix),
            ]
        return [
            *openai.tower_rows("vision", self.image_layers, f"{self.prefix}visual."),
            *expand([openai.VISION_PROJECTION], "vision", f"{self.prefix}visual."),
            *text_rows,
            *expand([*openai.TEXT_NORM, openai.TEXT_PROJECTION], "text", text),
            *expand([SCALE_AND_ZERO if self.logit_bias else openai.LOGIT_SCALE], "", self.prefix),
        ]

    def config(self, choices: Choices) -> DualEncoderConfig:
        """Geometry from the shapes; heads, activations and the resolution from the JSON, or else from the caller."""
        vision = text = None
        if (model := self.beside.get("model_cfg")) is not None:
            shared = {"quick_gelu": bool(model.get("quick_gelu"))}
            vision = {**_VISION, **model["vision_cfg"], **shared}
            text = {**_TEXT, **model["text_cfg"], **shared}
            if faults := [*self._refusals(vision, text), *self._contradictions(model, vision, text)]:
                raise FormatError(f"{CONFIG} describes another model: {'; '.join(faults)}.")
            size = vision["image_size"]
            size = max(size) if isinstance(size, list) else size
            size = decide("image-size", choices.image_size, size, "the resolution")
            choices = replace(choices, image_size=size)
        return (self._siglip if self.trunk else self._clip)(choices, vision, text)

    def image_settings(self) -> dict[str, Any]:
        said = self.beside.get("preprocess_cfg") or {}
        settings: dict[str, Any] = {f"image_{name}": list(said[name]) for name in ("mean", "std") if name in said}
        if said.get("interpolation") in ("bicubic", "bilinear"):
            settings["resample"] = Image.Resampling[said["interpolation"].upper()]
        return settings

    def _clip(self, choices: Choices, vision: dict[str, Any] | None, text: dict[str, Any] | None) -> CLIPConfig:
        width = self.sizes["vision.width"]
        # Every published width up to 1024 has heads of 64; beyond, they are of 80, 88, 104 or 112.
        usual = width // 64 if width <= 1024 else None
        activation = decide(
            "vision-activation",
            choices.vision_activation,
            _activation(vision) if vision else None,
            "whether its GELU is quick_gelu (OpenAI's) or gelu (open_clip's own)",
        )
        heads = decide(
            "vision-heads",
            choices.vision_heads,
            width // vision["head_width"] if vision else usual,
            "the number of heads of its image tower",
        )
        return clip_config(
            self.sizes,
            tower(self.sizes, "vision", self.image_layers, heads=heads, activation=activation, eps=_eps(vision)),
            tower(
                self.sizes,
                "text",
                self.text_layers,
                heads=text["heads"] if text else self.sizes["text.width"] // 64,
                activation=_activation(text) if text else activation,
                eps=_eps(text),
            ),
            choices.image_size,
        )

    def _siglip(self, choices: Choices, vision: dict[str, Any] | None, text: dict[str, Any] | None) -> SiglipConfig:
        width, new = self.sizes["text.width"], self.sizes["text.vocabulary"] == 256_000
        name = vision.get("timm_model_name") if vision else None
        image = timm.tower_config(self.sizes, self.image_layers, name, choices)
        # Without the JSON: as in all published ones. The text tower of SigLIP computes exact GELU, that of SigLIP 2
        # tanh; So400m (1152 wide) has heads of 72.
        usual: Activation = "gelu_pytorch_tanh" if new else "gelu"
        fields = tower(
            self.sizes,
            "text",
            self.text_layers,
            heads=text["heads"] if text else 16 if width == 1152 else width // 64,
            activation=_activation(text) if text else usual,
            eps=_eps(text) if text else 1e-6,
        )
        return siglip_config(self.sizes, image, fields)

    def _refusals(self, vision: dict[str, Any], text: dict[str, Any]) -> Iterator[str]:
        """What the model of the JSON has or lacks that ours do not."""
        for part, values, known in (("vision_cfg", vision, _VISION), ("text_cfg", text, _TEXT)):
            needed = dict((_SIGLIP_CHOICES if self.trunk else _CLIP_CHOICES)[part])
            if self.trunk and part == "text_cfg":
                needed |= {"proj_bias": (self.text_head, False), "proj_type": (_PROJECTION[self.text_head], "linear")}
            for name, (value, default) in needed.items():
                if values.get(name, default) != value:
                    yield f"{part}.{name} is {values.get(name, default)!r}, expected {value!r}"
            for name in sorted(values.keys() - known.keys() - needed.keys() - {*_HARMLESS, "quick_gelu"}):
                if values[name] not in (None, False):
                    yield f"{part}.{name} is {values[name]!r}, which this version does not compute"
            if values.get("act_kwargs") not in (None, {}, {"approximate": "none"}, _TANH) or (
                values.get("act_kwargs") and values["quick_gelu"]
            ):
                yield f"{part}.act_kwargs is {values['act_kwargs']!r}, which this version does not compute"

    def _contradictions(
        self, model: Mapping[str, Any], vision: Mapping[str, Any], text: Mapping[str, Any]
    ) -> Iterator[str]:
        """Where the JSON says another geometry than the shapes."""
        sizes = self.sizes
        said: dict[str, tuple[Any, Any]] = {
            "embed_dim": (model.get("embed_dim"), sizes.get("embed", sizes["text.width"])),
            "text_cfg.layers": (text["layers"], self.text_layers),
            "text_cfg.width": (text["width"], sizes["text.width"]),
            "text_cfg.context_length": (text["context_length"], sizes["text.positions"]),
            "text_cfg.vocab_size": (text["vocab_size"], sizes["text.vocabulary"]),
            "text_cfg.mlp_ratio times width": (int(text["width"] * text["mlp_ratio"]), sizes["text.mlp"]),
        }
        if not self.trunk:
            said |= {
                "vision_cfg.layers": (vision["layers"], self.image_layers),
                "vision_cfg.width": (vision["width"], sizes["vision.width"]),
                "vision_cfg.patch_size": (vision["patch_size"], sizes["vision.patch"]),
                "vision_cfg.mlp_ratio times width": (int(vision["width"] * vision["mlp_ratio"]), sizes["vision.mlp"]),
            }
        for name, (value, found) in said.items():
            if value != found:
                yield f"{name} is {value!r}, but the weights have {found}"


def _has_trunk(config: DualEncoderConfig) -> bool:
    """Whether open_clip takes the image tower from timm, as it does for all that pool by attention."""
    return bool(config.vision_config.pooling == "attention")


def _is_openai(container: str, tensors: Mapping[str, Tensor], described: bool) -> bool:
    """Whether a state dict under OpenAI's names is OpenAI's, which computes quick GELU.

    Archives and files with OpenAI's integers are. Unless open_clip's JSON lies beside it, so is one in the mixture of
    dtypes, or in the order, of OpenAI's own modules: their blocks begin with the attention, open_clip's with a norm. A
    safetensors file has no order; of a single dtype it may be either's, and the caller has to say.
    """
    if container == "torchscript" or any(name in tensors for name in openai.INTEGERS):
        return True
    mixture = [getattr(tensors.get(name), "dtype", None) for name in ("visual.conv1.weight", "ln_final.weight")]
    block = [name.rpartition("resblocks.0.")[2] for name in tensors if "resblocks.0." in name]
    attention_first = container != "safetensors" and bool(block) and block[0].startswith("attn.")
    return not described and (mixture == [torch.float16, torch.float32] or attention_first)


def _activation(part: Mapping[str, Any]) -> Activation:
    if part["quick_gelu"]:
        return "quick_gelu"
    return "gelu_pytorch_tanh" if part.get("act_kwargs") == _TANH else "gelu"


def _eps(part: Mapping[str, Any] | None) -> float:
    return ((part or {}).get("norm_kwargs") or {}).get("eps", 1e-5)


def _clip_json(config: CLIPConfig) -> dict[str, Any]:
    vision, text = config.vision_config, config.text_config
    return {
        "embed_dim": config.projection_dim,
        "quick_gelu": vision.hidden_act == "quick_gelu",
        "vision_cfg": {
            **_tower_json(vision),
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
        },
        "text_cfg": _text_json(text),
    }


def _siglip_json(config: SiglipConfig, text_head: bool) -> dict[str, Any]:
    vision, text = config.vision_config, config.text_config
    name = next(
        (
            name
            for name, trunk in timm.TRUNKS.items()
            if all(getattr(vision, field) == value for field, value in trunk._asdict().items())
        ),
        None,
    )
    if name is None:
        wanted = ", ".join(f"{field} {getattr(vision, field)}" for field in timm.Trunk._fields)
        raise FormatError(
            f"open_clip knows SigLIP's image towers by timm's names, and none of them has {wanted} "
            "(base, large and so400m at patch 16, 16 and 14 compute exact GELU there, the others tanh)."
        )
    tokenizer = _TOKENIZERS.get(text.vocab_size)
    return {
        "embed_dim": text.projection_size,
        "vision_cfg": {
            "image_size": vision.image_size,
            "timm_model_name": name,
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            **_text_json(text),
            **({"hf_tokenizer_name": tokenizer, "tokenizer_kwargs": {"clean": "canonicalize"}} if tokenizer else {}),
            "no_causal_mask": True,
            "pool_type": "last",
            **({"proj_bias": True} if text_head else {"proj_type": "none"}),
        },
    }


def _text_json(text: Any) -> dict[str, Any]:
    return {
        **_tower_json(text),
        "heads": text.num_attention_heads,
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
    }


def _tower_json(tower: Any) -> dict[str, Any]:
    """The fields of both towers; open_clip rounds `width * mlp_ratio` down."""
    values: dict[str, Any] = {"layers": tower.num_hidden_layers, "width": tower.hidden_size}
    if tower.intermediate_size != 4 * tower.hidden_size:
        values["mlp_ratio"] = math.ceil(tower.intermediate_size / tower.hidden_size * 10**6) / 10**6
    if tower.layer_norm_eps != 1e-5:
        values["norm_kwargs"] = {"eps": tower.layer_norm_eps}
    if tower.hidden_act == "gelu_pytorch_tanh":
        values["act_kwargs"] = _TANH
    return values
