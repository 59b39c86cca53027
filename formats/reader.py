"""Reading tensors out of untrusted files: nothing in them is executed."""

import math
import mmap
import struct
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from torch import Tensor

from . import torch_file
from .errors import FormatError, SeveralModelsError
from .layout import read_json
from .wrappers import log_unwrapped, model_prefixes, unwrap_names

_MAX_UNPACKED_RATIO = 2  # unpacked bytes per byte of the file; weights hardly compress
# The names of files with weights in folders, the preferred one first; an index names several files.
_IN_OPEN_CLIP_FOLDERS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_IN_FOLDERS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def weight_files(path: Path, names: Sequence[str] = (*_IN_OPEN_CLIP_FOLDERS, *_IN_FOLDERS)) -> list[Path]:
    """Return the file itself, or the files with the weights in a folder of open_clip, timm or transformers."""
    if path.is_file():
        return [path]
    first = next((path / name for name in names if (path / name).is_file()), None)
    if first is None:
        content = ", ".join(sorted(item.name for item in path.iterdir())[:8]) or "nothing"
        raise FormatError(
            f"expected a file, or a folder with config.json and .safetensors files. This one holds {content}."
        )
    if not first.name.endswith(".index.json"):
        return [first]
    parts = read_json(first).get("weight_map")
    if (
        not isinstance(parts, dict)
        or not parts
        or not all(isinstance(name, str) and Path(name).name == name for name in parts.values())
    ):
        raise FormatError(f"{first.name} has no weight_map from weights to files of the folder.")
    return sorted({path / name for name in parts.values()})


