"""Outputs whose `last_hidden_state` is computed when somebody reads it: most use the pooled output alone."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from inspect import signature
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers.utils import ModelOutput
from transformers.utils.generic import maybe_autocast

Output = TypeVar("Output", bound=ModelOutput)


class DeclaresOutput:
    """Mixin of models that inherit `forward`: its annotation names the `output_class` of each of them.

    Clients read the fields of a model's outputs from there.
    """

    output_class: type[ModelOutput]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if vars(cls).get("output_class") is None:
            return
        inherited: Any = cls.forward  # type: ignore[attr-defined]
        parts = inherited.__globals__, inherited.__name__, inherited.__defaults__, inherited.__closure__
        forward: Any = FunctionType(inherited.__code__, *parts)
        forward.__kwdefaults__, forward.__dict__ = inherited.__kwdefaults__, dict(inherited.__dict__)
        forward.__doc__, forward.__module__ = inherited.__doc__, inherited.__module__
        forward.__annotations__ = {**inherited.__annotations__, "return": cls.output_class}
        forward.__signature__ = signature(inherited).replace(return_annotation=cls.output_class)
        cls.forward = forward  # type: ignore[attr-defined]


def states_of(output: Any) -> Tensor:
    """Return `last_hidden_state` of an output, or the tensor that a client's function in place of a module returned."""
    return output if isinstance(output, Tensor) else output.last_hidden_state


def later(device_type: str, compute: Callable[[], Any]) -> Callable[[], Tensor]:
    """Return a function for the `last_hidden_state` that `compute` returns, computed as it would be now.

    That is without gradients and autocast, and in inference mode only if this is called in it.
    """
    is_inference = torch.is_inference_mode_enabled()

    def last_hidden_state() -> Tensor:
        with torch.inference_mode(is_inference), torch.no_grad(), maybe_autocast(device_type, enabled=False):
            return compute().last_hidden_state

    return last_hidden_state


def deferred(output_class: type[Output], **values: Any) -> Output:
    """Return an output of `output_class` in which `last_hidden_state` may also be what `later` returns.

    Whatever reads it, under any name, index or in any copy, finds the tensor, computed once with the weights of that
    time. From then on the output is a plain one.
    """
    output: Any = output_class(**values)
    if callable(values["last_hidden_state"]):
        output.__class__ = _deferred_class(output.__class__)
    return output


def without_pooled(output: ModelOutput) -> dict[str, Any]:
    """Return what `output` holds besides `pooler_output`, for an output of another class; nothing is computed."""
    return {name: value for name, value in OrderedDict.items(output) if name != "pooler_output"}


def names_in(output: ModelOutput) -> set[str]:
    """Return the names of what `output` holds; nothing is computed."""
    return {*OrderedDict.keys(output)}


def plain_class(output: ModelOutput) -> type[ModelOutput]:
    """Return the class of `output` once it has been read."""
    output_class = type(output)
    return output_class.__bases__[0] if output_class.__module__ == __name__ else output_class


@cache
def _deferred_class(plain: Any) -> type[ModelOutput]:
    """Return a subclass of the output class `plain` whose instances become instances of `plain` when they are read."""
    free = {field.name for field in fields(plain)} - {"last_hidden_state"}
    free |= {"__class__", "__dataclass_fields__", "_replace_old_cache_name"}  # which ModelOutput's own methods read

    def read(output: Any) -> Any:
        # Not through attributes of the output: in another thread it may have become plain in the meantime.
        state = OrderedDict.get(output, "last_hidden_state")
        if callable(state):
            ModelOutput.__setitem__(output, "last_hidden_state", state())
        output.__class__ = plain
        return output

    def get_attribute(output: Any, name: str) -> Any:
        return object.__getattribute__(output if name in free else read(output), name)

    def get_item(output: Any, key: Any) -> Any:
        name = key if isinstance(key, str) else tuple(output)[key]
        return OrderedDict.__getitem__(output, name) if name in free else read(output)[key]

    methods = {
        "__getattribute__": get_attribute,
        "__getitem__": get_item,
        "__eq__": lambda output, other: read(output) == other,
        "__ne__": lambda output, other: read(output) != other,
    }
    return type(plain.__name__, (plain,), {"__module__": __name__, **methods})
