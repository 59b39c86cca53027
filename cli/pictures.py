"""Pictures that commands write."""

import os
from pathlib import Path


def picture_format(out: Path, image: str) -> str:
    """Return the format of a picture by its name. Raises an error for a name that cannot be written."""
    from PIL import Image

    file_format = Image.registered_extensions().get(out.suffix.lower())
    if file_format is None or file_format not in Image.SAVE:
        raise ValueError(f"Expected the name of a picture, such as out.png, got {out}.")
    if out.is_dir():
        raise IsADirectoryError(f"Expected the name of a picture to write, got the folder {out}.")
    if os.path.exists(image) and out.exists() and os.path.samefile(image, out):
        raise FileExistsError(f"Expected another name than that of the image, got {out} for both.")
    return file_format
