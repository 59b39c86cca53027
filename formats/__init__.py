"""Official checkpoint files: safe readers, and tables that turn them into transformers' names and back."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from ..configuration import DualEncoderConfig
from . import table
from .big_vision import BigVisionLayout
from .layout import Layout
from .openai import OpenAILayout
from .reader import read_tensors
from .table import FormatError
from .torch_file import write_archive

__all__ = [
    "BigVisionLayout",
    "Checkpoint",
    "FormatError",
    "Layout",
    "OpenAILayout",
    "is_checkpoint_file",
    "read_checkpoint",
    "to_official",
    "write_archive",
]

LAYOUTS: tuple[type[Layout], ...] = (OpenAILayout, BigVisionLayout)
# Files that are known but not converted: how a name in them starts, and what they are.
NOT_CONVERTED = {
    r"visual\.layer1\.": "an OpenAI CLIP with a ResNet",
    r"visual\.trunk\.": "an open_clip model with a timm image tower",
    r"text\.(transformer|token_embedding|text_projection)": "an open_clip model with a text tower of its own",
    r"module\.(visual|transformer|text)\.": "an open_clip training checkpoint",
    r"(vision_model|text_model)\.": "a weights file of transformers (load its folder instead)",
}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A sound official file: every name, shape and value was checked against the table of its layout."""

    path: Path
    format: str  # "openai" or "big_vision"
    tensors: dict[str, Tensor] = field(repr=False)  # weights under their official names, as stored
    layout: Layout
    config: DualEncoderConfig

    def state_dict(self) -> dict[str, Tensor]:
        """The weights in transformers' names and shapes and the file's dtypes; may share memory with `tensors`."""
        return table.to_transformers(self.layout.table(), self.tensors)


def is_checkpoint_file(source: Any) -> bool:
    """Whether `source` is an existing file, not a folder or a Hub id."""
    return isinstance(source, (str, PathLike)) and Path(source).is_file()


def read_checkpoint(path: str | PathLike[str], *, image_size: int | None = None) -> Checkpoint:
    """Read an official file without executing anything in it.

    `image_size` is the resolution in pixels where patches do not fill it (patch 14 at 384). Raises FormatError, with
    everything that is wrong, or FileNotFoundError.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file, expected an official checkpoint.")
    try:
        return _read(path, image_size)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


def to_official(state_dict: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The reverse of `Checkpoint.state_dict`: all that a file of this layout holds, integer buffers included.

    Raises FormatError with every name and shape that does not fit the layout.
    """
    return {**table.to_official(layout.table(), state_dict, layout.sizes), **layout.integers}


def _read(path: Path, image_size: int | None) -> Checkpoint:
    if not path.is_file():
        raise FormatError("this is a folder, expected the file of an official checkpoint.")
    container, tensors = read_tensors(path)
    layout = _find_layout(container, tensors)
    weights = {name: tensor for name, tensor in tensors.items() if name not in layout.integers}
    sizes, violations = table.solve(layout.table(), weights)
    if violations:
        raise FormatError(f"this is not a sound {layout.format} checkpoint: {'; '.join(violations)}.")
    layout = replace(layout, sizes=sizes)
    return Checkpoint(path, layout.format, weights, layout, layout.config(image_size))


def _find_layout(container: str, tensors: Mapping[str, Tensor]) -> Layout:
    for pattern, what in NOT_CONVERTED.items():
        if any(re.match(pattern, name) for name in tensors):
            raise FormatError(f"this is {what}; this version converts OpenAI's ViT CLIPs and big_vision's SigLIPs.")
    for candidate in LAYOUTS:
        if layout := candidate.of(container, tensors):
            return layout
    raise FormatError(
        f"expected the weights of an OpenAI ViT CLIP or a big_vision SigLIP, got {len(tensors)} tensors "
        f"({', '.join(list(tensors)[:3])} ...)."
    )
