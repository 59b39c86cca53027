"""Which files are images, and which are tars of them, by their names."""

from pathlib import Path

from PIL import Image

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")


def is_image(file: Path) -> bool:
    """Return whether a file is there and has a suffix that Pillow knows."""
    return is_image_name(file.name) and file.is_file()


def is_image_name(name: str) -> bool:
    """Return whether a name has a suffix that Pillow knows."""
    return Path(name).suffix.lower() in Image.registered_extensions()
