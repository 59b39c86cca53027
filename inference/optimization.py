"""The weights that an optimised model has in another layout, and the way back to the plain model."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .products import Product

logger = logging.getLogger(__name__)

ADDED = {"products", "rows", "optimization", "attention_choice", "encode_tokens"}  # attributes of optimised modules


@dataclass
class Slot:
    """Where the values of a parameter are: in rows of products, one after the other."""

    parameter: nn.Parameter
    places: list[tuple[Product, slice]]
    shape: torch.Size

    def dense(self) -> Tensor:
        return torch.cat([product.dense()[rows] for product, rows in self.places]).view(self.shape)


@dataclass(eq=False)
class Optimization:
    """What `optimize_for_inference` chose and did; its text says it in words."""

    choices: dict[str, dict[str, str]] = field(default_factory=dict)  # by tower
    milliseconds: dict[str, dict[str, float]] = field(default_factory=dict)  # of what was measured for them
    slots: list[Slot] = field(default_factory=list, repr=False)
    modules: list[tuple[nn.Module, type]] = field(default_factory=list, repr=False)  # and their former classes
    frozen: list[nn.Parameter] = field(default_factory=list, repr=False)
    compiled: list[nn.Module] = field(default_factory=list, repr=False)
    owner: Any = field(default=None, repr=False)

    def __str__(self) -> str:
        lines = []
        for tower, chosen in self.choices.items():
            measured = ", ".join(f"{name} {value:.2f} ms" for name, value in self.milliseconds.get(tower, {}).items())
            lines.append(
                f"{tower}: {', '.join(f'{what} {how}' for what, how in chosen.items())} ({measured or 'fixed'})"
            )
        return "\n".join(lines)

    def attach(self) -> None:
        """Show it as `model.optimization`, not as a part of the model."""
        vars(self.owner)["optimization"] = self

    def become(self, module: nn.Module, new_class: type, **values: Any) -> None:
        """Make a module an instance of a subclass of its class."""
        self.modules.append((module, module.__class__))
        module.__class__ = new_class
        vars(module).update(values, optimization=self)

    def give_away(self, parameter: Any, *places: tuple[Product, slice]) -> None:
        """Free the memory of a parameter, of which shape, dtype and device stay; its values are NaN."""
        self.slots.append(Slot(parameter, [*places], parameter.shape))
        parameter.data = torch.full((1,), torch.nan, dtype=parameter.dtype).expand(parameter.shape)

    def restore(self) -> None:
        for module, former in reversed(self.modules):
            for name in set(vars(module)) & ADDED:
                delattr(module, name)
            module.__class__ = former
        for slot in self.slots:
            slot.parameter.data = slot.dense()
        for layer in self.compiled:
            vars(layer).pop("_compiled_call_impl", None)
        for parameter in self.frozen:
            parameter.requires_grad_(True)
        vars(self.owner).pop("optimization", None)


class WithoutWeights(nn.Module):
    """Mixin of modules that gave weights away: what needs these undoes the optimisation of the whole model."""

    optimization: Optimization

    def _undo(self, cause: str) -> None:
        logger.warning("%s undoes optimize_for_inference(). Call it again afterwards.", cause)
        self.optimization.restore()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        one = torch.ones(1, dtype=next(self.parameters()).dtype)
        new = fn(one)
        if new.dtype == one.dtype and new.device == one.device and new.item() == 1:
            return self
        self._undo("A change of device, dtype or weights")
        return self._apply(fn, recurse)

    def train(self, mode: bool = True) -> Any:
        if not mode:
            return super().train(mode)
        self._undo("train()")
        return self.train(mode)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, parameter in self._parameters.items():
            for slot in self.optimization.slots:
                if slot.parameter is parameter:
                    destination[prefix + name] = slot.dense()

    def _load_from_state_dict(self, *args: Any) -> None:
        self._undo("load_state_dict()")
        self._load_from_state_dict(*args)
