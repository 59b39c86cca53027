"""An official checkpoint, read and checked; and the way back to one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeGuard

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from typing_extensions import Unpack

from ..configuration import DualEncoderConfig, TextConfig, TowerConfig, VisionConfig, is_single_tower
from ..messages import listed, quoted
from . import table
from .big_vision import BigVisionLayout
from .errors import FormatError, one_line
from .layout import Layout, dtypes_of
from .open_clip import OpenClipLayout
from .open_clip_config import CONFIG_FILE
from .openai import OpenAILayout
from .openai_tower import OpenAITowerLayout
from .options import LoadOptions, check_options, resolve_option
from .other_models import refuse_other_models
from .reader import read_files, renamed, weight_files
from .small_files import read_json
from .timm import TimmLayout
from .transformers_folder import TransformersLayout, refuse_other_model_types
from .wrappers import log_unwrapped, unwrap_names

# In the order in which they are asked whether a file is theirs.
_CANDIDATES: tuple[type[Layout], ...] = (
    TransformersLayout,
    TimmLayout,
    OpenAITowerLayout,
    OpenClipLayout,
    OpenAILayout,
    BigVisionLayout,
)
_VOCABULARY_FILES = ("tokenizer.json", "spiece.model", "vocab.json")
LAYOUTS: dict[str, type[Layout]] = {  # by format
    layout.format: layout for layout in _CANDIDATES if layout is not OpenAITowerLayout
}

_ADDED_TOKENS = (
    "The end of text ({end}) is not the last id of the vocabulary. A text is pooled at its highest id, as in the code "
    "of the source, and so at an added token where it has one; --eos-token-id {end} pools it at its end."
)


# What the JSON in a folder, or its strict configuration, raises where it is not sound.
_UNSOUND = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, StrictDataclassError)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A sound official file or folder: every name, shape and value was checked against the rules of its layout."""

    path: Path
    files: tuple[Path, ...]  # the files that hold the weights: `path` itself, or some in this folder
    tensors: Mapping[str, Tensor] = field(repr=False)  # weights under their official names, as stored
    layout: Layout
    options: LoadOptions
    config: DualEncoderConfig | TowerConfig  # the second for one tower alone
    published_pixels: Mapping[str, Any] = field(default_factory=dict)  # the catalogue's, in open_clip's terms
    notes: tuple[str, ...] = ()  # warnings for whoever uses the checkpoint, a sentence or two each

    @property
    def format(self) -> str:
        """The name of the format: "openai", "big_vision", "open_clip", "timm" or "transformers"."""
        return self.layout.format

    @property
    def image_settings(self) -> dict[str, Any]:
        """The statements of the source about pixels, as settings of transformers' image processors.

        Raises FormatError for what the family's image processor cannot do; the model can be loaded all the same.
        """
        vision = getattr(self.config, "vision_config", self.config)
        if not isinstance(vision, VisionConfig) or vision.flexible_size:
            return {}
        try:
            return self.layout.image_settings(vision.image_size, self.published_pixels)
        except FormatError as error:
            raise FormatError(f"{self.path}: {error}") from error

    @property
    def text_settings(self) -> dict[str, Any]:
        """The statements of the source about texts, as settings of the family's tokenizer.

        Raises FormatError for what the tokenizer cannot do; the model can be loaded all the same.
        """
        try:
            return self.layout.text_settings()
        except FormatError as error:
            raise FormatError(f"{self.path}: {error}") from error

    @property
    def vocabulary(self) -> Path | None:
        """The folder of the weights, where the source states a tokenizer and the files of one lie there."""
        folder = self.files[0].parent
        held = any((folder / name).is_file() for name in _VOCABULARY_FILES)
        return folder if self.layout.names_tokenizer and held else None

    def with_end_of_text(self, eos_token_id: int) -> "Checkpoint":
        """Return this checkpoint with the end of text of its tokenizer, if it is an official file of CLIP.

        Where that is the last id of the vocabulary, it is the highest id of a text too, which the official code pools.
        Otherwise added tokens follow it: the rule of the official code stays, with a note.
        """
        config = self.config
        stated = isinstance(self.layout, TransformersLayout) or self.options.get("eos_token_id") is not None
        if stated or is_single_tower(config) or not config.text_config.ends_at_highest_id:
            return self
        if eos_token_id == config.text_config.vocab_size - 1:
            options = self.options | LoadOptions(eos_token_id=eos_token_id)
            return replace(self, options=options, config=self.layout.config(options))
        return replace(self, notes=(*self.notes, _ADDED_TOKENS.format(end=eos_token_id)))

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights in transformers' names and shapes and the file's dtypes, in memory one at a time."""
        rules = sorted(self.layout.rules(), key=lambda rule: rule.targets)  # files are written faster from start to end
        return table.to_transformers(rules, self.tensors)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all `weights`, each alone in its memory, which it may share with `tensors`."""
        return {name: table.contiguous_copy(tensor) for name, tensor in self.weights()}


