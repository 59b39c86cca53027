"""Facts about a checkpoint that the caller can state where its file does not: one object through all layers."""

import difflib
from collections.abc import MutableMapping
from typing import Any, Literal, TypedDict, TypeVar, get_args

from .errors import FormatError

Activation = Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"]
Value = TypeVar("Value", int, str)


class LoadOptions(TypedDict, total=False):
    """Keyword arguments of every function that reads a checkpoint; one that is missing or None is not stated.

    image_size: pixels per side, where whole patches do not fill the image (patch 14 at 384 pixels is a 27x27 grid).
    vision_activation: the activation of the image tower.
    vision_heads: the number of attention heads of the image tower.
    eos_token_id: the id at which CLIP's texts end, for a vocabulary with added tokens; 2 for the highest id of a text.
    """

    image_size: int | None
    vision_activation: Activation | None
    vision_heads: int | None
    eos_token_id: int | None


OPTION_NAMES = tuple(LoadOptions.__annotations__)


def check_options(options: LoadOptions) -> None:
    """Raise TypeError for a name that is no option, with the closest one, and ValueError for an unknown activation."""
    for name in options:
        if name not in OPTION_NAMES:
            close = difflib.get_close_matches(name, OPTION_NAMES, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"The options are {', '.join(OPTION_NAMES)}."
            raise TypeError(f"A checkpoint is read with no option called {name!r}. {hint}")
    if (activation := options.get("vision_activation")) not in (None, *get_args(Activation)):
        raise ValueError(f"vision_activation must be one of {', '.join(get_args(Activation))}, got {activation!r}.")


def pop_options(arguments: MutableMapping[str, Any]) -> LoadOptions:
    """Take the options out of keyword arguments that also hold other things."""
    options = {name: arguments.pop(name) for name in OPTION_NAMES if name in arguments}
    return LoadOptions(**options)  # type: ignore[typeddict-item]


def resolve_option(name: str, chosen: Value | None, stated: Value | None, meaning: str) -> Value:
    """Return what the file states, or else what the caller chose for the option `name`.

    Raises FormatError where neither says it, or where they differ; `meaning` is the name of the option in words.
    """
    flag = f"--{name.replace('_', '-')}"
    if stated is None:
        if chosen is None:
            raise FormatError(f"the file does not say {meaning}; pass {flag} ({name}=...).")
        return chosen
    if chosen not in (None, stated):
        raise FormatError(f"{flag} {chosen} was given, but {meaning} can only be {stated} in this file.")
    return stated
