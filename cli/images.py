"""The arguments IMAGE... of commands: image files, folders, patterns of file names, and URLs."""

import glob
import os
from collections.abc import Iterable, Iterator

ADDRESSES = ("http:", "https:", "file:", "data:")  # how what is no path begins


def find_images(arguments: Iterable[str]) -> list[str]:
    """Return the images that arguments name, in the order of the arguments.

    A folder stands for the images in it and in all folders in it, without hidden ones, and a pattern such as
    `photos/**/*.jpg` for the files that match it, sorted by name. Anything else is an image itself, whether or not it
    can be read. Raises FileNotFoundError for a folder or a pattern without images.
    """
    return [image for argument in arguments for image in _images_of(argument)]


def _images_of(argument: str) -> list[str]:
    if os.path.isdir(argument):
        if not (found := [*_walk(argument)]):
            raise FileNotFoundError(f"Expected images in the folder {argument}, got none.")
        return found
    is_pattern = any(character in argument for character in "*?[") and not argument.lower().startswith(ADDRESSES)
    if not is_pattern or os.path.exists(argument):
        return [argument]
    if not (found := sorted(path for path in glob.iglob(argument, recursive=True) if not os.path.isdir(path))):
        raise FileNotFoundError(f"Expected images, got the pattern {argument!r}, which no file matches.")
    return found


def _walk(folder: str) -> Iterator[str]:
    """Yield the images in a folder and in the folders in it, sorted by name in each."""
    from ..processing.image_files import is_image_name

    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(parent, name) for name in sorted(names) if is_image_name(name))
