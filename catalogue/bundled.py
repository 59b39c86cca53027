"""The files in `assets/`: two small checkpoints, which were trained on `twinlens.toy_world`, and a photograph."""

import json
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
BUNDLED_LICENSE = "apache-2.0"  # that of the package


def bundled_checkpoint(name: str) -> BundledCheckpoint:
    """Return the files of the bundled checkpoint `name`, which is one of `BUNDLED`."""
    return _CHECKPOINTS[name]


def bundled_name(weights: Path) -> str | None:
    """Return the name of the bundled checkpoint in a file, None for another file."""
    return next((name for name, checkpoint in _CHECKPOINTS.items() if checkpoint.weights == weights), None)


def describe_training(name: str) -> str:
    """Return who trained a bundled checkpoint, how, and what it can do, from the report beside its weights."""
    report = json.loads(bundled_checkpoint(name).weights.with_suffix(".json").read_text(encoding="utf-8"))
    return (
        f"The authors of twinlens trained it from random weights, on a CPU, for the package that it is part of: "
        f"{report['updates']:,} updates and {report['pairs']:,} drawings of coloured shapes with captions "
        f"(`twinlens.toy_world`), each used once, in {report['cpu_minutes']:.0f} minutes of one thread. It finds the "
        f"caption of {report['metrics']['zero_shot_accuracy']:.1%} of new drawings among 100, and knows nothing "
        "about photographs. `python -m twinlens.toy_world.reproduce FOLDER` trains it again."
    )
