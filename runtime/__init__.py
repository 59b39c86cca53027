"""What happens around a model while it runs: outputs computed when they are read, remembered texts, what is pickled."""

from .devices import device_named
from .inputs import check_inputs
from .outputs import deferred, later, without_pooled
from .pickling import PickledWithoutHooks, has_hooks
from .text_cache import TextCache

__all__ = [
    "PickledWithoutHooks",
    "TextCache",
    "check_inputs",
    "deferred",
    "device_named",
    "has_hooks",
    "later",
    "without_pooled",
]
