"""What a conversion starts from: a file, a folder, or a name of the catalogue."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..catalogue import OfficialCheckpoint
from ..catalogue.download import resolve_source
from ..catalogue.official_checkpoint import Tower, tower_geometry
from ..configuration import DualEncoderConfig, TowerConfig
from .checkpoint import Checkpoint, read_checkpoint
from .layout import Activation


def read_source(
    source: str | Path,
    *,
    image_size: int | None = None,
    vision_activation: Activation | None = None,
    vision_heads: int | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> tuple[Checkpoint, OfficialCheckpoint | None]:
    """Read a checkpoint, and give its row where `source` is a name of the catalogue.

    A named one is downloaded and must have the geometry that stands there, and the hash where one is published; the
    row also says what its file does not. The other arguments are those of `read_checkpoint`.
    """
    path, row = resolve_source(source, progress=progress)
    if row is not None:
        image_size = image_size or row.image_size
        if row.format == "open_clip":  # whose JSON may not contradict it
            vision_activation = vision_activation or row.activation
            vision_heads = vision_heads or getattr(row.image, "heads", None)
    progress(f"reading {path.name}")
    checkpoint = read_checkpoint(
        path, image_size=image_size, vision_activation=vision_activation, vision_heads=vision_heads
    )
    if row is not None:
        check_geometry(row, checkpoint.config)
    return checkpoint, row


def check_geometry(row: OfficialCheckpoint, config: DualEncoderConfig) -> None:
    """Raise ValueError, with every difference, where a file's configuration is not that of the row.

    Grids are compared, not pixels: 384 at patch 14 is 27x27 in a file, which says no more.
    """
    found = _geometry(config)
    wrong = [
        f"{name} {found.get(name)!r}, expected {expected!r}"
        for name, expected in row.geometry.items()
        if expected is not None and found.get(name) != expected
    ]
    if wrong:
        raise ValueError(f"This is not the official {row.name}: {'; '.join(wrong)}.")


def _geometry(config: Any) -> dict[str, Any]:
    vision, text = config.vision_config, config.text_config
    return {
        "family": config.model_type,
        "image grid": vision.grid_size,
        "patch": vision.patch_size,
        **tower_geometry("image", _tower(vision)),
        **tower_geometry("text", _tower(text)),
        "embedding": config.projection_dim if config.projection else text.projection_size,
        "text length": text.max_position_embeddings,
        "vocabulary": text.vocab_size,
        "pad id": text.pad_token_id,
        "image activation": vision.hidden_act,
        "text activation": text.hidden_act,
    }


def _tower(config: TowerConfig) -> Tower:
    return Tower(config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
