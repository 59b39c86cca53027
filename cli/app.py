"""The application: every command by its name, in the order in which `twinlens --help` lists them."""

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from .checkpoints import inspect_command, list_command
from .classification import classify_command
from .conversion import convert_command, export_command, push_command, verify_command
from .demo import demo_command
from .training import train_command

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Read official CLIP, SigLIP and SigLIP 2 checkpoints safely, convert them with measured proof, and use them.",
    epilog="The exit code is 0 for success, 1 for a failure, and 2 for a wrong command or option.",
)

COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_command,
    "inspect": inspect_command,
    "convert": convert_command,
    "verify": verify_command,
    "export": export_command,
    "push": push_command,
    "classify": classify_command,
    "train": train_command,
    "demo": demo_command,
}
for name, command in COMMANDS.items():
    app.command(name)(command)


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
    try:
        app()
    except (OSError, ValueError, ImportError) as error:
        print("twinlens: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(1)
