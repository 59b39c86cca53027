"""The files of an index: embeddings that are mapped into memory, and where each of them comes from.

    index.json                        what all of it is; it is written last, so an index without it is unfinished
    embeddings-00000.safetensors      one tensor "embeddings" (rows of the shard, dim): unit vectors
    index-00000.parquet               row (in the whole index), path, hash (SHA-256 of the file), size (bytes)
    skipped.jsonl                     path and reason of every image that could not be read, if there were any

Rows are in the order of the source. A shard may have no rows.
"""

import bisect
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from ..formats.small_files import MAX_JSON, parse_json, read_json
from ..messages import quoted
from .tables import check_table, import_pyarrow, read_columns, read_footer

FORMAT, VERSION = "twinlens-index", 1
INDEX_FILE, JOB_FILE, SKIPPED_FILE = "index.json", "job.json", "skipped.jsonl"
TENSOR = "embeddings"
DTYPES = {"F32": "float32", "F16": "float16"}  # safetensors' names and ours
_SHARDS_OF_PATHS_KEPT = 8  # whose paths stay in memory for the next look-up

Embeddings = npt.NDArray[np.float32] | npt.NDArray[np.float16]


@dataclass(frozen=True)
class ShardContent:
    """The rows of one shard: embeddings (rows, dim), and of each row the path, hash and size of its file."""

    embeddings: Embeddings
    paths: Sequence[str]
    hashes: Sequence[str]  # SHA-256, 64 hexadecimal digits
    sizes: Sequence[int]  # bytes


def embeddings_file(folder: Path, shard: int) -> Path:
    """Return the file with the vectors of a shard."""
    return folder / f"embeddings-{shard:05}.safetensors"


def table_file(folder: Path, shard: int) -> Path:
    """Return the file with the origins of a shard's rows."""
    return folder / f"index-{shard:05}.parquet"


def write_shard(folder: Path, shard: int, content: ShardContent, first_row: int) -> None:
    """Write a shard, whose rows are numbered from `first_row`. The vectors come last: with them, all of it is there."""
    from safetensors.numpy import save_file

    write_table(table_file(folder, shard), content.paths, content.hashes, content.sizes, first_row)
    embeddings = np.ascontiguousarray(content.embeddings)
    write_whole(embeddings_file(folder, shard), lambda partial: save_file({TENSOR: embeddings}, partial))


def write_table(file: Path, paths: Sequence[str], hashes: Sequence[str], sizes: Sequence[int], first_row: int) -> None:
    """Write where the rows of a shard come from."""
    arrow = import_pyarrow()
    columns = {
        "row": arrow.array(range(first_row, first_row + len(paths)), arrow.int64()),
        "path": arrow.array(paths, arrow.string()),
        "hash": arrow.array(hashes, arrow.string()),
        "size": arrow.array(sizes, arrow.int64()),
    }
    write_whole(file, lambda partial: arrow.parquet.write_table(arrow.table(columns), partial))


def number_rows(folder: Path, shards: int) -> int:
    """Number the rows of all shards one after the other, where they are not so yet; return how many there are."""
    rows = 0
    for shard in range(shards):
        file = table_file(folder, shard)
        footer = read_footer(file)
        if footer.num_rows and footer.row_group(0).column(0).statistics.min != rows:
            columns = import_pyarrow().parquet.read_table(file).to_pydict()
            write_table(file, columns["path"], columns["hash"], columns["size"], rows)
        rows += footer.num_rows
    return rows


def write_index(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Write `index.json`: the index is complete. `metadata` has model, weights, dim, dtype, rows, shards, and more."""
    head = {"format": FORMAT, "version": VERSION, "kind": "image"}
    write_json(folder / INDEX_FILE, {**head, **metadata})


def write_json(file: Path, value: object) -> None:
    """Write a JSON file that is there whole or not at all."""
    write_whole(file, lambda partial: Path(partial).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8"))


def write_whole(file: Path, write: Callable[[str], object]) -> None:
    """Let `write` make a file beside `file`, and rename it when the disk holds it.

    Its name is always the same, so that whoever does the work again after a kill overwrites what was left.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        mode = _mode_of_new_files(partial)
        write(str(partial))
        partial.chmod(mode)  # safetensors lets nobody but the owner read its files
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        partial.replace(file)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, Exception):
            raise OSError(f"Writing {file} failed: {error}") from error
        raise


def _mode_of_new_files(file: Path) -> int:
    file.touch()
    return file.stat().st_mode


