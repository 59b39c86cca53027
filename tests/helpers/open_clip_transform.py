"""open_clip's own preprocessing of images, run in a process of its own (see `open_clip_models.py`)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from helpers.open_clip_models import import_transform
from PIL import Image


def main(packages: Sequence[Path], cases: Path, images: Path, outputs: Path) -> None:
    """Write what `image_transform_v2` makes of images (.npz, uint8) under every `preprocess_cfg` in `cases` (.json).

    The arrays in `outputs` (.npz) are named `case/image`.
    """
    open_clip: Any = import_transform(packages)
    arrays: dict[str, Any] = {}
    for case, settings in json.loads(cases.read_text()).items():
        transform = open_clip.image_transform_v2(open_clip.PreprocessCfg(**settings), is_train=False)
        for name, levels in np.load(images).items():
            arrays[f"{case}/{name}"] = transform(Image.fromarray(levels)).numpy()
    np.savez(outputs, **arrays)
