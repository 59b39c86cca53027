"""Adapters of peft: the model to which one belongs."""

import json
from os import PathLike
from pathlib import Path
from typing import Any

from transformers.utils import find_adapter_config_file, is_peft_available


def base_of_adapter(source: "str | PathLike[str] | None", hub_arguments: dict[str, Any]) -> str | None:
    """Return the name of the model to which an adapter of peft belongs, or None where `source` is no adapter alone."""
    if source is None or (file := find_adapter_config_file(source, **hub_arguments)) is None:
        return None
    if Path(source, "config.json").is_file():  # a model with an adapter, which is its own base
        return None
    if not is_peft_available():
        raise ImportError(f"{source} is an adapter, which needs peft: pip install peft.")
    if base := json.loads(Path(file).read_text(encoding="utf-8")).get("base_model_name_or_path"):
        return base
    raise ValueError(
        f"{source} is an adapter whose adapter_config.json names no base model. Load the model, then call its "
        f"load_adapter({str(source)!r})."
    )
