"""Tables of images with what belongs to them, row by row: .csv, .tsv and .jsonl files."""

import csv
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, AnyStr, NamedTuple, TypeAlias

from ..catalogue.addresses import is_address
from ..messages import describe_encoding, listed, quoted
from ..processing.image_input import local_path

TABLE_DELIMITERS = {".csv": ",", ".tsv": "\t", ".jsonl": None}
MAX_LINE = 1 << 24  # characters
OTHER_DELIMITERS = ("\t", ";", ",", "|")  # open_clip writes .csv files with tabs, spreadsheets some with semicolons

Row: TypeAlias = "Mapping[str | None, Any] | bytes"  # fields by column, those beyond the header under None; a JSON line


class Column(NamedTuple):
    """A column to find in a table: by the name that the caller gave, or by one of its usual names."""

    kind: str
    usual: Sequence[str]
    requested: str | None = None


def choose_columns(names: Sequence[str], columns: Sequence[Column], where: str) -> list[str]:
    """Return the names of the columns that are in a table. Raises ValueError that lists the columns there are."""
    chosen = []
    for kind, usual, requested in columns:
        name = requested or next((name for name in usual if name in names), None)
        if name is None or name not in names:
            expected = f"named {quoted(requested)}" if requested else f"with the {kind}, such as {usual[0]!r},"
            raise ValueError(
                f"Expected a column {expected} in {where}, got {listed(map(quoted, names), ', ') or 'none'}. "
                f"Name it with {kind}_column."
            )
        chosen.append(name)
    return chosen


def read_rows(file: Path, columns: Sequence[Column]) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a table with their numbers from 1 on: of a .jsonl file the lines as they are.

    The delimiter is the one that separates the columns in the first line.
    """
    usual = TABLE_DELIMITERS[file.suffix.lower()]
    if usual is None:
        with file.open("rb") as json_lines:
            yield from ((number, line) for number, line in enumerate(_lines(json_lines, file), 1) if line.strip())
        return
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            header = lines.readline(MAX_LINE)
            delimiter = _choose_delimiter(header, usual, columns)
            yield from enumerate(
                csv.DictReader(itertools.chain([header], _lines(lines, file)), delimiter=delimiter, strict=True), 1
            )
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} {describe_encoding(error)}") from error
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{file} is not a sound {file.suffix} file: {error}") from error


def _lines(file: IO[AnyStr], path: Path) -> Iterator[AnyStr]:
    """Yield the lines of a file. Raises ValueError for one that is no line of a table but would fill the memory."""
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise ValueError(f"{path} has a line of more than {MAX_LINE:,} characters; it is no table.")
        yield line


def read_fields(row: Row, columns: Sequence[Column], where: str) -> tuple[dict[str | None, Any], list[str]]:
    """Return a row by its columns, and the names of those that were asked for. Raises ValueError with the row."""
    fields = _parse_json_line(row, where) if isinstance(row, bytes) else dict(row)
    return fields, choose_columns([name for name in fields if name is not None], columns, where)


def check_no_surplus(fields: Mapping[str | None, Any]) -> None:
    """Raise ValueError for a row with more fields than the header."""
    if any(surplus := fields.get(None, ())):
        raise ValueError(
            f"Expected as many fields as in the header, got {quoted(surplus[-1])} after them. Quote captions."
        )


def check_image(image: Any) -> str:
    """Return the path or URL in the image column. Raises ValueError for anything else."""
    if not isinstance(image, str) or not image:
        raise ValueError(f"Expected the path of an image, got {quoted(image)}.")
    return image


def locate_image(image: str, file: Path) -> tuple[str, bool]:
    """Return what to open for an image in a table, and whether it is a file here; paths are relative to the table."""
    if is_address(image) or image.lower().startswith("data:"):
        return image, False
    return str(file.parent / local_path(image)), True


def _choose_delimiter(header: str, usual: str, columns: Sequence[Column]) -> str:
    """Return the delimiter that separates the columns in the first line of a table."""
    for delimiter in (usual, *OTHER_DELIMITERS):
        try:
            choose_columns(next(csv.reader([header], delimiter=delimiter, strict=True), []), columns, "the table")
        except (ValueError, csv.Error):
            continue
        return delimiter
    return usual


def _parse_json_line(line: bytes, where: str) -> dict[str | None, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"R{where[1:]} {describe_encoding(error)}") from error
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise ValueError(f"R{where[1:]} is no JSON object but {quoted(line.decode('utf-8-sig').strip())}.")
    return row


def has_columns(file: Path, columns: Sequence[Column]) -> bool:
    """Return whether the first row of a table has all the columns. Raises ValueError for a file that is no table."""
    number, row = next(read_rows(file, columns), (0, {}))
    try:
        read_fields(row, columns, f"row {number} of {file}")
    except ValueError:
        return False
    return True
