"""What a conversion starts from: a file, a folder, or a name of the catalogue."""

from collections.abc import Callable
from pathlib import Path

from ..configuration import OfficialCheckpoint, check_geometry
from ..formats import Activation, Checkpoint, read_checkpoint
from .download import locate


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
    path, row = locate(source, progress=progress)
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
