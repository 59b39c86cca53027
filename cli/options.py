"""Options that several commands share, and options that are the fields of a dataclass.

Typer makes the arguments and options of a command from the parameters of a function, as `inspect.signature` lists them.
A command that ends in `**options` receives further options there: `with_parameters` adds them to its signature.
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, TypeVar

import typer

Command = TypeVar("Command", bound=Callable[..., None])

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]
Model = Annotated[
    str,
    typer.Argument(
        help="A converted folder, an official checkpoint file, a name from `twinlens list`, or a Hub id.",
        metavar="MODEL",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is already there.")]


def option(name: str, value_type: Any, *, default: Any = None, help: str) -> inspect.Parameter:
    """Return a parameter that Typer shows as `--name`, with its default; a bool also has `--no-name`."""
    return _parameter(name, value_type, default, typer.Option(help=help))


def argument(name: str, value_type: Any, *, default: Any = None, help: str) -> inspect.Parameter:
    """Return a parameter that Typer shows as a positional argument, which may be left out."""
    return _parameter(name, value_type, default, typer.Argument(help=help, metavar=name.upper(), show_default=False))


def _parameter(name: str, value_type: Any, default: Any, shown_as: Any) -> inspect.Parameter:
    annotation = Annotated[value_type, shown_as]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def with_parameters(added: Iterable[inspect.Parameter]) -> Callable[[Command], Command]:
    """Return a decorator that adds parameters to a command, which receives them in its `**options`.

    They come before the keyword-only parameters of the command itself. Python's own `inspect.signature` returns the
    `__signature__` of a function that has one (PEP 362), and so does Typer.
    """

    def add(command: Command) -> Command:
        own = inspect.signature(command).parameters.values()
        positional = [p for p in own if p.kind is p.POSITIONAL_OR_KEYWORD]
        keyword_only = [p for p in own if p.kind is p.KEYWORD_ONLY]
        signature = inspect.Signature([*positional, *added, *keyword_only])
        command.__signature__ = signature  # type: ignore[attr-defined]
        return command

    return add


# Facts that a checkpoint file may not state about itself: the keyword arguments that `inspect_source`, `convert` and
# `verify` pass on to the readers.
with_load_options = with_parameters(
    [
        option(
            "image_size",
            int | None,
            help="Pixels per side of the images, for a file whose patches do not fill them: "
            "patch 14 at 384 pixels has a grid of 27x27 patches, which looks like 378 pixels.",
        ),
        option(
            "vision_activation",
            Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"] | None,
            help="The activation function of the image tower, for an open_clip or timm file that does not say it.",
        ),
        option(
            "vision_heads",
            int | None,
            help="The number of attention heads of the image tower, for a file that does not say it.",
        ),
        option(
            "eos_token_id",
            int | None,
            help="The id at which CLIP's texts end, for a file with added tokens. By default it is the highest id of a "
            "text, as in the code of OpenAI and open_clip.",
        ),
    ]
)
