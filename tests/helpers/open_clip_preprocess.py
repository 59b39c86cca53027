"""open_clip's own preprocessing, run in a process of its own: `image_transform_v2` on torchvision's transforms."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from helpers.open_clip_models import import_transform


def main(packages: Sequence[Path], images: Path, configs: Path, results: Path) -> None:
    """Write the pixels of each "config/image" to `results`, a `.npz`.

    `packages` are the folders that `import_packages` takes, `images` is a pickle of {name: PIL image}, and `configs` a
    JSON file of {name: preprocess_cfg}.
    """
    open_clip: Any = import_transform(packages)
    pixels = {}
    for config_name, config in json.loads(configs.read_text()).items():
        transform = open_clip.image_transform_v2(open_clip.PreprocessCfg(**config), is_train=False)
        for image_name, image in pickle.loads(images.read_bytes()).items():
            pixels[f"{config_name}/{image_name}"] = transform(image).numpy()
    np.savez(results, **pixels)
