"""Output of commands to the terminal: text, tables, progress, or JSON for programs."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..messages import printable

_ERROR_NUMBER = re.compile(r"\[Errno -?\d+\] ")  # of the operating system, which says it in words too
LONGEST_MESSAGE = 2000  # characters; a library can quote a whole file

if TYPE_CHECKING:  # it takes time to import, and most commands print without it
    from rich.console import Console


def quiet_libraries() -> None:
    """Turn off warnings, reports and progress bars of libraries, and huggingface_hub's reports about each retry.

    The messages of twinlens say what matters in them. Commands that use models call this when they run; it imports
    transformers, which takes a second.
    """
    from ..configuration import check_versions

    check_versions()  # what is installed may be too old for all else
    import transformers
    from huggingface_hub.utils import logging as hub_logging

    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=r"(?!twinlens\.)")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    hub_logging.set_verbosity_error()


def console() -> Console:
    """Return a rich console for standard output, which does not wrap lines in a pipe."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def print_line(text: str, *, error: bool = False) -> None:
    """Print one line of text, to standard error for an `error`: names of files and labels in it may hold anything."""
    print(printable(text), file=sys.stderr if error else sys.stdout)


def print_json(value: object) -> None:
    """Print a value as indented JSON."""
    print(json.dumps(value, indent=2))


def print_json_line(value: object) -> None:
    """Print a value as JSON on one line, at once: whoever reads it need not wait for the end."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def one_line(message: str) -> str:
    """Return a message as one line without numbers of errors, which a terminal prints as it is.

    A name in it may hold characters that a terminal obeys.
    """
    line = " ".join(_ERROR_NUMBER.sub("", message).split())
    if len(line) > LONGEST_MESSAGE:
        line = f"{line[: LONGEST_MESSAGE // 2]} ... {line[-LONGEST_MESSAGE // 2 :]}"
    return printable(line)


def name_options(message: str, command: Any) -> str:
    """Return a message about parameters in Python, such as `batch_size`, with the options of a command in their place.

    `image_size=48` can also be what a file states, and is an option only where that was given.
    """
    for parameter in command.params if command is not None else ():
        name, option = parameter.name, parameter.opts[0]
        if not option.startswith("--"):
            continue
        if option in sys.argv:
            message = re.sub(rf"(?<![\w./'\"-]){name}=(?=\S)", f"{option} ", message)
        word = rf"(?<![\w./'\"-]){name}(?![\w/='\"-]|\.\w)" if "_" in name else rf"^{name}(?= must be)"
        message = re.sub(word, option, message)
    return message


def align_points(numbers: Sequence[str]) -> list[str]:
    """Return numbers as texts of one width, with their decimal points below each other."""
    parts = [re.fullmatch(r"(-?\d*)(.*)", number).groups() for number in numbers]  # type: ignore[union-attr]
    before, after = (max((len(part[side]) for part in parts), default=0) for side in (0, 1))
    return [f"{left:>{before}}{right:<{after}}" for left, right in parts]


@contextmanager
def show_progress(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the current step on a terminal; in a pipe, or if `quiet`, it shows nothing."""
    if quiet or not sys.stderr.isatty():
        yield lambda step: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield lambda step: status.update(step)
