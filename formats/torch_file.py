"""Files of PyTorch, both kinds of state dict and TorchScript archives, read without executing anything in them."""

import math
import os
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_STORED, ZipFile

import torch
from torch import Tensor, nn

from .errors import FormatError, SeveralModelsError
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
_MAX_MODULES = 10_000  # a forged module tree can contain itself; CLIP ViT-L has about 400 modules


def describe_archive(archive: ZipFile, folder: str) -> "tuple[str, dict[str, _Stored]]":
    """Return the container, and the tensors without their values, of the files that `read_archive` reads."""
    with archive.open(f"{folder}data.pkl") as file:
        root = _Unpickler(file).load()
    return ("torchscript", _module_tensors(root)) if isinstance(root, _Module) else _state_dict(root)


def read_archive(archive: ZipFile, folder: str) -> tuple[str, dict[str, Tensor]]:
    """Return the container and the tensors of a file of `torch.jit.save` or `torch.save`; `folder` holds `data.pkl`."""
    container, described = describe_archive(archive, folder)
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise FormatError("the file was written on a big-endian machine; save it again on a little-endian one.")

    def read_storage(key: str) -> Tensor:
        entry = archive.getinfo(f"{folder}data/{key}")
        if entry.compress_type != ZIP_STORED:
            raise FormatError(f"{entry.filename} is compressed; PyTorch stores its tensors as they are.")
        with archive.open(entry) as file:
            return torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)

    return container, _load(described, read_storage)


def describe_legacy(file: IO[bytes]) -> "tuple[str, dict[str, _Stored], Mapping[str, int]]":
    """Return what `describe_archive` does, of a file of the old `torch.save`, and the bytes of a value by storage."""
    _magic, _protocol, _system = (_Unpickler(file).load() for _ in range(3))
    unpickler = _Unpickler(file)
    return *_state_dict(unpickler.load()), unpickler.itemsize


def read_legacy(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Return the container and the tensors of a file of the old `torch.save`: five pickles, then the storages."""
    with path.open("rb") as file:
        container, described, itemsize = describe_legacy(file)
        used = {stored.key for stored in described.values()}
        storages = {}
        for key in _Unpickler(file).load():
            size = int.from_bytes(file.read(8), "little") * itemsize[key]
            if key in used:
                storages[key] = torch.frombuffer(bytearray(file.read(size)), dtype=torch.uint8)
            else:
                file.seek(size, os.SEEK_CUR)
    return container, _load(described, storages.__getitem__)


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
        warnings.simplefilter("ignore", DeprecationWarning)  # the format is TorchScript, deprecated or not
        torch.jit.script(root).save(str(path))


class _Inert:
    """Stands for a class or function that a file names. No pickle can set anything on it, or on what it makes."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise FormatError("the file changes an object that has no state; it is forged.")


class _Module(_Inert):
    """Any TorchScript class."""

    __slots__ = ("attributes",)

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


class _Stored(_Inert):
    """A tensor as the file describes it; its values are read afterwards."""

    __slots__ = ("dtype", "key", "offset", "size", "stride")

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> None:
        (self.key, self.dtype), self.offset, self.size, self.stride = storage, offset, size, stride

    def view(self, name: str, storage: Tensor) -> Tensor:
        """Return the tensor in the bytes of its storage. Raises FormatError where it does not lie inside."""
        numbers = (self.offset, *self.size, *self.stride)
        if not all(type(number) is int and number >= 0 for number in numbers) or len(self.size) != len(self.stride):
            raise FormatError(f"{name} has the impossible offset, size or stride {numbers}.")
        values = storage.view(self.dtype)
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.size, self.stride, strict=True))
        if 0 in self.size or max(last + 1, math.prod(self.size)) > len(values):
            raise FormatError(f"{name} has shape {self.size}, but the file holds {len(values)} values for it.")
        return values.as_strided(self.size, self.stride, self.offset)


class _Parameter(_Inert):
    """`torch._utils._rebuild_parameter`: the tensor itself."""

    def __new__(cls, tensor: Any, *_: Any) -> Any:
        return tensor


