"""The photograph that is part of the package, as it is and in other shapes."""

from functools import cache

import numpy as np
from PIL import Image

from twinlens.catalogue import PHOTOGRAPH


@cache
def _cat() -> Image.Image:
    with Image.open(PHOTOGRAPH) as image:
        return image.convert("RGB")


def cat() -> Image.Image:
    """Return a photograph of a cat, 451x300."""
    return _cat().copy()


def cat_levels() -> np.ndarray:
    """Return the same as an array, (300, 451, 3), 0 to 255."""
    return np.array(_cat())


PHOTOGRAPHS = {
    "landscape": cat(),
    "portrait": cat().transpose(Image.Transpose.ROTATE_90),
    "square": cat().crop((100, 0, 400, 300)),
    "large": cat().resize((800, 533)),
    "grey": cat().convert("L"),
}
