"""Geometry that every format reads in the same way."""

import math
import re
from collections.abc import Iterable

from .table import FormatError


def number_of_layers(names: Iterable[str], pattern: str) -> int:
    """How many different numbers `pattern` captures at the start of `names`; at least 1, so that none is a fault."""
    return max(1, len({match[1] for name in names if (match := re.match(pattern, name))}))


def image_side(patches: int, patch: int, image_size: int | None) -> int:
    """Pixels a side. A file only shows whole patches; `image_size` may add the pixels that fill none (384 = 27 * 14 + 6)."""
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
