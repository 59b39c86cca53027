"""An official checkpoint, read and checked; and the way back to one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, get_args

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from ..configuration import DualEncoderConfig, SiglipVisionConfig
from . import table
from .big_vision import BigVisionLayout
from .layout import Activation, Choices, Layout, dtypes_of
from .open_clip import CONFIG, OpenClipLayout
from .openai import OpenAILayout, ResNetLayout
from .reader import read_files, weight_files
from .table import FormatError
from .timm import TimmLayout
from .transformers_folder import TransformersLayout

# In the order in which they are asked whether a file is theirs.
LAYOUTS: tuple[type[Layout], ...] = (
    TransformersLayout,
    TimmLayout,
    OpenClipLayout,
    ResNetLayout,
    OpenAILayout,
    BigVisionLayout,
)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A sound official file or folder: every name, shape and value was checked against the table of its layout."""

    path: Path
    files: tuple[Path, ...]  # that hold the weights: `path` itself, or some in this folder
    tensors: Mapping[str, Tensor] = field(repr=False)  # weights under their official names, as stored
    layout: Layout
    choices: Choices
    config: DualEncoderConfig | SiglipVisionConfig  # the second of an image tower alone

    @property
    def format(self) -> str:
        """ "openai", "big_vision", "open_clip", "timm" or "transformers"."""
        return self.layout.format

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The weights in transformers' names and shapes and the file's dtypes, in memory one at a time."""
        rows = sorted(self.layout.table(), key=lambda row: row.targets)  # files are written faster from start to end
        return table.to_transformers(rows, self.tensors)

    def state_dict(self) -> dict[str, Tensor]:
        """All `weights`, each alone in its memory, which it may share with `tensors`."""
        return {name: table.own(tensor) for name, tensor in self.weights()}


def is_checkpoint_file(source: Any) -> bool:
    """Whether `source` is an existing file or a folder of open_clip, not a folder of transformers or a Hub id."""
    if not isinstance(source, (str, PathLike)):
        return False
    path = Path(source)
    return path.is_file() or ((path / CONFIG).is_file() and not (path / "config.json").is_file())


def read_checkpoint(
    path: str | PathLike[str],
    *,
    image_size: int | None = None,
    vision_activation: Activation | None = None,
    vision_heads: int | None = None,
) -> Checkpoint:
    """Read an official file, or a folder of open_clip, timm or transformers, without executing anything in it.

    `image_size` is the resolution in pixels where patches do not fill it (patch 14 at 384). `vision_activation` and
    `vision_heads` are those of the image tower where the file cannot say them. Raises FormatError, with everything
    that is wrong, or FileNotFoundError.
    """
    path = Path(path)
    if vision_activation not in (None, *get_args(Activation)):
        raise ValueError(
            f"vision_activation must be one of {', '.join(get_args(Activation))}, got {vision_activation!r}."
        )
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file, expected an official checkpoint.")
    try:
        return _read(path, Choices(image_size, vision_activation, vision_heads))
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, StrictDataclassError) as error:
        # The weights are sound by then; only the JSON beside them, or its strict configuration, raises these.
        raise FormatError(f"{path}: its configuration is not sound: {' '.join(repr(error).split())}") from error


def to_official(state_dict: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The reverse of `Checkpoint.state_dict`: all that a file of this layout holds, in its dtypes.

    Raises FormatError with every name and shape that does not fit the layout.
    """
    rows = layout.table()
    official = table.to_official(rows, state_dict, layout.sizes)
    for row in rows:
        if row.operation.lossy and all(name in layout.summands for name in row.sources):
            sources = [layout.summands[name] for name in row.sources]
            if all(
                value.to(state_dict[name].dtype).equal(state_dict[name])
                for name, value in zip(row.targets, row.operation.forward(sources), strict=True)
            ):
                official |= zip(row.sources, sources, strict=True)
    weights = {name: value.to(layout.dtype(name) or value.dtype) for name, value in official.items()}
    return {**weights, **layout.integers}


def layout_from_dict(values: Mapping[str, Any]) -> Layout:
    """The layout that `Layout.to_dict` described. Raises FormatError where it is of no known format, or unsound."""
    formats = {layout.format: layout for layout in LAYOUTS if layout is not ResNetLayout}
    try:
        return formats[values["format"]].from_dict({name: value for name, value in values.items() if name != "format"})
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise FormatError(f"the layout is not sound: {' '.join(repr(error).split())}") from error


def _read(path: Path, choices: Choices) -> Checkpoint:
    files = weight_files(path)
    container, tensors = read_files(files)
    layout = _find_layout(container, tensors, files[0].parent)
    weights = tensors
    if layout.integers:
        weights = {name: tensor for name, tensor in tensors.items() if name not in layout.integers}
    rows = layout.table()
    sizes, violations = table.solve(rows, weights)
    if violations:
        raise FormatError(f"this is not a sound {layout.format} checkpoint: {'; '.join(violations)}.")
    layout = replace(
        layout,
        sizes={**layout.sizes, **sizes},
        dtypes=dtypes_of(weights),
        summands={name: weights[name] for row in rows if row.operation.lossy for name in row.sources},
    )
    return Checkpoint(path, tuple(files), weights, layout, choices, layout.config(choices))


def _find_layout(container: str, tensors: Mapping[str, Tensor], folder: Path) -> Layout:
    for candidate in LAYOUTS:
        if layout := candidate.of(container, tensors, folder):
            return layout
    raise FormatError(
        "expected the weights of a CLIP or SigLIP as OpenAI, big_vision, open_clip, timm or transformers write them, "
        f"got {len(tensors)} tensors ({', '.join(list(tensors)[:3])} ...)."
    )
