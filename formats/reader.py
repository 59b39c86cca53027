"""Reading tensors out of untrusted files: nothing in them is executed."""

from collections import ChainMap
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ..messages import shown
from . import torch_file
from .archives import open_archive, read_npz
from .errors import FormatError, SeveralModelsError, one_line
from .mapped_file import StoredTensors, described
from .safetensors_file import read_safetensors, tensor_names
from .small_files import read_json
from .wrappers import log_unwrapped, model_prefixes, unwrap_names

_MAX_TENSORS = 20_000  # the largest checkpoints have 1,200
_MAX_NAME = 250  # characters
# The names of files with weights in folders, the preferred one first; an index names several files.
_IN_OPEN_CLIP_FOLDERS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
IN_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_IN_FOLDERS = (*IN_SAFETENSORS, "pytorch_model.bin", "pytorch_model.bin.index.json")


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


def renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> Mapping[str, Tensor]:
    """Return some or all tensors under new names; `names` maps these to the present ones."""
    if len(names) == len(tensors) and all(new == present for new, present in names.items()):
        return tensors
    known = described(tensors)
    return StoredTensors({new: known[present] for new, present in names.items()})


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
        start = file.read(2)
    if start == b"PK":
        with open_archive(path) as archive:
            return torch_file.describe_archive(archive, *torch_file.pickles(archive.namelist()))
    if start.startswith(b"\x80"):
        with torch_file.open_legacy(path) as file:
            return torch_file.describe_legacy(file)[:2]
    return "safetensors", tensor_names(path)


def read_files(files: Iterable[Path]) -> tuple[str, Mapping[str, Tensor]]:
    """Return the container, as in `Layout.container`, and the tensors of all files.

    Containers are recognised by content, not by the name of the file. Tensors of .npz and .safetensors files stay there
    (`StoredTensors`), so these must not change meanwhile. Raises FormatError for everything else, damaged and hostile
    files included.
    """
    tensors: Mapping[str, Tensor] = {}
    container = ""
    for file in files:
        container, part = _read_tensors(file)
        check_names(part)
        if twice := sorted(tensors.keys() & part.keys()):
            raise FormatError(f"{twice[0]} is in two of the files.")
        tensors = ChainMap(tensors, part) if tensors else part  # type: ignore[arg-type]  # nobody writes into it
    return container, tensors


def check_names(names: Collection[str]) -> None:
    """Refuse names that no training code gives, before the names are compared with each other and printed."""
    if len(names) > _MAX_TENSORS:
        raise FormatError(f"there are {len(names):,} tensors, expected {_MAX_TENSORS:,} at most.")
    for name in names:
        if len(name) > _MAX_NAME or not name.isprintable():
            raise FormatError(
                f"{shown(name)} is no name of a weight; expected at most {_MAX_NAME} characters, all printable."
            )


def _read_tensors(path: Path) -> tuple[str, Mapping[str, Tensor]]:
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        raise FormatError("the file is empty, expected a checkpoint.")
    try:
        if start.startswith(b"PK\x03\x04"):
            return _read_zip(path)
        if start[8:] == b"{":  # after the length of the header, which may be any bytes
            return "safetensors", read_safetensors(path)
        if start.startswith(b"\x80"):  # a pickle
            return torch_file.read_legacy(path)
    except FormatError:
        raise
    except Exception as error:  # parsers raise anything when a file is damaged
        raise FormatError(f"the file is damaged or forged: {one_line(error)}") from error
    raise FormatError("this is not a checkpoint; expected a PyTorch file (.pt), a .npz or a .safetensors file.")


def _read_zip(path: Path) -> tuple[str, Mapping[str, Tensor]]:
    with open_archive(path) as archive:
        names = archive.namelist()
        if folders := torch_file.pickles(names):
            return torch_file.read_archive(archive, *folders)
        if any(name.endswith(".npy") for name in names):
            return "npz", read_npz(archive, path)
    raise FormatError("this zip archive is no checkpoint; expected a PyTorch file (.pt) or NumPy arrays (.npz).")
