"""What a file or folder is: family, geometry, dtypes, parameters, hash. Nothing in it is executed."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ..configuration import DualEncoderConfig
from .checkpoint import Checkpoint
from .layout import Layout, read_json
from .source import read_source

# safetensors' names of dtypes -> torch's
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32"}


def inspect_source(source: str | Path, **choices: Any) -> dict[str, Any]:
    """Describe an official checkpoint, or a transformers folder from its config.json and its safetensors headers.

    `source` and `choices` are those of `convert`: a name is downloaded.
    """
    folder = Path(source)
    if read_json(folder / "config.json", {}).get("model_type") and any(folder.glob("*.safetensors")):
        return _describe_folder(folder)
    return describe_checkpoint(read_source(source, **choices)[0])


def describe_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """JSON-ready: files with size and sha256, format, layout, family, geometry, dtypes (values of each), parameters."""
    tensors = ((str(tensor.dtype).removeprefix("torch."), tensor.numel()) for tensor in checkpoint.tensors.values())
    return {
        "format": checkpoint.format,
        "layout": _describe_layout(checkpoint.layout),
        "files": [_describe_file(file) for file in checkpoint.files],
        **_describe_config(checkpoint.config),
        **_describe_values(tensors),
    }


def _describe_layout(layout: Layout) -> str:
    """Its container and what is special about it: "npz, prefix params/, text scanned, text head"."""
    parts = [layout.container]
    for field in fields(layout):
        value, name = getattr(layout, field.name), field.name.replace("_", " ")
        if value is True:
            parts.append(name)
        elif isinstance(value, str) and value and field.name != "container":
            parts.append(f"{name} {value}")
    return ", ".join(parts)


def _describe_folder(folder: Path) -> dict[str, Any]:
    files = sorted(folder.glob("*.safetensors"))
    headers = [entry for file in files for name, entry in _safetensors_header(file).items() if name != "__metadata__"]
    tensors = ((_DTYPES.get(entry["dtype"], entry["dtype"]), math.prod(entry["shape"])) for entry in headers)
    return {
        "format": "transformers",
        "layout": "sharded" if len(files) > 1 else "one file",
        "files": [_describe_file(file) for file in files],
        **_describe_config(DualEncoderConfig.from_pretrained(folder)),
        **_describe_values(tensors),
    }


def _safetensors_header(file: Path) -> dict[str, Any]:
    """Its first eight bytes are the length of a JSON object, which follows: name -> dtype, shape, place."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError(f"Expected a safetensors file. {file} promises a header of {length} bytes and is shorter.")
        return json.loads(stream.read(length))


def _describe_file(file: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return {"name": file.name, "bytes": file.stat().st_size, "sha256": digest.hexdigest()}


def _describe_config(config: PreTrainedConfig) -> dict[str, Any]:
    shared = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    towers = {  # an image tower alone is its own configuration
        "vision": (getattr(config, "vision_config", config), ("image_size", "patch_size", *shared)),
        "text": (getattr(config, "text_config", None), ("max_position_embeddings", "vocab_size", *shared)),
    }
    geometry = {
        part: {name: getattr(c, name) for name in names} for part, (c, names) in towers.items() if c is not None
    }
    return {"family": config.model_type, "geometry": geometry}


def _describe_values(tensors: Iterable[tuple[str, int]]) -> dict[str, Any]:
    dtypes: Counter[str] = Counter()
    for dtype, values in tensors:
        dtypes[dtype] += values
    parameters = sum(values for dtype, values in dtypes.items() if "float" in dtype)  # old folders hold `position_ids`
    return {"dtypes": dict(sorted(dtypes.items())), "parameters": parameters}
