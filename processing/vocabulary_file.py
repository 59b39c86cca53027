"""Files with a vocabulary, which may be anybody's: what is checked before a library gets them."""

import base64
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock

MAX_JSON = 64 << 20  # bytes; Gemma's tokenizer.json has 34 million
MAX_MODEL = 16 << 20  # bytes; Gemma's and mT5's SentencePiece models have 4 million
LONGEST_PIECE = 256  # characters; a library that walks down a tree of characters overflows its stack at 100,000
MOST_PIECES = 1_000_000
_MUTED = RLock()
_LONG_VALUES = (b"precompiled_charsmap", b"Regex")  # what may be long, by its name


def check_file(path: str | Path, most_bytes: int) -> None:
    """Raise ValueError for what is no ordinary file, as a pipe or a device is, or larger than a vocabulary is."""
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(f"{path}: no such file, expected one with a vocabulary.")
    if not file.is_file():
        raise ValueError(f"Expected a file with a vocabulary, got {path}, which is none.")
    if (size := file.stat().st_size) > most_bytes:
        raise ValueError(f"{path} has {size:,} bytes, expected a vocabulary of at most {most_bytes:,}.")


@contextmanager
def _without_messages_of_panics() -> Iterator[None]:
    """Send what is written to the descriptor of standard error nowhere, for a short while and one at a time.

    Where the library for vocabularies panics, it prints its stack there, beside the exception that it raises.
    """
    with _MUTED, open(os.devnull, "wb") as nowhere:
        try:
            error = os.dup(2)
        except OSError:  # there is none
            yield
            return
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(error, 2)
            os.close(error)


@contextmanager
def readable_vocabulary(path: object, kind: str) -> Iterator[None]:
    """Turn whatever is raised into a ValueError that says that a file is not of this kind.

    `tokenizers` raises plain Exceptions, and where its own code panics a PanicException, which is none.
    """
    try:
        with _without_messages_of_panics():
            yield
    except (KeyboardInterrupt, SystemExit, MemoryError, FileNotFoundError, PermissionError):
        raise
    except BaseException as error:
        raise ValueError(f"{path} is not {kind}: {' '.join(str(error)[:500].split())}") from error


def check_pieces(content: bytes) -> None:
    """Raise ValueError for a `tokenizer.json` with a text that is far longer than a piece.

    A table of spellings in base64 and a regular expression may be long. Texts are told by their quotes, which is
    several times faster than reading the JSON.
    """
    parts = content.replace(b'\\"', b"").split(b'"')
    for number, part in enumerate(parts):
        if parts[max(number - 2, 0)] == b"precompiled_charsmap":
            _check_charsmap(part)
        if len(part) > 4 * LONGEST_PIECE and parts[max(number - 2, 0)] not in _LONG_VALUES and part.strip():
            raise ValueError(f"it has a piece of {len(part):,} bytes, expected {4 * LONGEST_PIECE:,} at most")


def _check_charsmap(text: bytes) -> None:
    """Raise ValueError for a table of spellings that promises more than it has: a library would make room for it."""
    size = int.from_bytes(base64.b64decode(text[:8])[:4], "little")
    if size > len(text):
        raise ValueError(f"its table of spellings promises {size:,} bytes and has fewer than {len(text):,}")