class _Unpickler(pickle._Unpickler):
    """Knows tensors, ordered dicts and inert modules, and refuses every other name that a pickle asks for.

    Python's own implementation: the one in C makes a table as long as the largest index that a pickle remembers a value
    by, which a forged byte turns into gigabytes.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.itemsize: dict[str, int] = {}  # bytes of one value, by storage

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        allowed = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _Stored,
            ("torch._utils", "_rebuild_parameter"): _Parameter,
        }
        if (module, name) not in allowed:
            raise FormatError(
                f"the file asks for {module}.{name}, expected nothing but tensors; it was not executed. Of a training "
                "checkpoint, save the model's state dict alone."
            )
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> tuple[str, torch.dtype]:
        kind, dtype, key, *_ = pid
        if kind != "storage":
            raise FormatError(f"the file asks for an outside object of kind {kind!r}; it is forged.")
        self.itemsize[key] = dtype.itemsize
        return key, dtype


def _state_dict(root: object) -> tuple[str, dict[str, _Stored]]:
    """Return the container and the weights.

    In a checkpoint of a training they are an entry of it, such as "state_dict" (open_clip, Lightning), "model" (timm),
    "model_state_dict" (PyTorch's tutorials) or "module" (DeepSpeed); what lies beside is not read. Raises FormatError
    where several entries hold a model: open_clip would take one of them, timm another.
    """
    if not isinstance(root, dict):
        raise FormatError(f"the file holds a {type(root).__name__.lstrip('_')}, expected a state dict of tensors.")
    state_dicts = {place: entries for place, entries in _dicts(root) if _tensor_names(entries)}
    models = [place for place, entries in state_dicts.items() if model_prefixes(_tensor_names(entries))]
    if len(models) > 1:
        raise SeveralModelsError(
            f"the file holds {len(models)} models, {' and '.join(place or 'the outermost' for place in models)}; save "
            "the one that you want alone."
        )
    if len(models) == 1 and len(model_prefixes(state_dicts[models[0]])) > 1:
        unwrap_names(_tensor_names(state_dicts[models[0]]))  # raises, before their common memory is found
    if not models and any(state_dicts):  # a file of another kind; the names say which
        return "torch", {
            f"{place}.{name}".lstrip("."): entries[name]
            for place, entries in state_dicts.items()
            for name in _tensor_names(entries)
        }
    place = models[0] if models else ""
    entries = state_dicts.get(place, dict(dict.items(root)))
    for name, value in entries.items():
        if not isinstance(name, str) or not isinstance(value, _Stored):
            raise FormatError(
                f"entry {name!r} is a {type(value).__name__.lstrip('_')}, expected a tensor; "
                "of a training checkpoint, save the model's state dict alone."
            )
    return f"torch/{place}".rstrip("/"), entries


def _dicts(root: dict[Any, Any]) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Yield a dict and those in it, each once, with its place ("" is the outermost, then "state_dict", "a/b")."""
    seen: set[int] = set()
    pending = [("", root)]
    while pending:
        place, entries = pending.pop()
        if id(entries) in seen or place.count("/") > _MAX_NESTING:
            continue
        seen.add(id(entries))
        entries = dict(dict.items(entries))
        yield place, entries
        inner = [(f"{place}/{name}".lstrip("/"), value) for name, value in entries.items() if isinstance(value, dict)]
        pending += reversed(inner)


def _tensor_names(entries: dict[Any, Any]) -> list[str]:
    return [name for name, value in entries.items() if isinstance(name, str) and isinstance(value, _Stored)]


def _module_tensors(root: _Module) -> dict[str, _Stored]:
    """Return the tensors of a module tree under their names in its `state_dict()`."""
    tensors: dict[str, _Stored] = {}
    pending = [("", root)]
    for _ in range(_MAX_MODULES):
        if not pending:
            return tensors
        prefix, module = pending.pop()
        for name, value in module.attributes.items():
            if isinstance(value, _Stored):
                tensors[prefix + name] = value
            elif isinstance(value, _Module):
                pending.append((f"{prefix}{name}.", value))
    raise FormatError(f"the archive has more than {_MAX_MODULES} modules, expected a CLIP model.")


def _load(described: Mapping[str, _Stored], read_storage: Callable[[str], Tensor]) -> dict[str, Tensor]:
    storages: dict[str, Tensor] = {}
    for stored in described.values():
        if stored.key not in storages:
            storages[stored.key] = read_storage(stored.key)
    tensors = {name: stored.view(name, storages[stored.key]) for name, stored in described.items()}
    # A small file could describe any number of tensors by the same bytes, each of which would become a copy.
    if sum(tensor.nbytes for tensor in tensors.values()) > sum(storage.nbytes for storage in storages.values()):
        raise FormatError("the tensors have more values than the file holds: some share theirs, which weights do not.")
    return tensors
