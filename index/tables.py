"""Tables of an index, written by `layout.write_table`, and read within limits: they say where rows come from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..messages import listed, shown

_COLUMNS = (
    "row (INT64 NONE)",
    "path (BYTE_ARRAY STRING)",
    "hash (BYTE_ARRAY STRING)",
    "size (INT64 NONE)",
)  # Parquet's
_TEXTS = ["path", "hash"]
_LONGEST_TEXT = 1 << 15  # bytes; of an address, or the path of a tar and a name in it


def import_pyarrow() -> Any:
    """Return pyarrow with its Parquet module. Raises ImportError that names the extra."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"An index needs pyarrow ({error}): pip install '.[embed]' in the checkout of twinlens."
        ) from error
    return pyarrow


def check_table(file: Path, rows: int) -> None:
    """Raise ValueError for a table with another number of rows, or columns that are not those of an index."""
    footer = read_footer(file)
    if footer.num_rows != rows:
        raise ValueError(f"{file} has {footer.num_rows} rows, expected {rows} as the vectors.")
    columns = [footer.schema.column(place) for place in range(footer.num_columns)]
    found = [f"{shown(column.path)} ({column.physical_type} {column.logical_type.type})" for column in columns]
    if sorted(found) != sorted(_COLUMNS):
        raise ValueError(f"{file} has the columns {listed(found, ', ')}, expected {', '.join(_COLUMNS)}.")
    size = sum(footer.row_group(group).total_byte_size for group in range(footer.num_row_groups))
    if size > (rows + 1) * 2 * _LONGEST_TEXT:
        raise ValueError(f"{file} has {size:,} bytes in {rows:,} rows: its texts are too long.")


def read_columns(file: Path, columns: Sequence[str]) -> Any:
    """Return columns as a table of pyarrow. Raises ValueError where values are missing, or texts too long.

    Equal texts are held once until their length is known: a small file can have a long one a million times.
    """
    arrow = import_pyarrow()
    # `read_table` would start threads and a library of data sets, which takes 50 MB more.
    with arrow.parquet.ParquetFile(file, read_dictionary=_TEXTS) as opened:
        table = opened.read(columns=list(columns), use_threads=False)
    for name in columns:
        if table[name].null_count:
            raise ValueError(f"{file} is damaged: it lacks values in {name}.")
        for chunk in table[name].chunks if name in _TEXTS else ():
            if any(len(text.as_buffer()) > _LONGEST_TEXT for text in chunk.dictionary):
                raise ValueError(f"{file} has a {name} of more than {_LONGEST_TEXT:,} bytes.")
    texts = {name: arrow.string() if name in _TEXTS else table[name].type for name in columns}
    return table.cast(arrow.schema(texts))


def read_footer(file: Path) -> Any:
    """Return what the end of a table says of all of it. Raises ValueError where it cannot be read."""
    if not file.is_file():
        raise ValueError(f"{file} is missing.")
    arrow = import_pyarrow()
    try:
        return arrow.parquet.read_metadata(file)
    except arrow.ArrowInvalid as error:
        raise ValueError(f"{file} is damaged or cut off: {error}") from error
