"""open_clip's own preprocessing of images, run in a process of its own (see `open_clip_models.py`).

    python open_clip_transform.py PACKAGES CASES IMAGES OUTPUTS

Writes to OUTPUTS (.npz) what `image_transform_v2` makes of every image in IMAGES (.npz, uint8) under every
`preprocess_cfg` in CASES (.json): an array named `case/image`.
"""

import json
import sys
from pathlib import Path

import numpy as np
from open_clip_models import import_packages
from PIL import Image


def main(packages: str, cases: str, images: str, outputs: str) -> None:
    import_packages(packages.split(":"))
    from open_clip.transform import PreprocessCfg, image_transform_v2

    arrays = {}
    for case, settings in json.loads(Path(cases).read_text()).items():
        transform = image_transform_v2(PreprocessCfg(**settings), is_train=False)
        for name, levels in np.load(images).items():
            arrays[f"{case}/{name}"] = transform(Image.fromarray(levels)).numpy()
    np.savez(outputs, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
