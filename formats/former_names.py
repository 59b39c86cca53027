"""What a tower was called in transformers before 5.6, where a model such as `CLIPTextModel` held it as `text_model`.

Code of that time writes `model.text_model.encoder`; weights and adapters of that time have names with that prefix.
"""

import dis
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor

from .wrappers import without_former_prefix

Tower = TypeVar("Tower")


def former_module(tower: Tower) -> Tower:
    """Return the tower, as the value of a property with the name of the module that held it.

    Raises AttributeError when `hasattr` asks for that property. Libraries ask so to tell the models of that time, and
    then expect the prefix in the names of all modules, where these towers have none. It is `hasattr` that asks when the
    function that asks names it and is about to call something, rather than to load an attribute.
    """
    if torch.compiler.is_compiling():  # torch.compile does not trace access to frames
        return tower
    asking: FrameType | None = sys._getframe(2)
    while asking is not None and asking.f_code.co_name == "__getattr__":  # of a model around the tower, such as peft's
        asking = asking.f_back
    if asking is None or "hasattr" not in asking.f_code.co_names:
        return tower
    if dis.opname[asking.f_code.co_code[asking.f_lasti]].startswith("LOAD_"):
        return tower
    raise AttributeError


class AcceptsFormerNames:
    """Mixin of the towers: `load_state_dict` takes names with the former prefix too, of weights and of adapters."""

    base_model_prefix: str
    state_dict: Callable[[], dict[str, Tensor]]

    @classmethod
    def is_custom_code(cls) -> bool:
        """Return False: what transformers renames in files for its class of this name, it renames for this class too.

        A vision-language model around this tower then loads from files of that time, as most on the Hub are.
        """
        return False

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        adapter = next(reversed(getattr(self, "peft_config", {})), "")  # of those here, the one that peft loads
        own_names = self.state_dict() if adapter else ()
        names = without_former_prefix(state_dict, f"{prefix}{self.base_model_prefix}.", own_names, adapter)
        for former, own in names.items():
            state_dict[prefix + own] = state_dict.pop(former)
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]
