"""OpenAI's own preprocessing, run in a process of its own: `clip/clip.py` on torchvision's transforms, unmodified.

Of torchvision only the transforms are imported, which are Python: its compiled operators belong to
one build of PyTorch, and no image passes through them.
"""

import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import packaging.version
import torch
from PIL import Image


def load_transform(openai: Path, torchvision: Path) -> Callable[[Image.Image], torch.Tensor]:
    """Import `clip.clip._transform` for 224 pixels; it stays in `sys.modules` beside what stands in for torchvision."""
    package: Any = types.ModuleType("torchvision")
    package.__path__ = [str(torchvision / "torchvision")]
    package.disable_beta_transforms_warning = lambda: None
    resources: Any = types.ModuleType("pkg_resources")  # clip.py takes `packaging` from it; setuptools has dropped it
    resources.packaging = packaging
    sys.modules |= {"torchvision": package, "pkg_resources": resources}
    sys.path.insert(0, str(next(openai.glob("openai-clip-*"))))
    from clip.clip import _transform

    return _transform(224)


def main(openai: Path, torchvision: Path, images: Path, results: Path) -> None:
    """Write what it makes of the images in a pickle of {name: PIL image}, given two unpacked distributions."""
    transform = load_transform(openai, torchvision)
    pictures = pickle.loads(images.read_bytes())
    arrays: dict[str, Any] = {name: transform(picture).numpy() for name, picture in pictures.items()}
    np.savez(results, **arrays)
