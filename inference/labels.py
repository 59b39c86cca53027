"""Labels in words: from an option or a file, and the check that every use of them makes."""

import csv
import os
from collections.abc import Iterable

from ..messages import describe_encoding, quoted

_MOST_CHARACTERS = 1 << 24  # of a file with labels


def read_labels(option: str) -> list[str]:
    """Return the labels in "a cat,a dog", or in "@FILE" those of a text file, one on each line.

    Spaces around a label and empty ones are left out; a label in double quotes may contain commas. A line of a file is
    a label as it is, with commas and `#`; files are UTF-8, with or without a byte order mark, with the ends of lines of
    any system. Raises OSError for a file that cannot be read, ValueError for one that is not text and for a quotation
    mark without its partner.
    """
    parts = _read_lines(option[1:]) if option.startswith("@") else _split_at_commas(option)
    labels = [part.strip() for part in parts if part.strip()]
    if not labels:
        raise ValueError(f'Expected labels such as --labels "a cat,a dog", got none in {quoted(option)}.')
    return labels


def check_labels(labels: Iterable[str]) -> list[str]:
    """Return the labels as a list of plain strings. Raises ValueError unless there are some and all are texts."""
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        raise ValueError(f"Expected a list of labels, got {'the text ' * isinstance(labels, str)}{labels!r}.")
    labels = list(labels)
    if not labels:
        raise ValueError("Expected at least one label, got none.")
    if wrong := [label for label in labels if not isinstance(label, str) or not label.strip()]:
        raise ValueError(f"Expected labels in words, got {quoted(wrong[0])}.")
    return [str(label) for label in labels]  # NumPy's strings are of a class of its own


def _split_at_commas(option: str) -> list[str]:
    """Return the fields of a line of CSV."""
    try:
        return next(csv.reader([" ".join(option.splitlines())], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise ValueError(
            "Expected labels between commas, those with commas in double quotes such as 'a cat,\"a dog, asleep\"', "
            f"got {quoted(option)}: a quotation mark has no partner at the end of its label. "
            "--label takes any text as it is."
        ) from error


def _read_lines(file: str) -> list[str]:
    try:
        with open(os.path.expanduser(file), encoding="utf-8-sig") as text:  # not Path.is_file: a pipe is no file
            if len(content := text.read(_MOST_CHARACTERS + 1)) > _MOST_CHARACTERS:
                raise ValueError(f"{file} has more than {_MOST_CHARACTERS:,} characters, expected labels.")
            return content.split("\n")
    except OSError as error:
        raise type(error)(f"Expected a text file with a label on each line, got {file!r}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"Expected labels, one on each line, got {file}, which {describe_encoding(error)}") from error
