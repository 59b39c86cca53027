"""What happens around a model while it runs: outputs computed when read, remembered texts, pickles, clients' names."""

from .client_names import (
    AttentionNames,
    DualEncoderNames,
    EmbeddingNames,
    LayerNames,
    TextTowerNames,
    UnsplitModules,
)
from .devices import device_named
from .finite import check_finite_rows
from .inputs import check_ids, checked
from .outputs import DeclaresOutput, deferred, later, states_of, without_pooled
from .pickling import PickledWithoutHooks, has_hooks
from .text_cache import TextCache

__all__ = [
    "AttentionNames",
    "DeclaresOutput",
    "DualEncoderNames",
    "EmbeddingNames",
    "LayerNames",
    "PickledWithoutHooks",
    "TextCache",
    "TextTowerNames",
    "UnsplitModules",
    "check_finite_rows",
    "check_ids",
    "checked",
    "deferred",
    "device_named",
    "has_hooks",
    "later",
    "states_of",
    "without_pooled",
]
