"""What of a module is pickled, and so makes it equal to another for `datasets`, which compares pickles."""

from collections import OrderedDict
from typing import Any

from transformers.utils import output_capturing


class PickledWithoutHooks:
    """The base of modules whose pickle is the same before and after hidden states or attention maps were captured.

    transformers installs its hooks when such outputs are first asked for, as local functions, which pickle refuses.
    """

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_forward_hooks"] = OrderedDict(
            (number, hook)
            for number, hook in state["_forward_hooks"].items()
            if getattr(hook, "__module__", None) != output_capturing.__name__
        )
        state.pop("_output_capturing_hooks_installed", None)  # a copy installs its own
        return state
