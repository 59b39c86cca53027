"""What happens around a model while it runs: outputs computed when read, remembered texts, pickles, clients' names."""

from ..configuration import check_versions  # first: what is installed may be too old for all else
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
from .logit_scalars import SavesNumbers, logit_scalars, shardable
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
    "SavesNumbers",
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
    "logit_scalars",
    "shardable",
    "states_of",
    "without_pooled",
]