@dataclass(frozen=True)
class Index:
    """The embeddings of a job, mapped into memory: nothing is read before it is used.

    `shards` are arrays (rows of the shard, dim) of float32 or float16, `metadata` is the content of index.json.
    """

    folder: Path
    metadata: Mapping[str, Any]
    shards: list[Embeddings] = field(repr=False)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "Index":
        """Open the index in a folder.

        Raises FileNotFoundError for a folder that is no index or is not finished, and ValueError for an index of
        another version, and for one with shards that are missing or cut off.
        """
        path = Path(folder)
        metadata = _read_metadata(path)
        shards = [_map_embeddings(embeddings_file(path, shard), metadata) for shard in range(metadata["shards"])]
        if (rows := sum(map(len, shards))) != metadata["rows"]:
            raise ValueError(f"{path / INDEX_FILE} promises {metadata['rows']} rows, and the shards have {rows}.")
        for number, shard in enumerate(shards):
            check_table(table_file(path, number), len(shard))
        return cls(path, metadata, shards)

    @property
    def rows(self) -> int:
        """The number of images."""
        return int(self.metadata["rows"])

    @property
    def dim(self) -> int:
        """The length of a vector."""
        return int(self.metadata["dim"])

    @property
    def paths(self) -> "Paths":
        """The path of each row; those of a shard are read when one of them is asked for."""
        return Paths(self)

    def read_table(self, shard: int, columns: Sequence[str] = ("row", "path", "hash", "size")) -> Any:
        """Return columns of a shard as a table of pyarrow."""
        return read_columns(table_file(self.folder, shard), columns)


class Paths(Sequence[str]):
    """The paths of an index by row, as a sequence that reads a shard's when they are needed."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._ends = [*accumulate(map(len, index.shards))]  # the row after the last one of each shard
        self._kept: dict[int, Any] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        number = range(len(self))[row]  # counts from the end below 0, and raises IndexError
        shard = bisect.bisect_right(self._ends, number)
        column = self._column(shard)
        return str(column[number - self._ends[shard] + len(column)])

    def __iter__(self) -> Iterator[str]:
        for shard in range(len(self._ends)):
            yield from self._column(shard).to_pylist()

    def _column(self, shard: int) -> Any:
        if shard not in self._kept:
            while len(self._kept) >= _SHARDS_OF_PATHS_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[shard] = self._index.read_table(shard, ["path"])["path"].combine_chunks()
        return self._kept[shard]


def _read_metadata(folder: Path) -> dict[str, Any]:
    file = folder / INDEX_FILE
    if not file.is_file():
        if (folder / JOB_FILE).is_file():
            raise FileNotFoundError(
                f"{folder} is an index that is not finished: run the same `twinlens embed` again, and it goes on."
            )
        what = "is no index, it has no index.json" if folder.is_dir() else "is not there"
        raise FileNotFoundError(f"{folder} {what}, expected a folder that `twinlens embed` wrote.")
    try:
        metadata = read_json(file)
        is_index = metadata["format"] == FORMAT
    except (ValueError, KeyError):
        is_index = False
    if not is_index:
        raise ValueError(f"{file} is not that of an index: expected a JSON object with the format {FORMAT!r}.")
    if metadata.get("version") != VERSION:
        raise ValueError(f"{file} has version {quoted(metadata.get('version'))}, expected {VERSION}.")
    numbers = [metadata.get(name) for name in ("rows", "dim", "shards")]
    if (
        not all(type(number) is int and number >= 0 for number in numbers)
        or metadata.get("dtype") not in [*DTYPES.values()]
        or not isinstance(metadata.get("model"), str)
    ):
        raise ValueError(
            f"{file} is damaged: expected rows, dim and shards as numbers, dtype and model, got {quoted(metadata)}."
        )
    return dict(metadata)


def _map_embeddings(file: Path, metadata: Mapping[str, Any]) -> Embeddings:
    """Map the tensor of a safetensors file. Raises ValueError where it is not what the metadata say."""
    if not file.is_file():
        raise ValueError(f"{file} is missing: the index has {metadata['shards']} shards.")
    try:
        dtype, shape, start = _tensor_place(file)
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise ValueError(f"{file} is damaged or cut off.") from error
    if dtype != metadata["dtype"] or len(shape) != 2 or shape[1] != metadata["dim"]:
        raise ValueError(
            f"{file} has vectors {shape} of {dtype}, expected (rows, {metadata['dim']}) of {metadata['dtype']}."
        )
    length = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if start + length != file.stat().st_size:
        raise ValueError(f"{file} is cut off: it has {file.stat().st_size} bytes, expected {start + length}.")
    if not length:
        return np.empty(shape, dtype)
    return np.memmap(file, dtype, "r", offset=start, shape=shape)


def _tensor_place(file: Path) -> tuple[str, tuple[int, ...], int]:
    """Return dtype, shape and the first byte of the tensor in a safetensors file."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        entry = parse_json(stream.read(min(length, MAX_JSON + 1)), file)[TENSOR]
    return DTYPES.get(entry["dtype"], entry["dtype"]), tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]
