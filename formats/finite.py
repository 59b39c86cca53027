"""Weights that hold NaN or infinity."""

import math

from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Return whether no value is NaN or infinite.

    A sum with such a value is none of the finite ones, and is as fast as memory. Where a sum of finite values is
    infinite, the smallest and the largest value decide.
    """
    if not tensor.numel() or math.isfinite(tensor.sum().item()):
        return True
    return all(math.isfinite(value.item()) for value in tensor.aminmax())
