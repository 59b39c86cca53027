"""Labelled images from folders, one folder for each class."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from torch.utils.data import Dataset

from ..messages import quoted
from ..processing.image_files import is_image


def image_classes(folder: str | Path) -> tuple["LabelledImages", list[str]]:
    """Return labelled images and the names of their classes.

    `folder` has one folder of images for each class, named after it; `_` in a name stands for a space. Hidden folders
    are no classes. Labels follow the order of the names. Raises ValueError for a folder without images, and where two
    names are equal.
    """
    folder = Path(folder)
    content = folder.iterdir() if folder.is_dir() else ()
    classes = sorted(path for path in content if path.is_dir() and not path.name.startswith("."))
    files = [(file, label) for label, path in enumerate(classes) for file in sorted(path.iterdir()) if is_image(file)]
    if not files:
        raise ValueError(f"Expected a folder with a folder of images for each class, got {folder} without any.")
    paths, labels = zip(*files, strict=True)
    names = [path.name.replace("_", " ") for path in classes]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"Expected one folder for each class in {folder}, got several for {quoted(repeated[0])}.")
    return LabelledImages(paths, labels), names


class LabelledImage(TypedDict):
    image: str  # a path
    label: int  # the number of its class


class LabelledImages(Dataset[LabelledImage]):
    """Paths of images with the numbers of their classes."""

    def __init__(self, files: Sequence[Path], labels: Sequence[int]) -> None:
        self.files, self.labels = [str(file) for file in files], list(labels)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> LabelledImage:
        return {"image": self.files[index], "label": self.labels[index]}
