"""What of a module is pickled, and so makes it equal to another for `datasets`, which compares pickles."""

from collections import OrderedDict
from typing import Any

from torch import nn
from torch.nn.modules.module import _has_any_global_hook
from transformers.utils import output_capturing


class PickledWithoutHooks:
    """The base of modules whose pickle is the same before and after hidden states or attention maps were captured.

    transformers installs its hooks when such outputs are first asked for, as local functions, which pickle refuses.
    """

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_forward_hooks"] = OrderedDict(
            (number, hook) for number, hook in state["_forward_hooks"].items() if is_foreign(hook)
        )
        state.pop("_output_capturing_hooks_installed", None)  # a copy installs its own
        state.pop("_compiled_call_impl", None)  # it computes with the weights of this module
        return state


def is_foreign(hook: Any) -> bool:
    """Return whether a hook is not one of those by which transformers captures hidden states and attention maps."""
    return getattr(hook, "__module__", None) != output_capturing.__name__


def has_hooks(module: nn.Module) -> bool:
    """Return whether somebody watches the calls of `module`, or of one inside it, by hooks of his own."""
    return _has_any_global_hook() or _has_own_hooks(module)


def _has_own_hooks(module: nn.Module) -> bool:
    hooks = module._forward_hooks  # not those of `modules()`, which takes longer than all else here
    if module._forward_pre_hooks or (hooks and any(map(is_foreign, hooks.values()))):
        return True
    return any(map(_has_own_hooks, filter(None, module._modules.values())))
