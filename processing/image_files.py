"""Which files are images, and which are tars of them, by their names."""

from pathlib import Path

from PIL import Image

from .image_formats import FORMATS

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")


def is_image(file: Path) -> bool:
    """Return whether a file is there and has the name of an image (`is_image_name`)."""
    return is_image_name(file.name) and file.is_file()


def is_image_name(name: str) -> bool:
    """Return whether a name has a suffix of the formats that are opened, and is not hidden.

    macOS writes a hidden `._cat.jpg`, which is no image, beside each image on a disk or in a tar for other systems.
    """
    return (
        not Path(name).name.startswith(".") and Image.registered_extensions().get(Path(name).suffix.lower()) in FORMATS
    )
