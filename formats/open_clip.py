"""open_clip (mlfoundations/open_clip): rules for CLIP under OpenAI's names and for SigLIP around a timm trunk."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..configuration import CLIPConfig, DualEncoderConfig, SiglipConfig
from ..messages import quoted, shown
from . import openai, timm
from .errors import FormatError
from .geometry import clip_config, has_gemma_pieces, siglip_config, sizes_of, tower_fields
from .layout import Layout, number_of_layers
from .open_clip_config import CONFIG_FILE, StatedModel, clip_model_cfg, end_of_text_cfg, siglip_model_cfg
from .openai_resnet import counts_batches, resnet_fields, stages_of
from .operations import DROP_ZERO, FLATTEN, IDENTITY_HEAD
from .options import Activation, LoadOptions, resolve_option
from .pixels import READ_FIELDS, image_settings, stated_fields
from .small_files import read_json
from .table import Rule, expand, rule
from .texts import text_settings

TEXT_HEAD = (
    *openai.TEXT_NORM,
    rule("text_projection.weight", "text_model.head.weight", "embed .width"),
    rule("text_projection.bias", "text_model.head.bias", "embed"),
)
# The multilingual So400m has no projection: in transformers its head is the identity.
NO_TEXT_HEAD = rule(
    "ln_final.weight ln_final.bias",
    " ".join(
        f"text_model.{name}"
        for name in ("final_layer_norm.weight", "final_layer_norm.bias", "head.weight", "head.bias")
    ),
    ".width",
    IDENTITY_HEAD,
)
# A CLIP with a logit_bias, which is zero: see `operations.DROP_ZERO`.
SCALE_AND_ZERO = rule("logit_scale logit_bias", "logit_scale", "", DROP_ZERO)
SCALE_AND_BIAS = (rule("logit_scale", "logit_scale", "", FLATTEN), rule("logit_bias", "logit_bias", "", FLATTEN))


@dataclass(frozen=True, kw_only=True)
class OpenClipLayout(Layout):
    """A checkpoint of open_clip's training, or the weights that were published from it."""

    format: ClassVar[str] = "open_clip"
    containers: ClassVar[tuple[str, ...]] = ("safetensors", "torch")

    trunk: bool  # the image tower is timm's, as SigLIP's is
    custom_text: bool  # the text tower is under `text.`
    text_head: bool  # a linear map after the text tower
    logit_bias: bool
    two_tables: bool = False  # of text positions, as in Long-CLIP
    stages: list[int] = field(default_factory=list)  # the blocks in each stage of a ResNet; none for a ViT
    batch_counts: bool = False  # of a ResNet's batch norms

    @classmethod
    def detect(
        cls, container: str, prefix: str, tensors: Mapping[str, Tensor], folder: Path
    ) -> "OpenClipLayout | None":
        if "visual.conv1.weight" not in tensors and not _any_below("visual.trunk.", tensors):
            return None
        sidecar_json = {} if container == "torchscript" else read_json(folder / CONFIG_FILE, {})
        layout = cls._from_names(container, prefix, tensors, sidecar_json)
        of_its_training = (container, prefix) == ("torch/state_dict", "module.")
        written_by_open_clip = layout.trunk or layout.custom_text or layout.logit_bias or of_its_training
        in_training = bool(prefix) or container.startswith("torch/")
        if not written_by_open_clip and _is_openai(container, tensors, bool(sidecar_json), in_training):
            return None
        if layout.logit_bias and not layout.trunk and tensors["logit_bias"].any():
            raise FormatError(
                f"this CLIP was trained with the sigmoid loss, and transformers' CLIP has no place for its logit_bias "
                f"of {tensors['logit_bias'].flatten()[0].item():g}."
            )
        return layout

    @classmethod
    def _from_names(
        cls, container: str, prefix: str, weights: Mapping[str, Tensor], sidecar_json: Mapping[str, Any]
    ) -> "OpenClipLayout":
        """Return the layout that follows from the names of the weights."""
        trunk, custom_text = _any_below("visual.trunk.", weights), _any_below("text.", weights)
        text = "text." if custom_text else ""
        blocks = r"visual\.trunk\.blocks" if trunk else r"visual\.transformer\.resblocks"
        stages = stages_of(weights)
        return cls(
            container=container,
            prefix=prefix,
            sidecar_json=sidecar_json,
            trunk=trunk,
            custom_text=custom_text,
            text_head=_any_below(f"{text}text_projection", weights),
            logit_bias="logit_bias" in weights,
            two_tables=f"{text}{openai.STRETCHED_POSITIONS}" in weights,
            stages=stages,
            batch_counts=counts_batches(weights),
            image_layers=len(stages) or number_of_layers(weights, rf"{blocks}\.(\d+)\."),
            text_layers=number_of_layers(weights, rf"{text}transformer\.resblocks\.(\d+)\."),
        )

    @classmethod
    def from_config(cls, config: DualEncoderConfig) -> "OpenClipLayout":
        """Return the layout of a model with this configuration, with the JSON that `open_clip.create_model` needs."""
        trunk = _has_trunk(config)
        layout = cls(
            container="safetensors",
            trunk=trunk,
            custom_text=trunk,
            text_head=True,
            logit_bias=trunk,
            stages=getattr(config.vision_config, "depths", []),
            batch_counts=not trunk,
            image_layers=config.vision_config.num_hidden_layers,
            text_layers=config.text_config.num_hidden_layers,
            sizes=sizes_of(config),
        )
        return layout.with_model_cfg(config)

    def with_model_cfg(self, config: DualEncoderConfig) -> "OpenClipLayout":
        """Return this layout with the JSON from which open_clip builds its model.

        Raises FormatError where open_clip cannot build it.
        """
        model_cfg = siglip_model_cfg(config, self.text_head) if _has_trunk(config) else clip_model_cfg(config)
        model_cfg |= {"custom_text": True} if self.custom_text else {}
        model_cfg |= {"init_logit_bias": -10} if self.logit_bias else {}
        return replace(self, sidecar_json={"model_cfg": model_cfg})

    def with_end_of_text(self, config: DualEncoderConfig) -> "OpenClipLayout":
        """Return this layout with a JSON that states the end of this model's texts, where it states another."""
        model_cfg = self.sidecar_json.get("model_cfg")
        if model_cfg is None or self.trunk:
            return self
        fields = end_of_text_cfg(config.text_config)
        if StatedModel.from_json(model_cfg).text.end_of_text == fields.get("eos_id"):
            return self
        text_cfg = {**model_cfg["text_cfg"], "pool_type": "argmax", **fields}
        return replace(self, sidecar_json={**self.sidecar_json, "model_cfg": {**model_cfg, "text_cfg": text_cfg}})

    def own_rules(self) -> list[Rule]:
        text = "text." if self.custom_text else ""
        text_rules = openai.tower_rules("text", self.text_layers, text, two_tables=self.two_tables)
        if self.trunk:
            return [
                *timm.tower_rules(self.image_layers, "visual.trunk.", "vision_model."),
                *text_rules,
                *expand(TEXT_HEAD if self.text_head else [NO_TEXT_HEAD], "text", text),
                *SCALE_AND_BIAS,
            ]
        return [
            *openai.vision_rules(self.image_layers, self.stages, self.batch_counts),
            *text_rules,
            *expand([*openai.TEXT_NORM, openai.TEXT_PROJECTION], "text", text),
            SCALE_AND_ZERO if self.logit_bias else openai.LOGIT_SCALE,
        ]

    def config(self, options: LoadOptions) -> DualEncoderConfig:
        """Return the configuration: geometry from the shapes; heads, activations, image size from JSON or `options`."""
        stated = self._stated_model()
        if stated is not None:
            size = resolve_option("image_size", options.get("image_size"), stated.image_size, "the resolution")
            options = {**options, "image_size": size}
            if (end := stated.text.end_of_text) is not None:
                options["eos_token_id"] = resolve_option(
                    "eos_token_id", options.get("eos_token_id"), end, "the end of a text"
                )
        return self._siglip_config(options, stated) if self.trunk else self._clip_config(options, stated)

    def image_settings(self, image_size: int, published: Mapping[str, Any]) -> dict[str, Any]:
        stated = {**published, **stated_fields(self.preprocess_cfg)}
        return image_settings(stated, "preprocess_cfg", image_size=image_size)

    def text_settings(self) -> dict[str, Any]:
        return text_settings(self.text_cfg, is_clip=not self.trunk)

    @property
    def names_tokenizer(self) -> str | None:
        return self.text_cfg.get("hf_tokenizer_name") or None

    def notes(self) -> tuple[str, ...]:
        if not (unread := sorted(self.preprocess_cfg.keys() - {*READ_FIELDS})):
            return ()
        return (
            f"{CONFIG_FILE} states preprocess_cfg.{', '.join(map(shown, unread))}, which open_clip does not read, nor "
            "twinlens.",
        )

    @property
    def text_cfg(self) -> Mapping[str, Any]:
        """The statements of the JSON about the text tower and its tokenizer, empty without them."""
        return (self.sidecar_json.get("model_cfg") or {}).get("text_cfg") or {}

    @property
    def preprocess_cfg(self) -> Mapping[str, Any]:
        """The statements of the JSON about pixels, empty without them."""
        preprocess_cfg = self.sidecar_json.get("preprocess_cfg") or {}
        if not isinstance(preprocess_cfg, dict):
            raise FormatError(f"preprocess_cfg of {CONFIG_FILE} is {quoted(preprocess_cfg)}, expected an object.")
        return preprocess_cfg

    def _stated_model(self) -> StatedModel | None:
        """Return what the JSON states, None without one. Raises FormatError where it describes another model."""
        if (model_cfg := self.sidecar_json.get("model_cfg")) is None:
            return None
        stated = StatedModel.from_json(model_cfg)
        faults = [
            *stated.unsupported_fields(trunk=self.trunk, text_head=self.text_head),
            *stated.contradictions(
                self.sizes,
                image_layers=self.stages or self.image_layers,
                text_layers=self.text_layers,
                trunk=self.trunk,
            ),
        ]
        if faults:
            raise FormatError(f"{CONFIG_FILE} describes another model: {'; '.join(faults)}.")
        return stated

    def _clip_config(self, options: LoadOptions, stated: StatedModel | None) -> CLIPConfig:
        activation = resolve_option(
            "vision_activation",
            options.get("vision_activation"),
            stated.vision.activation if stated else None,
            "whether its GELU is quick_gelu (OpenAI's) or gelu (open_clip's own)",
        )
        width = 64 * self.sizes["vision.stem"] if self.stages else self.sizes["vision.width"]
        # Every published width up to 1024 has heads of 64; beyond, those of a ViT are of 80, 88, 104 or 112.
        published_heads = width // 64 if width <= 1024 or self.stages else None
        heads = resolve_option(
            "vision_heads",
            options.get("vision_heads"),
            width // stated.vision["head_width"] if stated else published_heads,
            "the number of heads of its image tower",
        )
        vision = (
            resnet_fields(self.sizes, self.stages, heads)
            if self.stages
            else tower_fields(
                self.sizes,
                "vision",
                self.image_layers,
                heads=heads,
                activation=activation,
                eps=stated.vision.layer_norm_eps if stated else 1e-5,
            )
        )
        text = tower_fields(
            self.sizes,
            "text",
            self.text_layers,
            heads=stated.text["heads"] if stated else self.sizes["text.width"] // 64,
            activation=stated.text.activation if stated else activation,
            eps=stated.text.layer_norm_eps if stated else 1e-5,
        )
        return clip_config(self.sizes, vision, text, options)

    def _siglip_config(self, options: LoadOptions, stated: StatedModel | None) -> SiglipConfig:
        width, vocabulary = self.sizes["text.width"], self.sizes["text.vocabulary"]
        trunk_name = stated.vision.fields.get("timm_model_name") if stated else None
        vision = timm.tower_config(self.sizes, self.image_layers, trunk_name, options)
        # Without the JSON, as in all published ones: the text tower of SigLIP computes exact GELU, that of SigLIP 2
        # (256,000 pieces of Gemma) tanh; So400m (1152 wide) has heads of 72.
        published_activation: Activation = "gelu_pytorch_tanh" if has_gemma_pieces(vocabulary) else "gelu"
        published_heads = 16 if width == 1152 else width // 64
        text = tower_fields(
            self.sizes,
            "text",
            self.text_layers,
            heads=stated.text["heads"] if stated else published_heads,
            activation=stated.text.activation if stated else published_activation,
            eps=stated.text.layer_norm_eps if stated else 1e-6,
        )
        return siglip_config(self.sizes, vision, text)