def is_checkpoint_file(source: object) -> "TypeGuard[str | PathLike[str]]":
    """Return whether `source` is an existing file or a folder of open_clip, not one of transformers or a Hub id."""
    if not isinstance(source, (str, PathLike)):
        return False
    path = Path(source)
    return path.is_file() or ((path / CONFIG_FILE).is_file() and not (path / "config.json").is_file())


def read_checkpoint(path: str | PathLike[str], **options: Unpack[LoadOptions]) -> Checkpoint:
    """Read an official file, or a folder of open_clip, timm or transformers, without executing anything in it.

    `options` are what the file may not state (`LoadOptions`): `image_size`, `vision_activation`, `vision_heads`,
    `eos_token_id`.
    Raises FormatError with everything that is wrong, FileNotFoundError, or TypeError for an unknown option.
    """
    check_options(options)
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file, expected an official checkpoint.")
    try:
        return _read(path, options)
    except FormatError as error:
        raise FormatError(f"{path}: {one_line(error)}") from error
    except _UNSOUND as error:
        # The weights are sound by then; only the JSON in their folder, or its strict configuration, raises these.
        raise FormatError(f"{path}: its configuration is not sound: {one_line(repr(error))}") from error


def to_official(state_dict: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Return all that a file of this layout holds, in its dtypes: the reverse of `Checkpoint.state_dict`.

    Raises FormatError with every name and shape that does not fit the layout.
    """
    rules = layout.rules()
    official = table.to_official(rules, state_dict, layout.sizes)
    for rule in rules:
        if rule.operation.lossy and all(name in layout.merged_sources for name in rule.sources):
            # The merged arrays come back as they were, unless their sum has been trained since.
            sources = [layout.merged_sources[name] for name in rule.sources]
            if all(
                value.to(state_dict[name].dtype).equal(state_dict[name])
                for name, value in zip(rule.targets, rule.operation.forward(sources), strict=True)
            ):
                official |= zip(rule.sources, sources, strict=True)
    weights = {name: table.cast(value, layout.dtype(name)) for name, value in official.items()}
    return {**weights, **layout.integer_buffers}


def layout_from_dict(values: Mapping[str, Any]) -> Layout:
    """Return the layout that `Layout.to_dict` described. Raises FormatError for an unknown format or unsound fields."""
    try:
        layout = LAYOUTS[values["format"]]
        return layout.from_dict({name: value for name, value in values.items() if name != "format"})
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise FormatError(f"the layout is not sound: {one_line(repr(error))}") from error


def _read(path: Path, options: LoadOptions) -> Checkpoint:
    if not (path / CONFIG_FILE).is_file():  # weights of open_clip are read by their own JSON
        refuse_other_model_types(read_json(path / "config.json", {}))
    files = weight_files(path)
    container, tensors = read_files(files)
    refuse_other_models(tensors)
    prefix, names = unwrap_names(tensors)
    layout = _find_layout(container, prefix, renamed(tensors, names), files[0].parent)
    buffers = {layout.prefix + name: tensor for name, tensor in layout.integer_buffers.items()}
    layout = replace(layout, integer_buffers=buffers)
    full_names = {layout.prefix + name: stored for name, stored in names.items()}
    weights = renamed(tensors, {name: stored for name, stored in full_names.items() if name not in buffers})
    rules = layout.rules()
    sizes, violations = table.solve(rules, weights)
    if violations:
        raise FormatError(f"this is not a sound {layout.format} checkpoint: {listed(violations)}.")
    layout = replace(
        layout,
        sizes={**layout.sizes, **sizes},
        dtypes=dtypes_of(weights),
        merged_sources={name: weights[name] for rule in rules if rule.operation.lossy for name in rule.sources},
    )
    config = layout.config(options)
    if (end := options.get("eos_token_id")) is not None:
        text = getattr(config, "text_config", config)
        if not isinstance(text, TextConfig):
            raise FormatError(f"--eos-token-id {end} was given, but this file has no text tower.")
        resolve_option("eos_token_id", end, text.eos_token_id, "the end of a text")
    checkpoint = Checkpoint(path, tuple(files), weights, layout, options, config, notes=layout.notes())
    log_unwrapped(path, prefix, names)
    return checkpoint


def _find_layout(container: str, prefix: str, tensors: Mapping[str, Tensor], folder: Path) -> Layout:
    for candidate in _CANDIDATES:
        if layout := candidate.detect(container, prefix, tensors, folder):
            return layout
    model_type = read_json(folder / "config.json", {}).get("model_type")
    raise FormatError(
        "expected the weights of a CLIP or SigLIP as OpenAI, big_vision, open_clip, timm or transformers write them, "
        f"got {len(tensors)} tensors ({', '.join(list(tensors)[:3])} ...)"
        + (f", and beside them a config.json of model_type {quoted(model_type)}." if model_type else ".")
    )
