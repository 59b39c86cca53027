"""The small trained checkpoints that are part of this package, by name (`twinlens.shapes` is the world they know)."""

from importlib.resources import files
from pathlib import Path

_FILES = {  # weights in an official layout, and their vocabulary
    "siglip-shapes": ("siglip-shapes.npz", "shapes.model"),
    "clip-shapes": ("clip-shapes.pt", "bpe_shapes_vocab.txt.gz"),
}
BUNDLED = tuple(_FILES)


def bundled_checkpoint(name: str) -> tuple[Path, Path]:
    """The official file of this name, and its vocabulary."""
    assets = Path(str(files(f"{__package__.rpartition('.')[0]}.shapes"))) / "assets"
    weights, vocabulary = _FILES[name]
    return assets / weights, assets / vocabulary
