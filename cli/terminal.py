"""Output of commands to the terminal: text, tables, progress, or JSON for programs."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it takes time to import, and most commands print without it
    from rich.console import Console


def quiet_libraries() -> None:
    """Turn off warnings, reports and progress bars of libraries, and huggingface_hub's reports about each retry.

    The messages of twinlens say what matters in them. Commands that use models call this when they run; it imports
    transformers, which takes a second.
    """
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


def print_json(value: object) -> None:
    """Print a value as indented JSON."""
    print(json.dumps(value, indent=2))


@contextmanager
def show_progress(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the current step on a terminal; in a pipe, or if `quiet`, it shows nothing."""
    if quiet or not sys.stderr.isatty():
        yield lambda step: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield lambda step: status.update(step)
