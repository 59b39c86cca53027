"""Parameters without values: what is left where an optimised model holds weights in another layout."""

from typing import Any

import torch
from torch import Tensor, nn

# What a parameter without values is asked for by those who count, move or save parameters, besides its attributes.
_METHODS = {
    *("detach", "dim", "element_size", "is_complex", "is_contiguous", "is_floating_point", "is_inference", "is_shared"),
    *("nelement", "numel", "register_hook", "register_post_accumulate_grad_hook", "requires_grad_", "size", "stride"),
    *("__len__", "as_subclass", "data_ptr", "get_device", "storage_offset", "untyped_storage"),
}


class Packed(nn.Parameter):
    """A parameter that has shape, dtype and device, and that refuses to be computed with: its values are elsewhere.

    It is the very object that the model's parameter was, and will be: an optimizer may hold it.
    """

    @classmethod
    def pack(cls, parameter: Any) -> None:
        """Free the memory of an `nn.Parameter`."""
        like = torch.full((1,), torch.nan, dtype=parameter.dtype).expand(parameter.shape)
        parameter.__class__ = cls  # first: another thread gets an error, and no NaN
        parameter.data = like

    def unpack(self, values: Tensor) -> None:
        """Make it a usual parameter of these values."""
        self.data = values
        self.__class__ = nn.Parameter  # type: ignore[assignment]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_attribute = func.__class__.__name__ == "method-wrapper"
        name = func.__self__.__name__ if is_attribute else func.__name__
        if not is_attribute and name not in _METHODS:
            raise RuntimeError(
                "Weights of a model are in another layout after optimize_for_inference(), and have no values to "
                f"compute with, compile or export ({name}). Call model.restore() first."
            )
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
            return result.as_subclass(cls) if type(result) is Tensor and name != "grad" else result

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _packed, (tuple(self.shape), self.dtype, self.requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Packed":
        return memo.setdefault(id(self), _packed(tuple(self.shape), self.dtype, self.requires_grad))

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        return f"Packed(shape={tuple(self.shape)}, dtype={self.dtype}, requires_grad={self.requires_grad})"


def _packed(shape: tuple[int, ...], dtype: torch.dtype, requires_grad: bool) -> Any:
    parameter = nn.Parameter(torch.empty(1, dtype=dtype).expand(shape), requires_grad)
    Packed.pack(parameter)
    return parameter
