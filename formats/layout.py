"""What a format has to say about its files: traits, rows and geometry, and what is remembered for the way back."""

import base64
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from ..configuration import DualEncoderConfig, SiglipVisionConfig
from .table import FormatError, Row

LayoutType = TypeVar("LayoutType", bound="Layout")
Activation = Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"]
ChoiceType = TypeVar("ChoiceType", int, str)


@dataclass(frozen=True)
class Choices:
    """What the caller says about a file that may not say it itself."""

    image_size: int | None = None  # pixels a side, where patches do not fill them (patch 14 at 384)
    vision_activation: Activation | None = None
    vision_heads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Layout(ABC):
    """What differs between two files of one format, and is needed to write one back bit by bit."""

    format: ClassVar[str]
    containers: ClassVar[tuple[str, ...]]  # that can be written, the usual one first

    container: str  # "torchscript", "torch", "torch/state_dict" (nested), "safetensors" or "npz"
    image_layers: int
    text_layers: int
    prefix: str = ""  # of every name
    beside: Mapping[str, Any] = field(default_factory=dict)  # the JSON that lies beside the file, for formats with one
    sizes: Mapping[str, int] = field(default_factory=dict)  # what `table.solve` found
    dtypes: Mapping[str, str] = field(default_factory=dict)  # of weights by name; of all others under ""
    integers: Mapping[str, Tensor] = field(default_factory=dict, compare=False)  # buffers that are not weights
    summands: Mapping[str, Tensor] = field(default_factory=dict, compare=False)  # of sums, which forget them

    @classmethod
    @abstractmethod
    def of(cls: type[LayoutType], container: str, tensors: Mapping[str, Tensor], folder: Path) -> LayoutType | None:
        """The layout of a file in `folder`, None if of another format. Raises FormatError for unsupported variants."""

    @abstractmethod
    def table(self) -> list[Row]:
        """All rows, with full names."""

    @abstractmethod
    def config(self, choices: Choices) -> DualEncoderConfig | SiglipVisionConfig:
        """The configuration that `sizes` and `choices` amount to. Raises FormatError where they contradict."""

    def image_settings(self) -> dict[str, Any]:
        """What the file says about pixels, in the names of transformers' image processors."""
        return {}

    def dtype(self, name: str) -> torch.dtype | None:
        """That of a weight in the file; None where any will do."""
        dtype = self.dtypes.get(name, self.dtypes.get(""))
        return None if dtype is None else getattr(torch, dtype)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `layout_from_dict` is the reverse."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {"format": self.format, **values, **{name: _pack(values[name]) for name in ("integers", "summands")}}

    @classmethod
    def from_dict(cls: type[LayoutType], values: Mapping[str, Any]) -> LayoutType:
        """A layout from the fields that `to_dict` gave."""
        return cls(**{**values, **{name: _unpack(values[name]) for name in ("integers", "summands")}})


def _pack(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        name: {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "base64": base64.b64encode(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).decode(),
        }
        for name, tensor in tensors.items()
    }


def _unpack(packed: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        name: torch.frombuffer(bytearray(base64.b64decode(entry["base64"])), dtype=getattr(torch, entry["dtype"]))
        .reshape(entry["shape"])
        for name, entry in packed.items()
    }  # fmt: skip


def dtypes_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """`Layout.dtypes` of weights: the commonest dtype, and the names that have another."""
    names = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    commonest = max(sorted(set(names.values())), key=list(names.values()).count)
    return {"": commonest, **{name: dtype for name, dtype in names.items() if dtype != commonest}}


def read_json(path: Path, default: Any = None) -> Any:
    """The object in a JSON file, `default` where there is no such file."""
    if not path.is_file():
        return default
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path.name} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path.name} holds a {type(content).__name__}, expected an object.")
    return content


def number_of_layers(names: Iterable[str], pattern: str) -> int:
    """How many different numbers `pattern` captures in `names`; at least 1, so that a file without layers lacks one."""
    return max(1, len({match[1] for name in names if (match := re.match(pattern, name))}))


def decide(option: str, chosen: ChoiceType | None, known: ChoiceType | None, what: str) -> ChoiceType:
    """What the file says, or else the caller. Raises FormatError where neither does, or where they differ."""
    if chosen is None and known is None:
        raise FormatError(f"the file does not say {what}; say it with --{option} ({option.replace('-', '_')}=...).")
    if None not in (chosen, known) and chosen != known:
        raise FormatError(f"--{option} {chosen} was given, but {what} can only be {known} in this file.")
    return known if chosen is None else chosen  # type: ignore[return-value]
