"""Adapters of peft: the model to which one belongs."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from transformers.utils import find_adapter_config_file, is_peft_available

from ..messages import quoted
from .errors import FormatError
from .small_files import check_settings, read_json

_MAX_RANK = 1 << 14


def base_of_adapter(source: "str | PathLike[str] | None", hub_arguments: dict[str, Any]) -> str | None:
    """Return the name of the model to which an adapter of peft belongs, or None where `source` is no adapter alone.

    Raises FormatError for settings in a folder that are too large to be read, those of a model included.
    """
    check_settings(source, hub_arguments.get("subfolder"))
    if source is None or (file := find_adapter_config_file(source, **hub_arguments)) is None:
        return None
    if Path(source, "config.json").is_file():  # a model with an adapter, which is its own base
        return None
    if not is_peft_available():
        raise ImportError(f"{source} is an adapter, which needs peft: pip install peft.")
    config = read_json(Path(file), {})
    _check_ranks(config)
    base = config.get("base_model_name_or_path")
    if base and isinstance(base, str):
        return base
    raise ValueError(
        f"{source} is an adapter whose adapter_config.json names no base model. Load the model, then call its "
        f"load_adapter({str(source)!r})."
    )


def _check_ranks(config: Mapping[str, Any]) -> None:
    """Raise FormatError for a rank that no adapter has: peft would make matrices of that size."""
    patterns = config.get("rank_pattern")
    ranks = [config.get("r"), *(patterns.values() if isinstance(patterns, dict) else ())]
    if wrong := [rank for rank in ranks if rank is not None and not (type(rank) is int and 1 <= rank <= _MAX_RANK)]:
        raise FormatError(f"adapter_config.json has the rank {quoted(wrong[0])}, expected 1 to {_MAX_RANK:,}.")
