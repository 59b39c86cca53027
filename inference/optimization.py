"""What an optimised model has in another form, how it notices that somebody changed it, and the way back."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad

from ..runtime.packed import Packed
from .products import Product, is_plain

logger = logging.getLogger(__name__)

LOCK = threading.RLock()  # of what optimises and restores, which threads that meet a change do at the same time


@dataclass
class Slot:
    """Where the values of a parameter are: in some rows of a product."""

    parameter: Any
    product: Product
    rows: slice

    def dense(self) -> Tensor:
        values = self.product.dense()[self.rows].view(self.parameter.shape)
        return values if values.numel() == self.product.weight.numel() else values.clone()  # no view of others' values


@dataclass
class Change:
    """A module that became one of a subclass, with attributes; and what it was."""

    module: nn.Module
    new_class: type
    attributes: dict[str, Any]
    former_class: type
    former_attributes: dict[str, Any]

    def undo(self) -> None:
        """Undo it, except what somebody changed in the meantime."""
        if self.module.__class__ is self.new_class:
            self.module.__class__ = self.former_class
        own = vars(self.module)
        for name, value in self.attributes.items():
            if own.get(name) is value:
                del own[name]
                if name in self.former_attributes:
                    own[name] = self.former_attributes[name]


@dataclass(eq=False)
class Optimization:
    """What `optimize_for_inference` chose and did; its text says it in words."""

    choices: dict[str, dict[str, str]] = field(default_factory=dict)  # by tower
    milliseconds: dict[str, dict[str, float]] = field(default_factory=dict)  # of what was measured for them
    slots: list[Slot] = field(default_factory=list, repr=False)
    changes: list[Change] = field(default_factory=list, repr=False)
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

    def become(self, module: nn.Module, new_class: type, **attributes: Any) -> None:
        """Make a module an instance of a subclass of its class."""
        attributes["optimization"] = self
        if issubclass(new_class, OptimizedModule):
            attributes["left"] = []
        own = vars(module)
        former = {name: own[name] for name in attributes if name in own}
        self.changes.append(Change(module, new_class, attributes, module.__class__, former))
        own.update(attributes)
        module.__class__ = new_class

    def give_away(self, parameter: Tensor, product: Product, rows: slice) -> None:
        """Free the memory of a parameter whose values are in rows of a product."""
        self.slots.append(Slot(parameter, product, rows))
        Packed.pack(parameter)

    def finish(self) -> None:
        """Remember how modules are left."""
        for change in self.changes:
            if isinstance(change.module, OptimizedModule):
                change.module.left[:] = made_of(change.module)

    def is_as_left(self) -> bool:
        """Return whether everything is as `finish` left it."""
        modules = [change.module for change in self.changes]
        return all(module.is_as_left() for module in modules if isinstance(module, OptimizedModule))

    def restore(self) -> None:
        """Undo all of it. A thread that computes with the model meanwhile gets right results."""
        outside = temporarily_clear_interpreter_stack()  # of the transforms of torch.func
        with LOCK, outside, torch.inference_mode(False), torch.no_grad():
            while self.slots:  # before the modules change, so that nobody meets weights without values
                slot = self.slots[-1]
                slot.parameter.unpack(slot.dense())
                self.slots.pop()
            while self.changes:
                self.changes.pop().undo()
            for layer in self.compiled:
                vars(layer).pop("_compiled_call_impl", None)
            if vars(self.owner).get("optimization") is self:
                del vars(self.owner)["optimization"]

    def undo(self, cause: str) -> None:
        with LOCK:
            if self.changes:
                logger.warning("%s undoes optimize_for_inference(). Call it again afterwards.", cause)
            self.restore()


def made_of(module: nn.Module) -> list[Any]:
    """Return a module's class, how many attributes it has of its own, its parameters, and the same of its parts."""
    own = vars(module)
    found: list[Any] = [type(module), len(own), *own["_parameters"].values()]
    for part in own["_modules"].values():
        found.append(part)
        if part is not None:
            found += made_of(part)
    return found


def is_usual(module: Any, *classes: type) -> bool:
    """Return whether a module is of one of the classes itself, with its own methods."""
    own = type(module)
    return own in classes and not any(callable(getattr(own, name, None)) for name in vars(module))


