"""Weights that hold NaN or infinity."""

import logging
import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .errors import listed

logger = logging.getLogger(__name__)

Loaded = TypeVar("Loaded")


def is_finite(tensor: Tensor) -> bool:
    """Return whether no value is NaN or infinite.

    It looks at the smallest and the largest value only, which is twenty times faster than a mask.
    """
    return not tensor.numel() or all(math.isfinite(value.item()) for value in tensor.aminmax())


def warn_of_bad_weights(source: object, loaded: Loaded) -> Loaded:
    """Return a model that was loaded, alone or beside its loading info; log the names of weights that are not finite.

    Nothing is done without a source, since the readers of official files have refused such weights already.
    """
    model: Any = loaded[0] if isinstance(loaded, tuple) else loaded
    if source is not None and (names := [name for name, value in model.state_dict().items() if _is_bad(value)]):
        logger.warning(
            "%s: %s hold NaN or infinity, and so will embeddings. Take another copy of the weights.",
            source,
            listed(names),
        )
    return loaded


def _is_bad(value: Tensor) -> bool:
    """Return whether a weight is a plain tensor, in memory, with NaN or infinity."""
    is_plain = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided and not value.is_meta
    if not is_plain or not value.is_floating_point():
        return False
    return not is_finite(value if value.itemsize > 1 else value.float())  # float8 has no order in PyTorch
