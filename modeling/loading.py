"""`from_pretrained` for official checkpoint files, and for the base classes that stand for every family."""

from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedConfig

from ..configuration import FAMILIES
from ..formats import is_checkpoint_file, pop_options, read_checkpoint

if TYPE_CHECKING:
    from typing_extensions import Self

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class LoadsOfficialFiles:
    """Mixin of all models: decides what to load before it calls transformers' own `from_pretrained`."""

    config_class: Any  # a configuration without a `model_type` stands for all families

    @classmethod
    def class_for(cls, config: PreTrainedConfig) -> "type[Self]":
        """Return the class for a configuration: this one, or the family's where this one stands for all of them.

        Raises ValueError for a configuration of one tower where both are needed.
        """
        if cls.config_class.model_type:
            return cls
        if config.model_type in FAMILIES:
            return getattr(import_module(__package__), FAMILIES[config.model_type].model)
        raise ValueError(
            f"{cls.__name__} takes both towers, and this checkpoint has one, a {type(config).__name__}. "
            f"Load it with {type(config).__name__.replace('Config', 'Model')}."
        )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: "str | PathLike[str] | None", *args: Any, **kwargs: Any
    ) -> "Self":
        """Load a model as transformers does, from a Hub id or a folder; or from an official checkpoint, in float32.

        `image_size`, `vision_activation` and `vision_heads` of an official checkpoint are those of `read_checkpoint`.
        """
        source = pretrained_model_name_or_path
        if is_checkpoint_file(source):
            return cls._from_checkpoint_file(source, *args, **kwargs)
        if not cls.config_class.model_type:
            hub_arguments = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
            config = kwargs.get("config") or cls.config_class.from_pretrained(source, **hub_arguments)
            return cls.class_for(config).from_pretrained(source, *args, **kwargs)
        return super().from_pretrained(source, *args, **kwargs)  # type: ignore[misc]  # PreTrainedModel's

    @classmethod
    def _from_checkpoint_file(cls, file: "str | PathLike[str]", *args: Any, **kwargs: Any) -> "Self":
        """Pass the file's configuration and weights to transformers, which takes them without a folder."""
        checkpoint = read_checkpoint(file, **pop_options(kwargs))
        model_class = cls.class_for(checkpoint.config)
        # A tower takes its part of the configuration; transformers takes its part of the weights.
        config = getattr(checkpoint.config, model_class.config_class.base_config_key or "", checkpoint.config)
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", torch.float32)
        kwargs.setdefault("config", config)
        return model_class.from_pretrained(None, *args, state_dict=checkpoint.state_dict(), **kwargs)
