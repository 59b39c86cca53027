"""The formats of images that are opened: those whose decoders start no program and are fast."""

from contextlib import suppress
from typing import BinaryIO

from PIL import Image

# Pillow's names; HEIF and JXL are of pillow-heif and pillow-jxl-plugin, where a program has registered them. Left out
# are formats that Pillow hands to Ghostscript (EPS, and IPTC, which may hold one), those that it decodes pixel by pixel
# in Python however small the file is (FITS, DDS, QOI), what it has no decoder for (PDF, WMF, HDF5, ...), and formats of
# games and of old programs.
FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "MPO", "PPM", "DIB", "ICO", "ICNS", "TGA", "PSD",
    "PCX", "SGI", "HEIF", "JXL",
)  # fmt: skip
_RUN_BY_PROGRAMS = ("EPS", "IPTC")
_MOST_SCANS = 100  # of a progressive JPEG, each of which passes over all of its pixels; encoders write about ten
_PREFIX_BYTES = 16  # what Pillow shows to those that ask whether a file is theirs


def open_formats(file: BinaryIO) -> Image.Image:
    """Return what `PIL.Image.open` does, of these formats alone. Raises OSError for a JPEG that takes minutes."""
    Image.init()
    image = Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    if image.info.get("progressive"):
        place = file.tell()
        file.seek(0)
        if (scans := file.read().count(b"\xff\xda")) > _MOST_SCANS:
            raise OSError(f"it has {scans:,} scans, more than {_MOST_SCANS}")
        file.seek(place)
    return image


def unopened_format(file: BinaryIO) -> str:
    """Return the name of another format that Pillow takes a file for, "" where it knows none."""
    file.seek(0)
    prefix = file.read(_PREFIX_BYTES)
    for name, (_, accepts) in Image.OPEN.items():
        with suppress(Exception):  # of a short prefix
            if name not in FORMATS and accepts is not None and not isinstance(found := accepts(prefix), str) and found:
                return name
    return ""


def starts_a_program(image: Image.Image) -> bool:
    """Return whether a program would decode an image that a caller has opened."""
    return image.format in _RUN_BY_PROGRAMS and bool(getattr(image, "tile", None))
