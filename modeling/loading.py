"""`from_pretrained` for official files and for bases that stand for several families."""

from dataclasses import fields
from importlib import import_module
from typing import Any

import torch

from ..configuration import FAMILIES
from ..formats import Choices, is_checkpoint_file, read_checkpoint

CHOICES = tuple(field.name for field in fields(Choices))
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class LoadsOfficialFiles:
    """Mixed into models: what comes before transformers' own `from_pretrained`."""

    config_class: Any  # a configuration without a `model_type` stands for all families

    @classmethod
    def family(cls, config: Any) -> Any:
        """The class that loads a checkpoint with this configuration: this one, or one of those it stands for."""
        if cls.config_class.model_type:
            return cls
        if config.model_type in FAMILIES:
            return getattr(import_module(__package__), FAMILIES[config.model_type].model)
        raise ValueError(
            f"{cls.__name__} takes both towers, and this checkpoint has one, a {type(config).__name__}. "
            f"Load it with {type(config).__name__.replace('Config', 'Model')}."
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, from a Hub id or a folder; also from an official checkpoint, in float32.

        `image_size`, `vision_activation` and `vision_heads` of a checkpoint are those of `read_checkpoint`.
        """
        source = pretrained_model_name_or_path
        if is_checkpoint_file(source):
            checkpoint = read_checkpoint(source, **{name: kwargs.pop(name) for name in CHOICES if name in kwargs})
            family = cls.family(checkpoint.config)
            config = getattr(checkpoint.config, family.config_class.base_config_key or "", checkpoint.config)
            kwargs = {"config": config, **({} if "torch_dtype" in kwargs else {"dtype": torch.float32}), **kwargs}
            return family.from_pretrained(None, *args, state_dict=checkpoint.state_dict(), **kwargs)
        if not cls.config_class.model_type:
            hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
            config = kwargs.get("config") or cls.config_class.from_pretrained(source, **hub)
            return cls.family(config).from_pretrained(source, *args, **kwargs)
        return super().from_pretrained(source, *args, **kwargs)  # type: ignore[misc]
