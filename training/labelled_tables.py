"""Images with the names of their classes, one or several an image, from tables."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from ..messages import quoted
from .sources import IMAGE_COLUMNS
from .tables import (
    TABLE_DELIMITERS,
    Column,
    check_image,
    check_no_surplus,
    locate_image,
    read_fields,
    read_rows,
)

LABEL_COLUMNS = ("labels", "label", "classes", "class", "categories", "category", "tags", "tag")
SEPARATOR = ";"  # of the classes in a field of a .csv or .tsv file


class LabelledTable(NamedTuple):
    """What a table says: images, and of each the names of its classes, none of them twice."""

    images: list[str]  # paths and URLs
    labels: list[tuple[str, ...]]  # an image may have none


def load_labels(
    file: str | os.PathLike[str], *, image_column: str | None = None, label_column: str | None = None
) -> LabelledTable:
    """Return the images in a .csv, .tsv or .jsonl file with the classes of each.

    In .jsonl the classes are a list, or one name; in .csv and .tsv they are separated by semicolons, or a list in JSON.
    Paths of images are relative to the file. Columns are found by their usual names unless given. Raises
    FileNotFoundError for a file that is not there, and ValueError, with the row, for one that is not such a table.
    """
    path = Path(file)
    if path.suffix.lower() not in TABLE_DELIMITERS or not path.is_file():
        problem = "is not there" if not path.exists() else "is a folder" if path.is_dir() else "is none"
        raise FileNotFoundError(
            f"Expected a table of labels ({', '.join(TABLE_DELIMITERS)}), got {path}, which {problem}."
        )
    columns = (Column("image", IMAGE_COLUMNS, image_column), Column("label", LABEL_COLUMNS, label_column))
    table = LabelledTable([], [])
    for number, row in read_rows(path, columns):
        where = f"row {number} of {path}"
        fields, (image, label) = read_fields(row, columns, where)
        try:
            check_no_surplus(fields)
            table.images.append(locate_image(check_image(fields[image]), path)[0])
            table.labels.append(_read_labels(fields[label], splits=isinstance(row, dict)))
        except ValueError as error:
            raise ValueError(f"R{where[1:]}: {error}") from error
    if not any(table.labels):
        raise ValueError(f"Expected images with classes, got {path} without any.")
    return table


def _read_labels(value: Any, *, splits: bool) -> tuple[str, ...]:
    """Return the classes in a field; a text is one class, unless it `splits`."""
    labels = [value] if isinstance(value, str | int) else value
    if splits:
        text = (value or "").strip()
        labels = _parse_list(text) if text.startswith("[") else [part for part in text.split(SEPARATOR) if part.strip()]
    if isinstance(labels, list):  # a number is that of a class
        labels = [str(label) if type(label) is int else label for label in labels]
    if not isinstance(labels, list) or not all(isinstance(label, str) and label.strip() for label in labels):
        raise ValueError(f"Expected the name of a class or a list of names, got {quoted(value)}.")
    return tuple(dict.fromkeys(label.strip() for label in labels))


def _parse_list(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"Expected a list of names, got one nested too deep: {quoted(text)}.") from error
