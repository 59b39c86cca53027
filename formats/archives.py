"""Zip archives that may be forged, and the arrays of NumPy in them."""

import math
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Literal
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..messages import shown
from .errors import FormatError
from .mapped_file import MappedFile, StoredTensor, StoredTensors

_MAX_UNPACKED_RATIO = 2  # unpacked bytes per byte of the file; weights hardly compress
_MAX_DIRECTORY = 8 << 20  # bytes of a zip's directory, 80 for an entry: a hundred times those of the largest checkpoint
# The record at the end of a zip begins so, and has 22 bytes and a comment. With the size of the directory after
# 12 bytes; in large archives another one has it after 40.
_END, _MAX_END, _LARGE_END = b"PK\x05\x06", 22 + 65_535 + 100, b"PK\x06\x06"
_AT_ONCE = 1 << 20  # bytes
_MAX_HEADER = 12 + 10_000  # bytes; NumPy reads no longer ones


@contextmanager
def open_archive(path: Path) -> Iterator[ZipFile]:
    """Open a zip whose names differ and whose content is not far larger than it is. Raises FormatError for others."""
    with path.open("rb") as file:
        _check_directory(file)
        with ZipFile(file) as archive:
            names = archive.namelist()
            if len(set(names)) != len(names):
                raise FormatError("the archive has two entries of one name, so it is not clear what it holds.")
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > _MAX_UNPACKED_RATIO * path.stat().st_size:
                raise FormatError(
                    f"the archive unpacks to {unpacked:,} bytes, far more than it has; weights do not do that."
                )
            yield archive


def _check_directory(file: IO[bytes]) -> None:
    """Refuse a directory that would take long to read, before `ZipFile` makes an object of every entry."""
    file.seek(-min(_MAX_END, file.seek(0, os.SEEK_END)), os.SEEK_END)
    end = file.read()
    sizes = [
        int.from_bytes(end[place + at : place + at + length], "little")
        for place, at, length in ((end.rfind(_END), 12, 4), (end.rfind(_LARGE_END), 40, 8))
        if place >= 0
    ]
    if sizes and min(sizes) > _MAX_DIRECTORY:
        raise FormatError(f"the archive has a directory of {min(sizes):,} bytes, expected {_MAX_DIRECTORY:,} at most.")


def read_entry(archive: ZipFile, entry: ZipInfo) -> bytearray:
    """Return the bytes of an entry, whose checksum is compared, in memory once."""
    content = bytearray(entry.file_size)  # `open_archive` has compared the sum of these with the file
    view, start = memoryview(content), 0
    with archive.open(entry) as file:
        while length := file.readinto(view[start : start + _AT_ONCE]):  # type: ignore[attr-defined]
            start += length
    if start < len(content):
        raise FormatError(f"{shown(entry.filename)} has {start:,} of {len(content):,} bytes.")
    return content


def read_npz(archive: ZipFile, path: Path) -> Mapping[str, Tensor]:
    """Return the arrays of a .npz file, which stay there if they are not compressed."""
    mapped = MappedFile(path)
    memory = mapped.memory()  # once for the headers of all
    large = [entry for entry in archive.infolist() if entry.file_size > _AT_ONCE]
    with ThreadPoolExecutor() as pool:  # a checksum is slower than the disk, and leaves Python's lock alone
        checked = pool.map(partial(_check_sum, archive), large)
        # By one thread: NumPy's headers go through `ast`, whose state Python 3.11 shares among all.
        arrays = {
            entry.filename.removesuffix(".npy"): _find_array(mapped, memory, archive, entry)
            for entry in archive.infolist()
        }
        list(checked)
    return StoredTensors(arrays)


def _find_array(mapped: MappedFile, memory: mmap.mmap, archive: ZipFile, entry: ZipInfo) -> StoredTensor:
    """Read the header of an entry of a .npz file; the array stays there, or is held in memory if it is compressed."""
    if not entry.filename.endswith(".npy"):
        raise FormatError(f"{shown(entry.filename)} is not a NumPy array.")
    with archive.open(entry) as file:
        start = file.read(_AT_ONCE + 1)  # of a small entry all, whose checksum is compared at its end
    shape, fortran_order, dtype, header = _read_header(start)
    if dtype.hasobject:
        raise FormatError("Object arrays cannot be loaded: they hold pickles, which can run code.")
    if header + math.prod(shape) * dtype.itemsize != entry.file_size:
        raise FormatError(f"{shown(entry.filename)} has {entry.file_size} bytes, its header says another number.")
    torch_dtype = _from_numpy(np.empty(0, dtype)).dtype  # one without meaning is refused here
    order: Literal["C", "F"] = "F" if fortran_order else "C"
    if entry.compress_type != ZIP_STORED:
        array = np.ndarray(shape, dtype, read_entry(archive, entry), header, order=order)
        return StoredTensor(torch_dtype, shape, partial(_from_numpy, array))
    name_length, extra_length = struct.unpack_from("<26xHH", memory, entry.header_offset)
    place = entry.header_offset + 30 + name_length + extra_length + header
    return StoredTensor(torch_dtype, shape, partial(_map_array, mapped, place, dtype, shape, order))


def _read_header(start: bytes) -> tuple[tuple[int, ...], bool, "np.dtype[Any]", int]:
    """Return the shape, the order, the dtype and the length of the header with which the bytes of an array begin."""
    count = 2 if start[6:7] == b"\1" else 4  # after the name of the format and its version
    length = 8 + count + int.from_bytes(start[8 : 8 + count], "little")
    return _parse_header(start[: min(length, _MAX_HEADER)])


@lru_cache(maxsize=64)  # all layers have the same
def _parse_header(header: bytes) -> tuple[tuple[int, ...], bool, "np.dtype[Any]", int]:
    file = BytesIO(header)
    major, _ = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    return *read(file), file.tell()


def _map_array(
    mapped: MappedFile, start: int, dtype: np.dtype[Any], shape: tuple[int, ...], order: Literal["C", "F"]
) -> Tensor:
    """Return what `np.memmap` would, in a tenth of the time: NumPy also resolves the path of each array."""
    if not math.prod(shape):
        return _from_numpy(np.empty(shape, dtype))
    return _from_numpy(np.ndarray(shape, dtype, mapped.memory(), start, order=order))


def _check_sum(archive: ZipFile, entry: ZipInfo) -> None:
    """Read an entry to its end, where its checksum is compared."""
    with archive.open(entry) as file:
        while file.read(_AT_ONCE):
            pass


def _from_numpy(array: npt.NDArray[Any]) -> Tensor:
    if array.dtype == np.dtype("V2"):  # how NumPy stores JAX's bfloat16
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
