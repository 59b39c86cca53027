"""What callers pass to the encoders by mistake, explained before a tensor operation fails on it."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import wraps
from os import PathLike
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from transformers.utils.import_utils import is_tracing

from .finite import check_finite_embeds

IMAGE_INPUTS = ("pixel_values", "pixel_attention_mask", "spatial_shapes", "interpolate_pos_encoding", "packed")
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
_NAMES = {"image": IMAGE_INPUTS[0], "text": TEXT_INPUTS[0]}  # of the input that has to be there
_KNOWN = frozenset((*IMAGE_INPUTS, *TEXT_INPUTS, "check_finite"))
_CLOSE = 0.85  # of 1: "interpolate_pos_encodin" is closer than that to a known name, "decoder_attention_mask" is not

Kind = Literal["image", "text"]
Method = TypeVar("Method", bound=Callable[..., Any])


def checked(kind: Kind) -> Callable[[Method], Method]:
    """Return a decorator of `encode_image` or `encode_text`: it checks their inputs, and that the result is finite.

    With it they take `check_finite`: False leaves the result unchecked, True checks it even where that waits for an
    accelerator.
    """

    def decorate(method: Method) -> Method:
        @wraps(method)
        def encode(self: Any, *args: Any, check_finite: bool | None = None, **inputs: Any) -> Tensor:
            check_inputs(kind, args[0] if args else inputs.get(_NAMES[kind]), inputs, self)
            return check_finite_embeds(method(self, *args, **inputs), kind, check_finite)

        return encode  # type: ignore[return-value]

    return decorate


def check_inputs(kind: Kind, value: object, names: Iterable[str], model: Any) -> None:
    """Check the first input of `encode_image` or `encode_text` of a model, and the names of the others.

    Raises TypeError for an image or a text where tensors are expected, for the dictionary of a processor without `**`,
    for a tensor of another kind, and for a name that is nearly a known one. Other names are those of inputs that a
    model has no use for. Raises ValueError for ids outside of the vocabulary, and for values that are not there.
    """
    method = f"encode_{kind}"
    if not isinstance(value, Tensor):
        _check_value(method, kind, value)
    elif not is_tracing(value):
        _check_tensor(method, kind, value, model)
    for name in names:
        if name not in _KNOWN and (close := difflib.get_close_matches(name, _KNOWN, n=1, cutoff=_CLOSE)):
            raise TypeError(f"{method} has no input named {name}. Did you mean {close[0]}?")


def _check_value(method: str, kind: Kind, value: object) -> None:
    """Raise TypeError for what a processor has yet to read, and for all that it returns in one dictionary."""
    call = f"model.{method}(**processor({'images=images' if kind == 'image' else 'text=texts'}))"
    if isinstance(value, Mapping):
        raise TypeError(f"{method} takes the processor's tensors by their names, got all in one: {call}.")
    is_unread = isinstance(value, str | bytes | PathLike | list | tuple) or hasattr(value, "__array_interface__")
    if value is None or is_unread:
        raise TypeError(
            f"{method} takes {_NAMES[kind]}, a tensor that the processor makes, got {type(value).__name__}: {call}, or "
            f"model.encode({kind}s, processor) for any number of {kind}s."
        )


def _check_tensor(method: str, kind: Kind, value: Tensor, model: Any) -> None:
    """Raise TypeError or ValueError for a tensor that no layer can compute with."""
    name = _NAMES[kind]
    if value.layout != torch.strided:
        raise TypeError(f"{method} takes dense tensors, got a sparse one: pass {name}.to_dense().")
    if value.is_meta and model.device.type != "meta":
        raise ValueError(
            f"{method} got {name} on the device meta, which have no values, for a model on {model.device}."
        )
    if value.is_floating_point() and value.itemsize < 2:
        raise TypeError(f"{method} takes numbers of at least 16 bits, got {value.dtype}: pass {name}.float().")
    if model.dtype.is_floating_point and model.dtype.itemsize < 2:
        raise TypeError(
            f"PyTorch computes nothing with weights in {model.dtype}: load the model with dtype=torch.bfloat16, or "
            "move it with model.to(torch.bfloat16)."
        )
    if kind == "text":
        check_ids(model, value)


def check_ids(model: Any, input_ids: Tensor) -> None:
    """Raise TypeError for ids that are no whole numbers, and ValueError for some that are outside of the vocabulary.

    Values are looked at on the CPU alone, where that waits for nothing.
    """
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"input_ids must be whole numbers (torch.int64), got {input_ids.dtype}.")
    if input_ids.device.type != "cpu" or not input_ids.numel() or is_tracing(input_ids):
        return
    size = model.config.get_text_config().vocab_size
    with suppress(RuntimeError):  # inside torch.func.vmap there are no values to look at
        least, most = (int(end) for end in input_ids.aminmax())
        if least < 0 or most >= size:
            raise ValueError(
                f"input_ids must be from 0 to {size - 1}, for the model's vocabulary of {size:,}, got "
                f"{least if least < 0 else most}: take the processor of this model."
            )
