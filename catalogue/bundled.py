"""The two small checkpoints that are part of this package; they were trained on `twinlens.toy_world`."""

from importlib.resources import files
from pathlib import Path

_FILES = {  # weights in an official layout, and their vocabulary
    "siglip-shapes": ("siglip-shapes.npz", "shapes.model"),
    "clip-shapes": ("clip-shapes.pt", "bpe_shapes_vocab.txt.gz"),
}
BUNDLED = tuple(_FILES)


def bundled_checkpoint(name: str) -> tuple[Path, Path]:
    """The official file of this name, and its vocabulary."""
    assets = Path(str(files(__package__))) / "assets"
    weights, vocabulary = _FILES[name]
    return assets / weights, assets / vocabulary
