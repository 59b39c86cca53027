"""The bases of the families' configurations: cross-field checks, and the traits in which families differ.

A *trait* is a class attribute: it belongs to the family, never to a checkpoint, so it never reaches `config.json`.
"""

from collections.abc import Iterable
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from huggingface_hub.dataclasses import strict

from .known_names import VISION_LANGUAGE
from .limits import MAX_LAYERS, check_numbers, check_sizes
from .strict import StrictConfig

if TYPE_CHECKING:
    from typing_extensions import Self

try:
    from transformers.configuration_utils import SubConfigSpec
except ImportError:  # before transformers 5.20
    SubConfigSpec = None


@strict
class TowerConfig(StrictConfig):
    """One tower, of whatever architecture: its width, and its part of a dual encoder's `config.json`."""

    hidden_size: int = 768  # of the tokens that the tower returns

    initialization: ClassVar[str]  # of the encoder's linear layers: a name in modeling.initialization.ENCODER_SCHEMES

    @property
    def embedding_std(self) -> float:
        """The standard deviation of the first values of tables of tokens and positions."""
        return self.hidden_size**-0.5

    @classmethod
    def _own_part(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return a tower's part of the `config.json` of a dual encoder, or all of its own.

        The width of a projection is that of the dual encoder, which the weights have: old folders state none for the
        towers, or another one.
        """
        key = cls.base_config_key
        if key not in values:
            return values
        part = {**(values[key] or {}), **(values.get(f"{key}_dict") or {})}  # as in DualEncoderConfig
        from .families import FAMILIES  # which imports this module

        if (family := FAMILIES.get(str(values.get("model_type")))) is not None:  # whatever the part says
            part["model_type"] = family.config.sub_configs[key].model_type
        if hasattr(cls, "projection_dim") and values.get("projection_dim") is not None:
            part["projection_dim"] = values["projection_dim"]
        return part

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.validate_architecture()

    def validate_architecture(self) -> None:
        """Raise ValueError, with both values, where two fields contradict each other."""
        check_sizes(self, ["hidden_size"])


@strict
class TransformerConfig(TowerConfig):
    """Fields and traits of one transformer encoder."""

    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    attention_dropout: float | int = 0.0

    encoder_layer: ClassVar[str]  # a name in modeling.encoder.LAYERS

    def validate_architecture(self) -> None:
        super().validate_architecture()
        check_sizes(self, ["intermediate_size", "num_attention_heads"])
        check_sizes(self, ["num_hidden_layers"], least=0, most=MAX_LAYERS)
        check_numbers(self, ["layer_norm_eps", "attention_dropout"])
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got hidden_size={self.hidden_size} "
                f"and num_attention_heads={self.num_attention_heads}."
            )


@strict
class VisionConfig(TowerConfig):
    """An image tower, of whatever architecture."""

    base_config_key = "vision_config"

    num_channels: int = 3

    position_resampling: ClassVar[str]  # of the official code: a name in formats.positions.RESAMPLING_METHODS
    num_class_tokens: ClassVar[int] = 0  # learned tokens before those of the image
    flexible_size: ClassVar[bool] = False  # images of any grid, as ready-made patches; else squares of `image_size`
    pooling: ClassVar[str]  # a name in modeling.pooling.POOLERS

    @property
    def pooled_size(self) -> int:
        """The width of the pooled output."""
        return self.hidden_size

    @classmethod
    def _unknown_names(cls, names: Iterable[str]) -> list[str]:
        return super()._unknown_names(set(names) - VISION_LANGUAGE)


@strict
class ViTConfig(TransformerConfig, VisionConfig):
    """A vision transformer: an image cut into square patches."""

    patch_size: int = 16

    patch_bias: ClassVar[bool]
    pre_norm: ClassVar[bool]  # a norm between embeddings and encoder
    norm_first: ClassVar[bool]  # True: norm, then pool; False: pool, then norm (and no norm on `last_hidden_state`)

    def validate_architecture(self) -> None:
        super().validate_architecture()
        check_sizes(self, ["patch_size", "num_channels"])

    @property
    def grid_size(self) -> int:
        """Patches per side of the grid that the table of positions is for."""
        raise NotImplementedError

    @property
    def num_positions(self) -> int:
        """The rows of the position table: class tokens, then patches."""
        return self.num_class_tokens + self.grid_size**2


@strict
class SquareViTConfig(ViTConfig):
    """A vision transformer for square images of one size."""

    image_size: int = 224

    def validate_architecture(self) -> None:
        super().validate_architecture()
        check_sizes(self, ["image_size"])
        if self.patch_size > self.image_size:
            raise ValueError(
                f"patch_size must be between 1 and image_size, got patch_size={self.patch_size} "
                f"and image_size={self.image_size}."
            )

    @property
    def grid_size(self) -> int:
        """Patches per side; pixels that fill no whole patch are dropped, as the official patch convolutions do."""
        return self.image_size // self.patch_size


@strict
class TextConfig(TransformerConfig):
    """The text tower. Special ids must lie inside the vocabulary."""

    base_config_key = "text_config"

    vocab_size: int = 32000
    max_position_embeddings: int = 64
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    causal: ClassVar[bool]  # True: causal mask and padding mask; False: bidirectional, and padding takes part
    fixed_length: ClassVar[bool]  # texts always have `max_position_embeddings` tokens, the rest being padding
    pooling: ClassVar[str]  # a name in modeling.pooling.POOLERS

    @property
    def ends_at_highest_id(self) -> bool:
        """Whether a text ends at the highest of its ids, instead of its first `eos_token_id`."""
        return False

    def validate_architecture(self) -> None:
        super().validate_architecture()
        check_sizes(self, ["vocab_size", "max_position_embeddings", "projection_size"])
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.vocab_size:
                raise ValueError(
                    f"{name} must lie inside the vocabulary, got {name}={value} and vocab_size={self.vocab_size}."
                )
            if value is None and self.fixed_length and name != "bos_token_id":
                raise ValueError(f"{name} must be given: texts are padded, or cut, to their full length. Got None.")


if TYPE_CHECKING:
    AnyTowerConfig = TypeVar("AnyTowerConfig", bound=TowerConfig)

    class SubConfig(Generic[AnyTowerConfig]):
        """For type checkers: a tower's configuration, which may be given as a dict of its fields."""

        def __get__(self, config: object, owner: type) -> AnyTowerConfig: ...

        def __set__(self, config: object, value: AnyTowerConfig | dict[str, Any] | None) -> None: ...


@strict
class DualEncoderConfig(StrictConfig):
    """Two towers and how they are compared: the base of every family, and the entry point that finds the right one."""

    if TYPE_CHECKING:
        text_config: "SubConfig[TextConfig]" = SubConfig()
        vision_config: "SubConfig[VisionConfig]" = SubConfig()
    else:  # checked by __post_init__: strict dataclasses have no type for a field that may be passed as a dict
        text_config: Any = None
        vision_config: Any = None
    initializer_factor: float | int = 1.0
    classifier_pooling: str = "mean"  # of an image classifier: "mean" of all patches, or "pooled", the tower's own

    visual_projection: ClassVar[bool]  # a bias-free linear map of the pooled image to `projection_dim`
    text_projection: ClassVar[bool]  # the same for the text
    logit_shape: ClassVar[tuple[int, ...]]  # the shape of `logit_scale` and `logit_bias` in checkpoints
    logit_bias_init_value: ClassVar[float | None]  # None: the family has no bias
    loss: ClassVar[str]  # a name in losses.LOSSES
    max_logit_scale: ClassVar[float | None]  # the largest logit_scale (a logarithm) in training; None: no limit

    def to_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = super().to_dict()
        if values.get("classifier_pooling") == "mean":  # of which transformers has no field
            del values["classifier_pooling"]
        return values

    @property
    def has_logit_bias(self) -> bool:
        return self.logit_bias_init_value is not None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if SubConfigSpec is not None:  # save_pretrained then leaves defaults of sub-configurations out of the JSON
            cls.sub_configs_defaults = {
                name: SubConfigSpec(config_class=sub_config) for name, sub_config in cls.sub_configs.items()
            }
        super().__init_subclass__(**kwargs)

    def __post_init__(self, **kwargs: Any) -> None:
        for name, sub_config in self.sub_configs.items():
            value = getattr(self, name)
            overrides = kwargs.pop(f"{name}_dict", None) or {}  # in old CLIP folders, and wins as in transformers
            if value is None or isinstance(value, dict):
                setattr(self, name, sub_config(**{**(value or {}), **overrides}))
            elif not isinstance(value, sub_config):
                raise TypeError(
                    f"{type(self).__name__} takes a {sub_config.__name__} or a dict as {name}, "
                    f"got a {type(value).__name__}."
                )
        super().__post_init__(**kwargs)
        if self.classifier_pooling not in ("mean", "pooled"):
            raise ValueError(f"classifier_pooling must be 'mean' or 'pooled', got {self.classifier_pooling!r:.80}.")
        if self.classifier_pooling == "pooled" and not getattr(self.vision_config, "vision_use_head", True):
            raise ValueError("classifier_pooling='pooled' needs a tower with its head, got vision_use_head=False.")

    @classmethod
    def _unknown_names(cls, names: Iterable[str]) -> list[str]:
        return super()._unknown_names(set(names) - {"text_config_dict", "vision_config_dict"})

    @classmethod
    def _own_part(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return the values as they are; those of an image tower alone as a dual encoder's around that tower.

        That is how an image classifier, which takes a dual encoder's configuration, loads from it.
        """
        vision = cls.sub_configs.get("vision_config")
        if vision is not None and values.get("model_type") == vision.model_type:
            return {"model_type": cls.model_type, vision.base_config_key: values}
        return values

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: "str | PathLike[str]", *args: Any, **kwargs: Any) -> "Self":
        """Load a configuration as transformers does; on `DualEncoderConfig`, that of the family in the folder.

        Of a family that this package does not write again, it is transformers' own object.

        Raises ValueError, on `DualEncoderConfig`, for a `model_type` that is not a dual encoder's.
        """
        if cls.model_type:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        from .families import FAMILIES, describe_model_type  # which imports this module
        from .other_families import OTHER_FAMILIES

        config_dict, _ = super().get_config_dict(pretrained_model_name_or_path, *args, **kwargs)
        if (model_type := config_dict.get("model_type")) in OTHER_FAMILIES:
            from transformers import AutoConfig  # which takes a while

            return AutoConfig.from_pretrained(pretrained_model_name_or_path, **kwargs)
        if model_type not in FAMILIES:
            raise ValueError(
                f"Expected the model_type of a dual encoder ({', '.join([*FAMILIES, *OTHER_FAMILIES])}), got "
                f"{describe_model_type(model_type)} from {pretrained_model_name_or_path}. "
                "A folder with one tower loads with that tower's own class."
            )
        config_class: Any = FAMILIES[model_type].config  # a subclass of this one
        return config_class.from_pretrained(pretrained_model_name_or_path, **kwargs)
