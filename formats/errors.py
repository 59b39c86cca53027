"""The errors of this room, and how the errors of libraries become them."""

from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from os import PathLike
from pathlib import Path
from pickle import UnpicklingError

from safetensors import SafetensorError

from ..messages import printable

_PANIC = "PanicException"  # of libraries in Rust; it is no Exception, and cannot be imported
_LONGEST_MESSAGE = 2000  # characters


class FormatError(ValueError):
    """A source that is not a checkpoint we can read; the message says what was expected, what was given, what to do."""


class SeveralModelsError(FormatError):
    """A file holds several models, or weights beside those of one, and does not say which are meant."""


def absolute_path(path: str | PathLike[str]) -> Path:
    """Return a path without `~` and links. Raises OSError for links in a circle, and for a `~` that is nobody's."""
    try:
        return Path(path).expanduser().resolve()
    except RuntimeError as error:
        raise OSError(f"{path} leads nowhere: {error}. Choose another path.") from error


@contextmanager
def readable_errors(source: str | PathLike[str]) -> Iterator[None]:
    """Turn every error that a library raises for a damaged source into a FormatError that names the source.

    Errors of the system and about missing packages stay as they are, and so do messages that name the source already.
    """
    try:
        yield
    except (OSError, ImportError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        if isinstance(error, UnpicklingError):  # PyTorch's advice would be to execute what is in the file
            reason = "its weights are damaged, or hold more than tensors; nothing in them was executed."
        elif isinstance(error, SafetensorError):
            reason = f"its weights are damaged: {error}"
        elif not isinstance(error, ValueError) or isinstance(error, UnicodeError | JSONDecodeError):
            reason = f"cannot be loaded: {type(error).__name__}: {error}"
        elif str(source) in str(error):
            raise
        else:
            reason = str(error)
        raise FormatError(f"{source}: {one_line(reason)}") from error


def one_line(error: object) -> str:
    """Return the message of an error, or a message, on one line of bounded length: libraries quote whole files."""
    line = " ".join(str(error)[: 4 * _LONGEST_MESSAGE].split())
    return printable(line if len(line) <= _LONGEST_MESSAGE else f"{line[:_LONGEST_MESSAGE]} ...")
