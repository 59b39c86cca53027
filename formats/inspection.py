"""Descriptions of files and folders: family, geometry, dtypes, parameters, hash. Nothing in them is executed."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from typing_extensions import Unpack

from ..configuration import TextConfig, is_single_tower
from .checkpoint import Checkpoint, read_checkpoint
from .errors import FormatError, readable_errors
from .folder_files import describe_file
from .layout import Layout
from .mapped_file import StoredTensor, described
from .options import LoadOptions, check_options
from .reader import read_weights, weight_files
from .small_files import read_json
from .source import read_source
from .transformers_folder import check_image_tower, read_config


def inspect_source(source: str | Path, **options: Unpack[LoadOptions]) -> dict[str, Any]:
    """Describe an official checkpoint or a transformers folder, whose weights are read and checked.

    `source` and `options` are those of `read_source`: a name of the catalogue is downloaded.
    """
    check_options(options)
    folder = Path(source)
    with readable_errors(folder):
        if read_json(folder / "config.json", {}).get("model_type") and any(folder.glob("*.safetensors")):
            return _describe_folder(folder)
    return describe_checkpoint(read_source(source, **options)[0])


def describe_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return, ready for JSON, the files with size and sha256, format, layout, family, geometry, dtypes and parameters.

    `dtypes` counts the values of each dtype.
    """
    return {
        "format": checkpoint.format,
        "layout": _describe_layout(checkpoint.layout),
        "files": [describe_file(file) for file in checkpoint.files],
        **_describe_config(checkpoint.config),
        **_describe_values(described(checkpoint.tensors)),
    }


def _describe_layout(layout: Layout) -> str:
    """Return the container and the traits of a layout: "npz, prefix params/, text scanned, text head"."""
    parts = [layout.container]
    for field in fields(layout):
        value, name = getattr(layout, field.name), field.name.replace("_", " ")
        if value is True:
            parts.append(name)
        elif isinstance(value, str) and value and field.name != "container":
            parts.append(f"{name} {value}")
    return ", ".join(parts)


def _describe_folder(folder: Path) -> dict[str, Any]:
    """Describe a folder of transformers, whose weights must be those that its config.json describes."""
    config = read_config(folder)
    if isinstance(config, TextConfig):
        raise FormatError(f"{folder} holds a text tower alone, expected a dual encoder or an image tower.")
    if is_single_tower(config):
        files, tensors = weight_files(folder), read_weights(folder)
        check_image_tower(config, tensors)
        values = described(tensors)
    else:
        checkpoint = read_checkpoint(folder)
        files = [*checkpoint.files]
        values = {**described(checkpoint.tensors), **described(checkpoint.layout.integer_buffers)}
    return {
        "format": "transformers",
        "layout": "sharded" if len(files) > 1 else "one file",
        "files": [describe_file(file) for file in files],
        **_describe_config(config),
        **_describe_values(values),
    }


def _describe_config(config: PreTrainedConfig) -> dict[str, Any]:
    shared = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    fields = {
        "vision": ("image_size", "num_patches", "patch_size", *shared, "depths"),
        "text": ("max_position_embeddings", "vocab_size", *shared),
    }
    geometry = {}
    for part, names in fields.items():
        key = f"{part}_config"  # a tower alone is its own configuration
        if (tower := config if config.base_config_key == key else getattr(config, key, None)) is not None:
            geometry[part] = {name: getattr(tower, name) for name in names if hasattr(tower, name)}
    return {"family": config.model_type, "geometry": geometry}


def _describe_values(tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """Count the values of tensors."""
    dtypes: Counter[str] = Counter()
    parameters = 0
    for name, (dtype, shape, _) in tensors.items():
        count = math.prod(shape)
        dtypes[str(dtype).removeprefix("torch.")] += count
        # Old folders hold `position_ids`, batch norms their statistics.
        if dtype.is_floating_point and not name.endswith((".running_mean", ".running_var")):
            parameters += count
    return {"dtypes": dict(sorted(dtypes.items())), "parameters": parameters}
