"""What every configuration shares: strict names, cross-field checks, and the traits that tell families apart.

A *trait* is a class attribute: it belongs to the family, never to a checkpoint, so it never reaches `config.json`.
"""

import difflib
import logging
from dataclasses import fields
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import GenerationConfig, PreTrainedConfig

try:
    from transformers.configuration_utils import SubConfigSpec
except ImportError:  # before transformers 5.20
    SubConfigSpec = None

logger = logging.getLogger(__name__)

# Names that transformers itself accepts, or that its older versions wrote into every `config.json`.
_ACCEPTED_NAMES = {
    *(
        "model_type",
        "transformers_version",
        "_name_or_path",
        "name_or_path",
        "_commit_hash",
        "num_labels",
        "torch_dtype",
    ),
    *("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "_attn_implementation_autoset"),
    *("experts_implementation", "_experts_implementation_internal", "output_attentions", "per_layer_config"),
    *("auto_map", "quantization_config", "fusion_config", "transformers_weights", "tie_last_hidden_states"),
    *("tokenizer_class", "processor_class", "torchscript", "use_bfloat16", "pruned_heads", "tie_word_embeddings"),
    *("is_decoder", "add_cross_attention", "cross_attention_hidden_size", "tie_encoder_decoder", "finetuning_task"),
    *("prefix", "task_specific_params", "tf_legacy_loss", "use_cache", "dropout", "gradient_checkpointing"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id"),
    *("initializer_range", "initializer_factor"),
}
_SAID_TWICE = ("text_config_dict", "vision_config_dict")  # old CLIP folders; see DualEncoderConfig.__post_init__


class StrictConfig(PreTrainedConfig):
    """A configuration that refuses names it does not know, and keeps them (with a warning) when a file has them."""

    def __post_init__(self, **kwargs: Any) -> None:
        if unknown := self._unknown_names(kwargs):
            known = [field.name for field in fields(self)]
            close = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else f" Its fields are {', '.join(known)}."
            raise TypeError(f"{type(self).__name__} has no field {', '.join(map(repr, unknown))}.{hint}")
        super().__post_init__(**kwargs)

    @classmethod
    def _unknown_names(cls, names: Any) -> list[str]:
        known = _ACCEPTED_NAMES | {field.name for field in fields(cls)} | set(GenerationConfig().to_dict())
        return sorted(name for name in names if name not in known)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; names of the file that nobody knows are kept as plain attributes, and named."""
        config_dict = dict(config_dict)
        unknown = {name: config_dict.pop(name) for name in cls._unknown_names(config_dict)}
        for name, sub_config in cls.sub_configs.items():
            if isinstance(config_dict.get(name), dict):
                config_dict[name] = sub_config.from_dict(config_dict[name])
        result = super().from_dict(config_dict, **kwargs)
        config = result[0] if isinstance(result, tuple) else result
        if unknown:
            logger.warning("%s: names without a meaning here are kept as they are: %s", cls.__name__, list(unknown))
        for name, value in unknown.items():
            setattr(config, name, value)
        return result

    @classmethod
    def from_json_file(cls, json_file: Any) -> Any:
        return cls.from_dict(cls._dict_from_json_file(json_file))

    @property
    def output_attentions(self) -> bool | None:
        return self._output_attentions

    @output_attentions.setter
    def output_attentions(self, value: bool) -> None:
        # transformers refuses this unless attention is "eager"; here attention maps are real under every kernel.
        self._output_attentions = value

    def validate_output_attentions(self) -> None:
        """Nothing to check: see `output_attentions`."""


@strict
class TowerConfig(StrictConfig):
    """Fields and traits of one transformer encoder."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    attention_dropout: float | int = 0.0

    initialization: ClassVar[Literal["clip", "siglip"]]  # a scheme of modeling.initialization

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.validate_architecture()

    def validate_architecture(self) -> None:
        """Raise ValueError, with both values, where two fields contradict each other."""
        for name in ("hidden_size", "intermediate_size", "num_attention_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got hidden_size={self.hidden_size} "
                f"and num_attention_heads={self.num_attention_heads}."
            )


@strict
class VisionConfig(TowerConfig):
    """The image tower: a square image cut into square patches."""

    base_config_key = "vision_config"

    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 16

    class_token: ClassVar[bool]  # a learned token before the patches
    patch_bias: ClassVar[bool]
    pre_norm: ClassVar[bool]  # a norm between embeddings and encoder
    norm_first: ClassVar[bool]  # True: norm, then pool; False: pool, then norm (and no norm on `last_hidden_state`)
    pooling: ClassVar[str]  # a name in modeling.pooling.POOLERS

    def validate_architecture(self) -> None:
        super().validate_architecture()
        if not 1 <= self.patch_size <= self.image_size:
            raise ValueError(
                f"patch_size must be between 1 and image_size, got patch_size={self.patch_size} "
                f"and image_size={self.image_size}."
            )

    @property
    def grid_size(self) -> int:
        """Patches a side; pixels that fill no whole patch are dropped, as the official patch convolutions do."""
        return self.image_size // self.patch_size


@strict
class TextConfig(TowerConfig):
    """The text tower. Special ids lie inside the vocabulary; what is left open is derived from its size."""

    base_config_key = "text_config"

    vocab_size: int = 32000
    max_position_embeddings: int = 64
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    causal: ClassVar[bool]  # True: causal mask and padding mask; False: bidirectional, and padding takes part
    fixed_length: ClassVar[bool]  # texts always have `max_position_embeddings` tokens, the rest being padding
    pooling: ClassVar[str]  # a name in modeling.pooling.POOLERS

    def validate_architecture(self) -> None:
        super().validate_architecture()
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.vocab_size:
                raise ValueError(
                    f"{name} must lie inside the vocabulary, got {name}={value} and vocab_size={self.vocab_size}."
                )
            if value is None and self.fixed_length and name != "bos_token_id":
                raise ValueError(f"{name} must be given: texts are padded, or cut, to their full length. Got None.")


@strict
class DualEncoderConfig(StrictConfig):
    """Two towers and what compares them: the base of every family, and the entry point that finds the right one."""

    text_config: Any = None  # the family's TextConfig, or a dict of its fields
    vision_config: Any = None  # the family's VisionConfig, or a dict of its fields
    initializer_factor: float | int = 1.0

    projection: ClassVar[bool]  # bias-free linear maps of both pooled outputs to `projection_dim`
    logit_shape: ClassVar[tuple[int, ...]]  # of `logit_scale` and `logit_bias` in checkpoints
    logit_bias_init_value: ClassVar[float | None]  # None: the family has no bias
    loss: ClassVar[str]  # a name in losses.LOSSES
    max_logit_scale: ClassVar[float | None]  # of the logarithm, in training; None: no limit

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if SubConfigSpec is not None:  # what leaves the defaults of sub-configurations out of the JSON
            cls.sub_configs_defaults = {
                name: SubConfigSpec(config_class=sub_config) for name, sub_config in cls.sub_configs.items()
            }
        super().__init_subclass__(**kwargs)

    def __post_init__(self, **kwargs: Any) -> None:
        for name, sub_config in self.sub_configs.items():
            value = getattr(self, name)
            # Old CLIP folders say some things twice; what stands under the second name wins.
            overrides = kwargs.pop(f"{name}_dict", None) or {}
            if value is None or isinstance(value, dict):
                setattr(self, name, sub_config(**{**(value or {}), **overrides}))
            elif not isinstance(value, sub_config):
                raise TypeError(
                    f"{type(self).__name__} takes a {sub_config.__name__} or a dict as {name}, got a {type(value)}."
                )
        super().__post_init__(**kwargs)

    @classmethod
    def _unknown_names(cls, names: Any) -> list[str]:
        return [
            name for name in super()._unknown_names(names) if name not in ("text_config_dict", "vision_config_dict")
        ]

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers; a folder with one tower gives a dual encoder around it, such as a classifier wants."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, *args, **kwargs)
        for name, sub_config in cls.sub_configs.items():
            if config_dict.get("model_type") == sub_config.model_type:
                config_dict = {"model_type": cls.model_type, name: config_dict}
        return config_dict, kwargs

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """On a family: as in transformers. On `DualEncoderConfig`: the family that the folder's `model_type` names."""
        if cls.model_type:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        from .families import FAMILIES  # which imports this module

        config_dict, _ = super().get_config_dict(pretrained_model_name_or_path, *args, **kwargs)
        if (model_type := config_dict.get("model_type")) not in FAMILIES:
            raise ValueError(
                f"Expected the model_type of a dual encoder ({', '.join(FAMILIES)}), got {model_type!r} from "
                f"{pretrained_model_name_or_path}. A folder with one tower loads with that tower's own class."
            )
        return FAMILIES[model_type].config.from_pretrained(pretrained_model_name_or_path, **kwargs)