class StoredTensors(Mapping[str, Tensor]):
    """Tensors that stay in their file: each is mapped when asked for, and takes memory only while somebody holds it."""

    def __init__(self, mappers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._mappers = mappers

    def __getitem__(self, name: str) -> Tensor:
        return self._mappers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._mappers

    def __iter__(self) -> Iterator[str]:
        return iter(self._mappers)

    def __len__(self) -> int:
        return len(self._mappers)


def renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> Mapping[str, Tensor]:
    """Return some or all tensors under new names; `names` maps these to the present ones."""
    if len(names) == len(tensors) and all(new == present for new, present in names.items()):
        return tensors
    return StoredTensors({new: partial(tensors.__getitem__, present) for new, present in names.items()})


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a file or folder under their names there, whatever model they belong to."""
    return read_files(weight_files(path))[1]


def unwrapped_weights(folder: Path, known_prefix: str) -> Mapping[str, Tensor] | None:
    """Return the weights of a folder that transformers would not find: in an entry of their file, or below a prefix.

    None where it finds them, as it does below the `known_prefix` with other weights beside. Raises SeveralModelsError
    where they can be read in several ways.
    """
    try:
        try:
            files = weight_files(folder, _IN_FOLDERS)
            described = [_describe(file) for file in files]
        except SeveralModelsError:
            raise
        except Exception:  # what is wrong with the files transformers says
            return None
        names = [name for _, part in described for name in part]
        is_nested = any("/" in container for container, _ in described)
        has_others = not all(name.startswith(known_prefix) for name in names)
        if not is_nested and has_others and model_prefixes(names) == [known_prefix]:
            return None
        prefix, own_names = unwrap_names(names)
    except SeveralModelsError as error:
        raise SeveralModelsError(f"{folder}: {error}") from error
    if not log_unwrapped(folder, prefix, own_names) and not is_nested:
        return None
    return renamed(read_files(files)[1], own_names)


def _describe(path: Path) -> tuple[str, Iterable[str]]:
    """Return the container and the names of the tensors in a file of PyTorch or safetensors, without their values."""
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            with ZipFile(path) as archive:
                (entry,) = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
                return torch_file.describe_archive(archive, entry.removesuffix("data.pkl"))
        file.seek(0)
        if file.read(1) == b"\x80":
            file.seek(0)
            return torch_file.describe_legacy(file)[:2]
    with safe_open(path, framework="pt") as opened:
        return "safetensors", opened.keys()


def read_files(files: Iterable[Path]) -> tuple[str, Mapping[str, Tensor]]:
    """Return the container, as in `Layout.container`, and the tensors of all files.

    Containers are recognised by content, not by the name of the file. Tensors of .npz and .safetensors files stay there
    (`StoredTensors`), so these must not change meanwhile. Raises FormatError for everything else, damaged and hostile
    files included.
    """
    tensors: ChainMap[str, Tensor] = ChainMap()
    container = ""
    for file in files:
        container, part = _read_tensors(file)
        if twice := sorted(tensors.keys() & part.keys()):
            raise FormatError(f"{twice[0]} is in two of the files.")
        tensors.maps.append(part)  # type: ignore[arg-type]  # nobody writes into it
    return container, tensors


def _read_tensors(path: Path) -> tuple[str, Mapping[str, Tensor]]:
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        raise FormatError("the file is empty, expected a checkpoint.")
    try:
        if start.startswith(b"PK\x03\x04"):
            return _read_zip(path)
        if start[8:] == b"{":  # after the length of the header, which may be any bytes
            with safe_open(path, framework="pt") as opened:
                names = opened.keys()
            return "safetensors", StoredTensors({name: partial(_map_safetensor, path, name) for name in names})
        if start.startswith(b"\x80"):  # a pickle
            return torch_file.read_legacy(path)
    except FormatError:
        raise
    except Exception as error:  # parsers raise anything when a file is damaged
        raise FormatError(f"the file is damaged or forged: {' '.join(str(error).split())}") from error
    raise FormatError("this is not a checkpoint; expected a PyTorch file (.pt), a .npz or a .safetensors file.")


def _read_zip(path: Path) -> tuple[str, Mapping[str, Tensor]]:
    with ZipFile(path) as archive:
        names = archive.namelist()
        if len(set(names)) != len(names):
            raise FormatError("the archive has two entries of one name, so it is not clear what it holds.")
        unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > _MAX_UNPACKED_RATIO * path.stat().st_size:
            raise FormatError(
                f"the archive unpacks to {unpacked:,} bytes, far more than it has; weights do not do that."
            )
        pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) == 1:
            return torch_file.read_archive(archive, pickles[0].removesuffix("data.pkl"))
        if any(name.endswith(".npy") for name in names):
            entries = archive.infolist()
            arrays = {entry.filename.removesuffix(".npy"): _array_mapper(path, archive, entry) for entry in entries}
            with ThreadPoolExecutor() as pool:  # a checksum is slower than the disk, and leaves Python's lock alone
                list(pool.map(partial(_check_sum, archive), entries))
            for map_array in arrays.values():
                map_array()  # so that a dtype without meaning is refused here
            return "npz", StoredTensors(arrays)
    raise FormatError("this zip archive is no checkpoint; expected a PyTorch file (.pt) or NumPy arrays (.npz).")


def _map_safetensor(path: Path, name: str) -> Tensor:
    with safe_open(path, framework="pt") as opened:
        return opened.get_tensor(name)


def _array_mapper(path: Path, archive: ZipFile, entry: ZipInfo) -> Callable[[], Tensor]:
    """Read the header of an entry of a .npz file; return a function that maps the array, or holds it if compressed.

    Not to be called by several threads: NumPy's headers go through `ast`, whose state Python 3.11 shares among them.
    """
    if not entry.filename.endswith(".npy"):
        raise FormatError(f"{entry.filename} is not a NumPy array.")
    with archive.open(entry) as file:
        if entry.compress_type != ZIP_STORED:
            tensor = _from_numpy(np.lib.format.read_array(file, allow_pickle=False))
            return lambda: tensor
        major, _ = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read_header(file)
        header = file.tell()
        if dtype.hasobject:
            raise FormatError("Object arrays cannot be loaded: they hold pickles, which can run code.")
        if header + math.prod(shape) * dtype.itemsize != entry.file_size:
            raise FormatError(f"{entry.filename} has {entry.file_size} bytes, its header says another number.")
    with path.open("rb") as raw:
        raw.seek(entry.header_offset)
        name_length, extra_length = struct.unpack("<26xHH", raw.read(30))
    start = entry.header_offset + 30 + name_length + extra_length + header
    return partial(_map_array, path, start, dtype, shape, "F" if fortran_order else "C")


def _map_array(
    path: Path, start: int, dtype: np.dtype[Any], shape: tuple[int, ...], order: Literal["C", "F"]
) -> Tensor:
    """Return what `np.memmap` would, in a tenth of the time: NumPy also resolves the path of each array."""
    if not math.prod(shape):
        return _from_numpy(np.empty(shape, dtype))
    offset_in_page = start % mmap.ALLOCATIONGRANULARITY  # a mapping starts at the beginning of a page
    length = offset_in_page + math.prod(shape) * dtype.itemsize
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=start - offset_in_page)
    return _from_numpy(np.ndarray(shape, dtype, memory, offset_in_page, order=order))


def _check_sum(archive: ZipFile, entry: ZipInfo) -> None:
    """Read an entry to its end, where its checksum is compared."""
    with archive.open(entry) as file:
        while file.read(1 << 20):
            pass


def _from_numpy(array: npt.NDArray[Any]) -> Tensor:
    if array.dtype == np.dtype("V2"):  # how NumPy stores JAX's bfloat16
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
