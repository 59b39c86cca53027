"""The base of all configurations: no misspelt names, and the part of a `config.json` that is about the model."""

import difflib
import logging
from collections.abc import Iterable
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig, PreTrainedConfig

from .known_names import KNOWN_NAMES
from .limits import check_labels, check_weights

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)


class StrictConfig(PreTrainedConfig):
    """A configuration that refuses unknown names in code, and keeps them, with a warning, where a file has them."""

    def __post_init__(self, **kwargs: Any) -> None:
        if unknown := self._unknown_names(kwargs):
            known = [field.name for field in fields(self)]
            close = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else f" Its fields are {', '.join(known)}."
            raise TypeError(f"{type(self).__name__} has no field {', '.join(map(repr, unknown))}.{hint}")
        check_labels(kwargs)
        super().__post_init__(**kwargs)

    @classmethod
    def _unknown_names(cls, names: Iterable[str]) -> list[str]:
        known = KNOWN_NAMES | {field.name for field in fields(cls)} | set(GenerationConfig().to_dict())
        return sorted(name for name in names if name not in known)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "Self":
        """Return the configuration as transformers does; unknown names become plain attributes, with a warning."""
        config_dict = dict(config_dict)
        unknown = {name: config_dict.pop(name) for name in cls._unknown_names(config_dict)}
        for name, sub_config in cls.sub_configs.items():
            if isinstance(config_dict.get(name), dict):
                config_dict[name] = sub_config.from_dict(sub_config._own_part(config_dict))
        result = super().from_dict(config_dict, **kwargs)
        config = result[0] if isinstance(result, tuple) else result
        if unknown:
            logger.warning("%s: names without a meaning here are kept as they are: %s", cls.__name__, list(unknown))
        for name, value in unknown.items():
            setattr(config, name, value)
        return result

    def save_pretrained(self, save_directory: "str | PathLike[str]", *args: Any, **kwargs: Any) -> None:
        """Save `config.json`, and beside it the code of a model that transformers has no class for."""
        from .families import carries_code  # which imports this module
        from .remote_code import auto_map, remote_code

        files = remote_code(self.model_type) if carries_code(self.model_type) else {}
        if files:
            self.auto_map = auto_map(self.model_type)
        super().save_pretrained(save_directory, *args, **kwargs)
        for name, text in files.items():
            Path(save_directory, name).write_text(text, encoding="utf-8", newline="\n")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: "str | PathLike[str]", *args: Any, **kwargs: Any) -> "Self":
        """Load a configuration as transformers does. Raises ValueError where the weights beside it are too small."""
        result = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        if folder.is_dir():
            check_weights(result[0] if isinstance(result, tuple) else result, folder)
        return result

    @classmethod
    def from_json_file(cls, json_file: "str | PathLike[str]") -> "Self":
        return cls.from_dict(cls._dict_from_json_file(json_file))

    @classmethod
    def from_config(cls, config: PreTrainedConfig) -> "Self":
        """Return a configuration of this class for any that describes the same model.

        That is one of this class, transformers' own, for a tower that of a dual encoder with such a tower, or, for a
        dual encoder, that of its image tower alone. Raises TypeError for a configuration of another model.
        """
        if isinstance(config, cls) and config.model_type == cls.model_type:
            return config
        values = cls._own_part(config.to_dict()) if isinstance(config, PreTrainedConfig) else {}
        if values.get("model_type") != cls.model_type:
            raise TypeError(
                f"A model of type {cls.model_type!r} takes a {cls.__name__}, got a {type(config).__name__}."
            )
        own = cls.from_dict(values)
        part = getattr(config, cls.base_config_key, config)
        own._attn_implementation = {"": part._attn_implementation} | {  # which to_dict leaves out
            name: getattr(part, name, part)._attn_implementation for name in cls.sub_configs
        }
        return own

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: "str | PathLike[str]", *args: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read what `config.json` says about this model. Raises ValueError where it is about another kind of model."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, *args, **kwargs)
        values = cls._own_part(config_dict)
        model_type = values.get("model_type", cls.model_type)
        if cls.model_type and model_type != cls.model_type:
            from .families import describe_model_type, loader_of  # which imports this module

            loader = loader_of(model_type)
            raise ValueError(
                f"Expected a {cls.__name__.removesuffix('Config')} model ({cls.model_type!r}), got "
                f"{describe_model_type(model_type)} from {pretrained_model_name_or_path}."
                + (f" Load it with {loader}." if loader else "")
            )
        return values, kwargs

    @classmethod
    def _own_part(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return what a `config.json` says about this model: all of it, unless it is about more."""
        return values

    @property
    def output_attentions(self) -> bool | None:
        return self._output_attentions

    @output_attentions.setter
    def output_attentions(self, value: bool) -> None:
        # transformers refuses True unless attention is "eager"; here all kernels can be asked for attention maps.
        self._output_attentions = value

    def validate_output_attentions(self) -> None:
        """Nothing to check: see `output_attentions`."""
