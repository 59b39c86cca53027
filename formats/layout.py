"""Layouts: the container, traits and geometry of a file, and all that its tensors need to be written bit by bit."""

import base64
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from ..configuration import DualEncoderConfig, TowerConfig
from .errors import FormatError
from .mapped_file import described
from .options import LoadOptions
from .table import Rule, prefixed

LAYOUT_FILE = "official_layout.json"  # in a converted folder: the layout of its source, and the choices of the user
_TENSOR_FIELDS = ("integer_buffers", "merged_sources")


@dataclass(frozen=True, kw_only=True)
class Layout(ABC):
    """Everything in which two files of one format differ, their weights apart."""

    format: ClassVar[str]
    containers: ClassVar[tuple[str, ...]]  # the kinds of file that can be written, the usual one first

    container: str  # "torchscript", "torch", "torch/state_dict" (nested in this entry), "safetensors" or "npz"
    image_layers: int
    text_layers: int
    prefix: str = ""  # before every name
    # The JSON file that lies in the same folder, for formats that have one.
    sidecar_json: Mapping[str, Any] = field(default_factory=dict)
    # The named sizes in the shapes of the rules, as `table.solve` found them.
    sizes: Mapping[str, int] = field(default_factory=dict)
    # The dtypes of weights by name; under "" that of all others.
    dtypes: Mapping[str, str] = field(default_factory=dict)
    # Tensors of the file that are not weights, such as OpenAI's `input_resolution`.
    integer_buffers: Mapping[str, Tensor] = field(default_factory=dict, compare=False)
    # The arrays that a lossy operation merged (`operations.ADD`); kept because a sum cannot be split again.
    merged_sources: Mapping[str, Tensor] = field(default_factory=dict, compare=False)

    @classmethod
    @abstractmethod
    def detect(cls, container: str, prefix: str, tensors: Mapping[str, Tensor], folder: Path) -> Self | None:
        """Return the layout of a file in `folder`, None where it is of another format.

        The names in `tensors` are without the `prefix` that they have in the file.
        Raises FormatError for variants of this format that are not supported.
        """

    @classmethod
    def from_config(cls, config: DualEncoderConfig) -> Self:
        """Return the layout in which models with this configuration are released.

        Raises FormatError where this version cannot write the format.
        """
        raise FormatError(f"{cls.format} files are read, but this version does not write them.")

    @abstractmethod
    def own_rules(self) -> list[Rule]:
        """Return all rules, with names that lack the prefix."""

    def rules(self) -> list[Rule]:
        """Return all rules, with the full names of the file."""
        return prefixed(self.own_rules(), self.prefix)

    @abstractmethod
    def config(self, options: LoadOptions) -> DualEncoderConfig | TowerConfig:
        """Return the configuration that follows from `sizes` and `options`. Raises FormatError where they disagree."""

    def image_settings(self, image_size: int, published: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the source states about pixels, as settings of transformers' image processors.

        `published` are the pixels in the catalogue, in open_clip's terms. Raises FormatError for what the image
        processors cannot do.
        """
        return {}

    def text_settings(self) -> dict[str, Any]:
        """Return what the source states about texts, as settings of the family's tokenizer.

        Raises FormatError for what the tokenizer cannot do.
        """
        return {}

    @property
    def names_tokenizer(self) -> str | None:
        """The name of the tokenizer that the source states, whose files may lie beside the weights."""
        return None

    def notes(self) -> tuple[str, ...]:
        """Return what a user of the source should know, a sentence or two each."""
        return ()

    def dtype(self, name: str) -> torch.dtype | None:
        """Return the dtype of a weight in the file, None where any will do."""
        dtype = self.dtypes.get(name, self.dtypes.get(""))
        return None if dtype is None else getattr(torch, dtype)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it ready for JSON; `layout_from_dict` is the reverse."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {"format": self.format, **values, **{name: _pack(values[name]) for name in _TENSOR_FIELDS}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return a layout from the fields that `to_dict` returned."""
        return cls(**{**values, **{name: _unpack(values[name]) for name in _TENSOR_FIELDS}})


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
    """Return `Layout.dtypes` of weights: the commonest dtype under "", and the names that have another."""
    names = {name: str(stored.dtype).removeprefix("torch.") for name, stored in described(tensors).items()}
    commonest = max(sorted(set(names.values())), key=list(names.values()).count)
    return {"": commonest, **{name: dtype for name, dtype in names.items() if dtype != commonest}}


def number_of_layers(names: Iterable[str], pattern: str) -> int:
    """Return how many different numbers `pattern` captures in `names`, at least 1.

    A file without layers is thus one whose only layer is missing, and is refused by name.
    """
    return max(1, len({match[1] for name in names if (match := re.match(pattern, name))}))
