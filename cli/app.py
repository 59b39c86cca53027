"""The application: every command by its name, in the order in which `twinlens --help` lists them."""

import inspect
import os
import re
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from .averaging import average_command
from .checkpoints import inspect_command, list_command
from .classification import classify_command
from .conversion import convert_command, export_command, push_command, verify_command
from .demo import demo_command
from .deployment import onnx_command
from .embedding import embed_command
from .evaluation import evaluate_command
from .explanation import explain_command
from .location import locate_command
from .search import search_command
from .terminal import name_options, one_line
from .training import train_command
from .web import app_command

TRACEBACK = "TWINLENS_TRACEBACK"  # an environment variable
_STANDARD_ERRORS = (OSError, ValueError, ImportError)  # what this package raises for something that the user can mend
_IN_A_WORKER = "Original Traceback (most recent call last)"


class ReadableFailures(TyperGroup):
    """Ends a command that fails with one line on stderr and the exit code 1, whatever was raised."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            _fail(str(error) or "interrupted.", 130)
        # typer's own exceptions, for a wrong option or an exit, are RuntimeErrors that have an exit code.
        except Exception as error:
            if hasattr(error, "exit_code") or os.environ.get(TRACEBACK):
                raise
            if isinstance(error, BrokenPipeError):  # the reader of our output has gone, as `head` does
                raise
            _fail(name_options(_describe(error), self.get_command(ctx, ctx.invoked_subcommand or "")), 1)


def _describe(error: Exception) -> str:
    if _IN_A_WORKER in str(error):  # of a DataLoader, which puts a traceback into the message
        return str(error).strip().splitlines()[-1]
    if isinstance(error, _STANDARD_ERRORS) and str(error):
        return str(error)
    if isinstance(error, MemoryError):
        return f"Out of memory: {error or 'no more could be allocated'}."
    return (
        f"Unexpected {type(error).__name__}: {str(error).strip() or 'without a message'} "
        f"(set {TRACEBACK}=1 to see where, and report it as a fault of twinlens.)"
    )


def _fail(message: str, code: int) -> NoReturn:
    over = "\r\x1b[K" if sys.stderr.isatty() else ""  # a live line, and the ^C behind it
    print(f"{over}twinlens: {one_line(message)}", file=sys.stderr)
    raise typer.Exit(code)


app = typer.Typer(
    cls=ReadableFailures,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # its tables cut the names of options at 80 columns
    pretty_exceptions_enable=False,
    help="Read official CLIP, SigLIP and SigLIP 2 checkpoints safely, convert them with measured proof, and use them.",
    epilog="The exit code is 0 for success, 1 for a failure, and 2 for a wrong command or option. "
    f"A failure is one line; with the environment variable {TRACEBACK}=1 it is Python's traceback.",
)


def _paragraphs(command: Callable[..., None]) -> str:
    """Return the documentation of a command with each paragraph, or step of a list, on one line, as wide as that is.

    A list begins with the mark by which click keeps its lines.
    """
    text = re.sub(r"(?<!\n)\n(?!\n|\d\. )", " ", inspect.getdoc(command) or "")
    return re.sub(r"^(?=1\. )", "\b\n", text, flags=re.MULTILINE)


COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_command,
    "inspect": inspect_command,
    "convert": convert_command,
    "verify": verify_command,
    "export": export_command,
    "onnx": onnx_command,
    "push": push_command,
    "classify": classify_command,
    "explain": explain_command,
    "locate": locate_command,
    "embed": embed_command,
    "search": search_command,
    "app": app_command,
    "evaluate": evaluate_command,
    "train": train_command,
    "average": average_command,
    "demo": demo_command,
}
for name, command in COMMANDS.items():
    described = _paragraphs(command)
    app.command(name, help=described, short_help=described.partition("\n")[0])(command)


def print_version(asked: bool) -> None:
    """Print the version and exit, if the option was given."""
    if asked:
        from .._version import __version__

        print(f"twinlens {__version__}")
        raise typer.Exit


@app.callback()
def common_options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Handle the options that come before the name of a command."""


def main() -> None:
    """Run the command line. It exits with 0; 1 and one line on stderr after a failure; 2 for a wrong option."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name or a label may have characters that the terminal lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # what it holds may be all that is printed
    except OSError as error:
        _end_without_output(error)


def _end_without_output(error: OSError) -> NoReturn:
    """Exit with 1 where standard output takes no more: with one line for a full disk, for a pipe without a reader none.

    What it still holds goes nowhere: Python would try once more, and print what comes of it.
    """
    if os.environ.get(TRACEBACK):
        raise error
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    was_said = isinstance(error.__context__, SystemExit) and error.__context__.code
    if not was_said and not isinstance(error, BrokenPipeError):
        print(f"twinlens: {one_line(str(error))}", file=sys.stderr)
    raise SystemExit(1) from None
