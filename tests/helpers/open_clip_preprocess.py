"""open_clip's own preprocessing, run in a process of its own: `image_transform_v2` on torchvision's transforms.

    python open_clip_preprocess.py PACKAGES IMAGES CONFIGS RESULTS

PACKAGES are the folders that `open_clip_models.import_packages` takes, separated by colons; IMAGES is a pickle of
{name: PIL image}, CONFIGS a JSON file of {name: preprocess_cfg}. Writes the pixels of each "config/image" to RESULTS,
a `.npz`.
"""

import json
import pickle
import sys
from pathlib import Path

import numpy as np
from open_clip_models import import_packages


def main(packages: str, images: str, configs: str, results: str) -> None:
    import_packages(packages.split(":"))
    from open_clip.transform import PreprocessCfg, image_transform_v2

    pixels = {}
    for config_name, config in json.loads(Path(configs).read_text()).items():
        transform = image_transform_v2(PreprocessCfg(**config), is_train=False)
        for image_name, image in pickle.loads(Path(images).read_bytes()).items():
            pixels[f"{config_name}/{image_name}"] = transform(image).numpy()
    np.savez(results, **pixels)


if __name__ == "__main__":
    main(*sys.argv[1:])
