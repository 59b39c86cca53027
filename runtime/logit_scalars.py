"""The scale and the bias of the logits: single numbers that belong to a dual encoder itself, and to no layer of it."""

from os import PathLike
from typing import Any, TypeVar

from torch import Tensor
from transformers import PreTrainedModel

Model = TypeVar("Model", bound=PreTrainedModel)


def logit_scalars(model: Any) -> list[Tensor]:
    """Return the scale of a dual encoder's logits, a logarithm, and the bias of a family that has one.

    That is also between two calls of the model, when accelerate may have off-loaded them, or FSDP2 divided them, in
    which case all processes call this.
    """
    hook = getattr(model, "_hf_hook", None) if model.logit_scale.device.type == "meta" else None
    if hook is not None:
        hook.pre_forward(model)
    try:
        scalars = [model.logit_scale, model.logit_bias] if model.traits.has_logit_bias else [model.logit_scale]
        return [_whole(scalar) for scalar in scalars]
    finally:
        if hook is not None:
            hook.post_forward(model, None)


def shardable(model: Model) -> Model:
    """Make a dual encoder one that FSDP2 divides, in place, and return it: the single numbers among its own parameters,
    which FSDP2 refuses, get an axis.

    Call this before `fully_shard` or `accelerator.prepare`. The model computes the same, and `save_pretrained` writes
    the numbers as before. The modules that accelerate then wraps by default do not hold the input embeddings, which it
    wraps by themselves and, inside another wrapped module, cannot.
    """
    numbers = [name for name, parameter in model.named_parameters(recurse=False) if parameter.ndim == 0]
    for name in numbers:
        parameter = model.get_parameter(name)
        parameter.data = parameter.data.view(1)
    if numbers:
        model.numbers_with_an_axis = numbers
    embeddings = model.get_input_embeddings()
    around = {type(module).__name__ for module in model.modules() if embeddings in [*module.modules()][1:]}
    model._no_split_modules = [name for name in model._no_split_modules or () if name not in around]
    return model


class SavesNumbers:
    """Mixin of models whose saved folders are the same after `shardable`."""

    def save_pretrained(
        self: Any,
        save_directory: str | PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        if numbers := getattr(self, "numbers_with_an_axis", []):
            state_dict = {**(self.state_dict() if state_dict is None else state_dict)}
            state_dict |= {name: _whole(state_dict[name]).view(()) for name in numbers if name in state_dict}
        super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)  # type: ignore[misc]


def _whole(value: Tensor) -> Tensor:
    """Return all of a tensor, of which FSDP2 may have left each process a part."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value
