"""Files of PyTorch, both kinds of state dict and TorchScript archives, read without executing anything in them."""

import math
import mmap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZIP_STORED, ZipFile

import torch
from torch import Tensor, nn

from ..messages import listed, shown
from .archives import read_entry
from .errors import FormatError, SeveralModelsError
from .mapped_file import MAX_DIMENSIONS
from .pickle_reader import Data, PickleReader
from .wrappers import model_prefixes, unwrap_names

_DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,  # no weights have these, but the state of a training
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_MAX_NESTING = 2  # dicts around the dict of the weights
_MAX_ATTRIBUTES = 100_000  # of all modules; a forged tree can contain itself. CLIP ViT-L has some thousand
_MAX_PATH = 500  # characters of a module's name in the tree

_Dict = dict[str | int, Any]


def pickles(names: Iterable[str]) -> list[str]:
    """Return the folder of an archive that holds `data.pkl`, as a list; an empty one for another kind of archive."""
    folders = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    return folders if len(folders) == 1 else []


def describe_archive(archive: ZipFile, folder: str) -> "tuple[str, dict[str, _Stored]]":
    """Return the container, and the tensors without their values, of the files that `read_archive` reads."""
    root = _Reader(read_entry(archive, archive.getinfo(f"{folder}data.pkl"))).read()
    return ("torchscript", _module_tensors(root)) if isinstance(root, _Module) else _state_dict(root)


def read_archive(archive: ZipFile, folder: str) -> tuple[str, dict[str, Tensor]]:
    """Return the container and the tensors of a file of `torch.jit.save` or `torch.save`; `folder` holds `data.pkl`."""
    container, described = describe_archive(archive, folder)
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise FormatError("the file was written on a big-endian machine; save it again on a little-endian one.")

    def read_storage(storage: _Storage) -> Tensor:
        entry = archive.getinfo(f"{folder}data/{storage.key}")
        if entry.compress_type != ZIP_STORED:
            raise FormatError(f"{shown(entry.filename)} is compressed; PyTorch stores its tensors as they are.")
        return torch.frombuffer(read_entry(archive, entry), dtype=torch.uint8)

    return container, _load(described, read_storage)


@contextmanager
def open_legacy(path: Path) -> Iterator[mmap.mmap]:
    """Open a file of the old `torch.save`."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        yield memory


def describe_legacy(memory: mmap.mmap) -> "tuple[str, dict[str, _Stored], _Reader]":
    """Return what `describe_archive` does, of a file of the old `torch.save`, and its reader after four pickles."""
    reader = _Reader(memory)
    _magic, _protocol, _system, root = (reader.read() for _ in range(4))
    return *_state_dict(root), reader


def read_legacy(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Return the container and the tensors of a file of the old `torch.save`: five pickles, then the storages."""
    with open_legacy(path) as memory:
        container, described, reader = describe_legacy(memory)
        keys, position = reader.read(), reader.position
        if type(keys) is not list or not all(type(key) is str for key in keys):
            raise ValueError("it does not list the names of its storages.")
        used = {stored.storage.key for stored in described.values()}
        storages = {}
        for key in keys:
            start = position + 8
            size = int.from_bytes(memory[position:start], "little") * reader.itemsize[key]
            position = start + size
            if position > len(memory):
                raise ValueError(f"a storage has {size:,} bytes, but {len(memory) - start:,} are left.")
            if key in used:
                storages[key] = torch.frombuffer(bytearray(memory[start:position]), dtype=torch.uint8)
    return container, _load(described, lambda storage: storages[storage.key])


