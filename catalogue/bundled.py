"""The files in `assets/`: two small checkpoints, which were trained on `twinlens.toy_world`, and a photograph."""

from pathlib import Path
from typing import NamedTuple

_ASSETS = Path(__file__).with_name("assets")

PHOTOGRAPH = _ASSETS / "cat.jpg"  # source and licence are in cat.txt


class BundledCheckpoint(NamedTuple):
    """Paths of an official file and of its vocabulary."""

    weights: Path
    vocabulary: Path


_CHECKPOINTS = {
    "siglip-shapes": BundledCheckpoint(_ASSETS / "siglip-shapes.npz", _ASSETS / "shapes.model"),
    "clip-shapes": BundledCheckpoint(_ASSETS / "clip-shapes.pt", _ASSETS / "bpe_shapes_vocab.txt.gz"),
}
BUNDLED = tuple(_CHECKPOINTS)


def bundled_checkpoint(name: str) -> BundledCheckpoint:
    """Return the files of the bundled checkpoint `name`, which is one of `BUNDLED`."""
    return _CHECKPOINTS[name]
