"""The source of a conversion: a file, a folder, or a name of the catalogue."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from ..catalogue import OfficialCheckpoint
from ..catalogue.download import Progress, resolve_source
from ..catalogue.official_checkpoint import ResNet, Tower, tower_geometry
from ..configuration import DualEncoderConfig, ResNetConfig, TowerConfig
from ..messages import quoted
from .checkpoint import Checkpoint, read_checkpoint
from .open_clip import OpenClipLayout
from .options import LoadOptions, check_options
from .pixels import STATED_PIXELS, disagreements


def read_source(
    source: str | Path, *, progress: Progress = lambda step: None, **options: Unpack[LoadOptions]
) -> tuple[Checkpoint, OfficialCheckpoint | None]:
    """Read a checkpoint, and return it with its entry in the catalogue where `source` is a name of it.

    A named checkpoint is downloaded and must have the geometry that its entry states, and the hash where one is
    published; the entry also says what the file does not. `options` are those of `read_checkpoint`.
    """
    check_options(options)
    path, entry = resolve_source(source, progress=progress)
    if entry is not None:
        options = _with_published_options(options, entry)
    progress(f"reading {path.name}")
    checkpoint = read_checkpoint(path, **options)
    if entry is not None:
        check_geometry(entry, checkpoint.config)
        # Files of other formats are preprocessed as their family's own code does.
        if isinstance(checkpoint.layout, OpenClipLayout):
            pixels = {name: value for name, value in asdict(entry.pixels).items() if name in STATED_PIXELS}
            notes = checkpoint.notes + disagreements(checkpoint.layout.preprocess_cfg, pixels)
            checkpoint = replace(checkpoint, published_pixels=pixels, notes=notes)
    return checkpoint, entry


def _with_published_options(options: LoadOptions, entry: OfficialCheckpoint) -> LoadOptions:
    published = LoadOptions(image_size=entry.image_size)
    if entry.format == "open_clip":  # the JSON of an open_clip repository may not contradict it
        published |= {"vision_activation": entry.activation, "vision_heads": getattr(entry.image, "heads", None)}
    return published | LoadOptions(**{name: value for name, value in options.items() if value is not None})  # type: ignore[typeddict-item]


def check_geometry(entry: OfficialCheckpoint, config: DualEncoderConfig) -> None:
    """Raise ValueError, with every difference, where a file's configuration is not that of its catalogue entry.

    Grids are compared, not pixels: 384 at patch 14 is 27x27 in a file, which says no more.
    """
    actual = _geometry(config)
    differences = [
        f"{name} {quoted(actual.get(name))}, expected {expected!r}"
        for name, expected in entry.geometry.items()
        if expected is not None and actual.get(name) != expected
    ]
    if differences:
        raise ValueError(f"This is not the official {entry.name}: {'; '.join(differences)}.")


def _geometry(config: DualEncoderConfig) -> dict[str, Any]:
    vision, text = config.vision_config, config.text_config
    return {
        "family": config.model_type,
        "image grid": vision.grid_size,
        "patch": vision.patch_size,
        **tower_geometry("image", _tower(vision)),
        **tower_geometry("text", _tower(text)),
        "embedding": config.projection_dim if config.text_projection else text.projection_size,
        "text length": text.max_position_embeddings,
        "vocabulary": text.vocab_size,
        "pad id": text.pad_token_id,
        "image activation": getattr(vision, "hidden_act", None),
        "text activation": text.hidden_act,
    }


def _tower(config: TowerConfig) -> Tower | ResNet:
    if isinstance(config, ResNetConfig):
        return ResNet(2 * config.stem_size, tuple(config.depths))
    return Tower(config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