def _any_below(prefix: str, names: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(prefix) for name in names)


def _has_trunk(config: DualEncoderConfig) -> bool:
    """Return whether open_clip takes the image tower from timm, as it does for all whose loss is the sigmoid one."""
    return config.has_logit_bias


def _is_openai(container: str, weights: Mapping[str, Tensor], has_json: bool, in_training: bool) -> bool:
    """Return whether a state dict under OpenAI's names is OpenAI's, which computes quick GELU.

    It is if any of four signs is present: the file is a TorchScript archive; it has OpenAI's integer buffers; it has
    OpenAI's mixture of dtypes; its weights are in OpenAI's order, where blocks begin with the attention (open_clip's
    begin with a norm). The last two do not count beside open_clip's JSON, nor the dtypes `in_training`: open_clip's in
    float16 have the same. A safetensors file keeps no order, so that one of a single dtype may be either's, and the
    caller has to say.
    """
    if container == "torchscript" or any(name in weights for name in openai.INTEGER_BUFFERS):
        return True
    dtypes = [getattr(weights.get(name), "dtype", None) for name in ("visual.conv1.weight", "ln_final.weight")]
    mixture = dtypes == [torch.float16, torch.float32] and not in_training
    block = [name.rpartition("resblocks.0.")[2] for name in weights if "resblocks.0." in name]
    attention_first = container != "safetensors" and bool(block) and block[0].startswith("attn.")
    return not has_json and (mixture or attention_first)