def refuse_tracing() -> None:
    """Raise RuntimeError where a graph is made of what is computed."""
    is_traced = torch.compiler.is_compiling() or torch._C._is_tracing()
    # What is not traced for this very error still belongs to what is compiled.
    if is_traced or callable(torch._C._dynamo.eval_frame.get_eval_frame_callback()):
        raise RuntimeError(
            "A model cannot be compiled, exported or traced after optimize_for_inference(): its weights are in another "
            "layout. Call model.restore() first."
        )


def needs_gradients(*inputs: Any) -> bool:
    """Return whether the result for these inputs must know how it depends on them."""
    if forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)


class WithoutGradients:
    """A method of a module, computed without gradients until the optimisation is undone.

    It lies in the attributes of the module, which keeps its class, because the name of that is saved with the model.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name

    @property
    def __wrapped__(self) -> Any:
        """The method itself, of which `inspect.signature` tells the arguments."""
        return getattr(type(self.module), self.name).__get__(self.module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        optimization = vars(self.module).get("optimization")
        if optimization is None:
            return self.__wrapped__(*args, **kwargs)
        refuse_tracing()
        # With gradients, all is looked at beforehand: what would be noticed on the way had lost its gradients by then.
        if needs_gradients(*args, *kwargs.values()):
            optimization.undo("An input that requires gradients")
        elif torch.is_grad_enabled() and not (self.has_own_parameters() and optimization.is_as_left()):
            optimization.undo("A change of modules or parameters")
        if "optimization" not in vars(self.module):
            return self.__wrapped__(*args, **kwargs)
        with torch.no_grad():
            return self.__wrapped__(*args, **kwargs)

    def has_own_parameters(self) -> bool:
        """Return whether parameters are parameters, and not what `torch.func.functional_call` puts in their places."""
        return all(isinstance(parameter, nn.Parameter) for parameter in self.module.parameters())


class OptimizedModule(nn.Module):
    """Mixin of optimised modules: what needs the usual ones undoes the optimisation of the whole model."""

    optimization: Optimization
    left: list[Any]  # what it was made of

    def takes(self, x: Tensor) -> bool:
        """Return whether the faster way does what the usual one would do for `x`; undo it all where it never does."""
        refuse_tracing()
        if needs_gradients(x) or (torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())):
            self._undo("A call with gradients")
        elif self.training:  # without train(), which would have been noticed
            self._undo("Training mode")
        elif not vars(self).get("left"):  # another thread is optimising, or has just restored
            return False
        elif not self.is_as_left():
            self._undo(f"A change of {self._name()}")
        else:
            return is_plain(x)
        return False

    def is_as_left(self) -> bool:
        """Return whether it is made of what it was, as far as the faster way does not look at that itself."""
        left, now = vars(self).get("left", ()), made_of(self)
        return len(now) == len(left) and all(map(is_, now, left))

    def _name(self) -> str:
        owner = getattr(vars(self).get("optimization"), "owner", self)
        names = (name for name, module in owner.named_modules() if module is self)
        return next(names, type(self).__name__) or "the model"

    def _undo(self, cause: str) -> None:
        if (optimization := vars(self).get("optimization")) is not None:
            optimization.undo(cause)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        one = torch.ones(1, dtype=next((parameter.dtype for parameter in self.parameters()), None))
        new = fn(one)
        if new.dtype != one.dtype or new.device != one.device or new.item() != 1:
            self._undo("A change of device, dtype or weights")
        elif any(isinstance(parameter, Packed) for parameter in self._parameters.values()):
            return self
        return nn.Module._apply(self, fn, recurse)

    def train(self, mode: bool = True) -> Any:
        if mode:
            self._undo("train()")
        return nn.Module.train(self, mode)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        with LOCK:  # `restore` takes the slots away
            nn.Module._save_to_state_dict(self, destination, prefix, keep_vars)
            for name, parameter in self._parameters.items():
                for slot in getattr(vars(self).get("optimization"), "slots", ()):
                    if slot.parameter is parameter:
                        destination[prefix + name] = slot.dense()

    def _load_from_state_dict(self, *args: Any) -> None:
        self._undo("load_state_dict()")
        nn.Module._load_from_state_dict(self, *args)
