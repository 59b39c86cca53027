"""What callers pass to the encoders by mistake, explained before a tensor operation fails on it."""

import difflib
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Literal

from torch import Tensor

IMAGE_INPUTS = ("pixel_values", "pixel_attention_mask", "spatial_shapes", "interpolate_pos_encoding", "packed")
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
_KNOWN = frozenset((*IMAGE_INPUTS, *TEXT_INPUTS))
_CLOSE = 0.85  # of 1: "interpolate_pos_encodin" is closer than that to a known name, "decoder_attention_mask" is not


def check_inputs(kind: Literal["image", "text"], value: object, names: Iterable[str]) -> None:
    """Check the first input of `encode_image` or `encode_text`, and the names of the others.

    Raises TypeError for an image or a text where tensors are expected, for the dictionary of a processor without `**`,
    and for a name that is nearly a known one. Other names are those of inputs that a model has no use for.
    """
    method = f"encode_{kind}"
    if not isinstance(value, Tensor):
        _check_value(method, kind, value)
    for name in names:
        if name not in _KNOWN and (close := difflib.get_close_matches(name, _KNOWN, n=1, cutoff=_CLOSE)):
            raise TypeError(f"{method} has no input named {name}. Did you mean {close[0]}?")


def _check_value(method: str, kind: str, value: object) -> None:
    """Raise TypeError for what a processor has yet to read, and for all that it returns in one dictionary."""
    call = f"model.{method}(**processor({'images=images' if kind == 'image' else 'text=texts'}))"
    if isinstance(value, Mapping):
        raise TypeError(f"{method} takes the processor's tensors by their names, got all in one: {call}.")
    if isinstance(value, str | bytes | PathLike | list | tuple) or hasattr(value, "__array_interface__"):
        what = "pixel_values" if kind == "image" else "input_ids"
        raise TypeError(
            f"{method} takes {what}, a tensor that the processor makes, got {type(value).__name__}: {call}, or "
            f"model.encode({kind}s, processor) for any number of {kind}s."
        )
