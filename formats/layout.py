"""What a format has to say about its files, and the geometry that every format reads in the same way."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

from torch import Tensor

from ..configuration import DualEncoderConfig
from .table import FormatError, Row

LayoutType = TypeVar("LayoutType", bound="Layout")


@dataclass(frozen=True, kw_only=True)
class Layout(ABC):
    """What differs between two files of one format, and is needed to write one back."""

    format: ClassVar[str]

    container: str  # "torchscript", "torch", "safetensors" or "npz"
    image_layers: int
    text_layers: int
    sizes: Mapping[str, int] = field(default_factory=dict)  # what `table.solve` found
    integers: Mapping[str, Tensor] = field(default_factory=dict, compare=False)  # buffers that are not weights

    @classmethod
    @abstractmethod
    def of(cls: type[LayoutType], container: str, tensors: Mapping[str, Tensor]) -> LayoutType | None:
        """The layout of a file, None if it is not of this format. Raises FormatError for its unsupported variants."""

    @abstractmethod
    def table(self) -> list[Row]:
        """All rows, with full names."""

    @abstractmethod
    def config(self, image_size: int | None = None) -> DualEncoderConfig:
        """The configuration that `sizes` amounts to. Raises FormatError where they contradict each other."""


def number_of_layers(names: Iterable[str], pattern: str) -> int:
    """How many different numbers `pattern` captures in `names`; at least 1, so that a file without layers lacks one."""
    return max(1, len({match[1] for name in names if (match := re.match(pattern, name))}))


def image_side(patches: int, patch: int, image_size: int | None) -> int:
    """Pixels a side; files only show whole patches, `image_size` also has those that fill none (384 = 27 * 14 + 6)."""
    grid = math.isqrt(patches)
    if grid < 1 or grid * grid != patches:
        raise FormatError(f"expected image positions on a square grid, got {patches} of them.")
    if image_size is None:
        return grid * patch
    if image_size // patch != grid:
        raise FormatError(
            f"image_size={image_size} makes {image_size // patch} patches of {patch} pixels a side, but the file has "
            f"positions for {grid}; give an image size from {grid * patch} to {(grid + 1) * patch - 1}."
        )
    return image_size
