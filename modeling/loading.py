"""`from_pretrained` for official checkpoints, for folders with wrapped names, and for the bases of all families."""

import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from typing_extensions import Self

from ..catalogue.download import HUB_ARGUMENTS, is_name, suggest_names
from ..formats import is_checkpoint_file, pop_options, read_source, unwrapped_weights
from ..formats.adapters import base_of_adapter
from ..formats.bad_weights import OTHER_WEIGHTS, checked_ahead, warn_of_bad_weights
from ..formats.wrappers import log_unwrapped, model_prefixes, unwrap_names
from ..runtime.towers import absent_towers

_PLACE_OF_ADAPTER = ("revision", "subfolder", "adapter_name", "adapter_kwargs")  # arguments that are not of its base


class LoadsOfficialFiles:
    """Mixin of all models: decides what to load before it calls transformers' own `from_pretrained`."""

    config_class: Any  # a configuration without a `model_type` stands for all families
    base_model_prefix: str

    def __new__(cls, config: PreTrainedConfig | None = None, *args: Any, **kwargs: Any) -> Self:
        """Make a model of the family's class where this class stands for all of them."""
        return super().__new__(cls.class_for(config))

    @classmethod
    def class_for(cls, config: PreTrainedConfig | None) -> type[Self]:
        """Return the class of a model with this configuration: this one, unless it stands for all families."""
        return cls

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: "str | PathLike[str] | None", *args: Any, **kwargs: Any
    ) -> Self:
        """Load a model as transformers does, from a Hub id or a folder; or from an official checkpoint, in float32.

        An official checkpoint is a file, or a name of `twinlens list`, which is downloaded and checked; what exists as
        a path is a path. `image_size`, `vision_activation`, `vision_heads` and `eos_token_id` are those of
        `read_checkpoint`. Where a folder has its weights under the names of wrappers (`module.`, `_orig_mod.`, ...) or
        in an entry of a training checkpoint, all of them have to be there. Of an adapter of peft, the model that it
        names is loaded, and the adapter into it.

        Raises ValueError for a model of another kind, and for one of which a whole tower is missing; other missing
        weights are new ones, which transformers reports.
        """
        source = pretrained_model_name_or_path
        if is_checkpoint_file(source) or is_name(source):
            return cls._from_checkpoint_file(source, *args, **kwargs)
        hub_arguments = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        with suggest_names(source):
            base = base_of_adapter(source, hub_arguments)
        if source is not None and base is not None:
            return cls._from_adapter(source, base, hub_arguments, *args, **kwargs)
        if not cls.config_class.model_type:
            config = kwargs.get("config") or source
            if not isinstance(config, PreTrainedConfig):
                with suggest_names(config):
                    config = cls.config_class.from_pretrained(config, **hub_arguments)
            return cls.class_for(config).from_pretrained(source, *args, **kwargs)
        if source is not None and not any(map(kwargs.get, OTHER_WEIGHTS)):
            folder = Path(source, kwargs.get("subfolder") or "")
            if (weights := unwrapped_weights(folder, known_prefix=f"{cls.base_model_prefix}.")) is not None:
                kwargs["config"] = kwargs.get("config") or source
                return warn_of_bad_weights(source, cls._from_all_weights(source, weights, *args, **kwargs))
        with suggest_names(source), checked_ahead(source, kwargs) as finite:
            loaded = super().from_pretrained(source, *args, **{**kwargs, "output_loading_info": True})  # type: ignore[misc]
        model, info = warn_of_bad_weights(source, loaded, finite)
        is_wrapped = info["missing_keys"] and model_prefixes(info["unexpected_keys"]) not in ([], [""])
        if is_wrapped and "key_mapping" not in kwargs:  # as on the Hub, whose files are known only now
            prefix, names = unwrap_names(info["unexpected_keys"])
            log_unwrapped(source, prefix, names)
            return cls.from_pretrained(source, *args, key_mapping={f"^{re.escape(prefix)}": ""}, **kwargs)
        if kwargs.get("output_loading_info"):  # the caller sees what is missing
            return loaded
        if source is not None and (absent := absent_towers(model, info["missing_keys"])):
            raise ValueError(
                f"{source} has none of the weights that {cls.__name__} needs for its {' and '.join(absent)}. Load one "
                "tower with its own class."
            )
        return model

    @classmethod
    def _from_adapter(
        cls, source: "str | PathLike[str]", base: str, hub_arguments: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Self:
        """Load the base model of an adapter, whatever it is, and the adapter into it."""
        loaded = cls.from_pretrained(base, *args, **{n: v for n, v in kwargs.items() if n not in _PLACE_OF_ADAPTER})
        adapter_kwargs = {**hub_arguments, **(kwargs.get("adapter_kwargs") or {})}
        model: Any = loaded[0] if isinstance(loaded, tuple) else loaded  # beside its loading info, or alone
        model.load_adapter(source, kwargs.get("adapter_name"), adapter_kwargs=adapter_kwargs)
        return loaded

    @classmethod
    def _from_checkpoint_file(cls, source: "str | PathLike[str]", *args: Any, **kwargs: Any) -> Self:
        """Pass the configuration and weights of an official checkpoint to transformers, without a folder."""
        kwargs = {name: value for name, value in kwargs.items() if value is not None}  # None is the default of all
        dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", torch.float32))
        config = kwargs.pop("config", None)
        checkpoint, _ = read_source(Path(source), **pop_options(kwargs))
        model_class = cls.class_for(checkpoint.config)
        if config is None:
            # A tower takes its part of the configuration; transformers takes its part of the weights.
            config = model_class.config_class.from_config(checkpoint.config)
            config, kwargs = config.from_dict(config.to_diff_dict(), return_unused_kwargs=True, **kwargs)
        weights = checkpoint.state_dict()
        return model_class._from_all_weights(source, weights, *args, config=config, dtype=dtype, **kwargs)

    @classmethod
    def _from_all_weights(
        cls,
        source: "str | PathLike[str]",
        weights: Mapping[str, Tensor],
        *args: Any,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Load weights as transformers does. Raises ValueError where some are missing, those of a classifier apart."""
        loaded = cls.from_pretrained(None, *args, state_dict=dict(weights), output_loading_info=True, **kwargs)
        model, info = cast("tuple[Any, dict[str, Any]]", loaded)  # a model with its configuration
        if missing := sorted(name for name in info["missing_keys"] if not name.startswith("classifier.")):
            raise ValueError(
                f"{source}: {cls.__name__} needs {len(missing)} weights that are not among these {len(weights)}: "
                f"{', '.join(missing[:5])}{' ...' if missing[5:] else ''}."
            )
        model.name_or_path = model.config.name_or_path = str(source)
        return loaded if output_loading_info else model