def write_archive(tensors: Mapping[str, Tensor], path: str | PathLike[str]) -> None:
    """Write a TorchScript archive like OpenAI's, of parameters and buffers without code; `clip.load(path)` takes it."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *parents, leaf = name.split(".")
        module = root
        for parent in parents:
            if parent not in dict(module.named_children()):
                module.add_module(parent, nn.Module())
            module = module.get_submodule(parent)
        if tensor.is_floating_point():
            module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
        else:
            module.register_buffer(leaf, tensor)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit")  # the format is TorchScript, deprecated or not
        torch.jit.script(root).save(str(path))


class _Module:
    """Any TorchScript class."""

    __slots__ = ("attributes",)

    def __init__(self) -> None:
        self.attributes: _Dict = {}

    def set_state(self, state: object) -> None:
        if type(state) is not dict:
            raise FormatError("a module of the archive has no dict of attributes; it is forged.")
        self.attributes = state


class _Storage(NamedTuple):
    """Values in the file: the name of their place, and their dtype."""

    key: str
    dtype: torch.dtype


class _Stored:
    """A tensor as the file describes it; its values are read afterwards."""

    __slots__ = ("offset", "size", "storage", "stride")

    def __init__(self, storage: object, offset: Any, size: object, stride: object, *_: object) -> None:
        if not isinstance(storage, _Storage) or type(size) is not tuple or type(stride) is not tuple:
            raise FormatError("the file describes a tensor without a storage, a size or a stride; it is forged.")
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def view(self, name: str, storage: Tensor) -> Tensor:
        """Return the tensor in the bytes of its storage. Raises FormatError where it does not lie inside."""
        same_length = len(self.size) == len(self.stride) <= MAX_DIMENSIONS
        numbers = (self.offset, *self.size, *self.stride) if same_length else ()
        if not numbers or not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
            raise FormatError(
                f"{shown(name)} has the impossible offset, size or stride; expected whole numbers from 0."
            )
        values = storage.view(self.storage.dtype)
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.size, self.stride, strict=True))
        if 0 in self.size or max(last + 1, math.prod(self.size)) > len(values):
            raise FormatError(f"{shown(name)} has shape {self.size}, but the file holds {len(values)} values for it.")
        return values.as_strided(self.size, self.stride, self.offset)


def _parameter(tensor: object, *_: object) -> object:
    """`torch._utils._rebuild_parameter`: the tensor itself."""
    return tensor


def _ordered_dict() -> _Dict:
    """`collections.OrderedDict`, empty as in every file of Python 3; one with arguments could copy what it is given."""
    return {}


_ALLOWED: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor_v2"): _Stored,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
}


class _Reader(PickleReader):
    """Knows tensors, ordered dicts and inert modules, and refuses every other name that a pickle asks for."""

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        self.itemsize: dict[str, int] = {}  # bytes of one value, by storage

    def find_global(self, module: str, name: str) -> object:
        if module.split(".")[0] == "__torch__":
            return _Module
        if (module, name) not in _ALLOWED:
            raise FormatError(
                f"the file asks for {shown(f'{module}.{name}')}, expected nothing but tensors; it was not executed. Of "
                "a training checkpoint, save the model's state dict alone."
            )
        return _ALLOWED[module, name]

    def load_storage(self, place: object) -> "_Storage":
        match place:
            case ("storage", torch.dtype() as dtype, str() as key, *_):
                self.itemsize[key] = dtype.itemsize
                return _Storage(key, dtype)
        raise FormatError("the file asks for an outside object that is no storage of a tensor; it is forged.")


def _state_dict(root: object) -> tuple[str, dict[str, _Stored]]:
    """Return the container and the weights.

    In a checkpoint of a training they are an entry of it, such as "state_dict" (open_clip, Lightning), "model" (timm),
    "model_state_dict" (PyTorch's tutorials) or "module" (DeepSpeed); what lies beside is not read. Raises FormatError
    where several entries hold a model: open_clip would take one of them, timm another.
    """
    if not isinstance(root, dict):
        raise FormatError(f"the file holds a {type(root).__name__.lstrip('_')}, expected a state dict of tensors.")
    tensors = {place: (entries, names) for place, entries in _dicts(root) if (names := _tensor_names(entries))}
    models = [place for place, (_, names) in tensors.items() if model_prefixes(names)]
    if len(models) > 1:
        raise SeveralModelsError(
            f"the file holds {len(models)} models, {listed(map(_described, models), separator=' and ')}; save the one "
            "that you want alone."
        )
    if len(models) == 1 and len(model_prefixes(tensors[models[0]][1])) > 1:
        unwrap_names(tensors[models[0]][1])  # raises, before their common memory is found
    if not models and any(tensors):  # a file of another kind; the names say which
        return "torch", {
            ".".join((*map(str, place), name)): entries[name]
            for place, (entries, names) in tensors.items()
            for name in names
        }
    place = models[0] if models else ()
    entries: dict[Any, Any] = tensors[place][0] if place in tensors else root
    for name, value in entries.items():
        if not isinstance(name, str) or not isinstance(value, _Stored):
            raise FormatError(
                f"entry {shown(name) if isinstance(name, int) else repr(shown(name))} is a "
                f"{type(value).__name__.lstrip('_')}, expected a tensor; of a training checkpoint, save the "
                "model's state dict alone."
            )
    return "/".join(("torch", *map(shown, place))), entries


def _described(place: tuple[str | int, ...]) -> str:
    return "/".join(map(shown, place)) or "the outermost"


def _dicts(root: _Dict) -> Iterator[tuple[tuple[str | int, ...], _Dict]]:
    """Yield a dict and those in it, each once, with its place: () is the outermost, then ("state_dict",)."""
    seen: set[int] = {id(root)}
    pending: list[tuple[tuple[str | int, ...], _Dict]] = [((), root)]
    while pending:
        place, entries = pending.pop()
        yield place, entries
        if len(place) == _MAX_NESTING + 1:
            continue
        inner = []
        for name, value in entries.items():
            if isinstance(value, dict) and id(value) not in seen:
                seen.add(id(value))
                inner.append(((*place, name), value))
        pending += reversed(inner)


def _tensor_names(entries: _Dict) -> list[str]:
    return [name for name, value in entries.items() if isinstance(name, str) and isinstance(value, _Stored)]


def _module_tensors(root: _Module) -> dict[str, _Stored]:
    """Return the tensors of a module tree under their names in its `state_dict()`."""
    tensors: dict[str, _Stored] = {}
    pending = [("", root)]
    read = 0
    while pending:
        prefix, module = pending.pop()
        read += 1 + len(module.attributes)
        if read > _MAX_ATTRIBUTES or len(prefix) > _MAX_PATH:
            raise FormatError("the modules of the archive contain themselves, or are too many for a CLIP model.")
        for name, value in module.attributes.items():
            if isinstance(value, _Stored):
                tensors[f"{prefix}{name}"] = value
            elif isinstance(value, _Module):
                pending.append((f"{prefix}{name}.", value))
    return tensors


def _load(described: Mapping[str, _Stored], read_storage: Callable[[_Storage], Tensor]) -> dict[str, Tensor]:
    storages: dict[str, Tensor] = {}
    for stored in described.values():
        if stored.storage.key not in storages:
            storages[stored.storage.key] = read_storage(stored.storage)
    tensors = {name: stored.view(name, storages[stored.storage.key]) for name, stored in described.items()}
    # A small file could describe any number of tensors by the same bytes, each of which would become a copy.
    if sum(tensor.nbytes for tensor in tensors.values()) > sum(storage.nbytes for storage in storages.values()):
        raise FormatError("the tensors have more values than the file holds: some share theirs, which weights do not.")
    return tensors
