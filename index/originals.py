"""The images that the rows of an index stand for, files or members of tar archives, and thumbnails of them."""

import os
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps

from ..formats import read_small
from ..messages import shown
from ..processing.image_download import MAX_BYTES
from ..processing.image_formats import open_formats
from ..processing.image_steps import composite_over, to_rgb, top_byte_of_16bit
from ..processing.tar_headers import BoundedHeader
from .sources import MEMBER

THUMBNAIL_SIDE = 320  # pixels of the longer side: sharp on a phone, where a column is about 160 points wide

_WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Thumbnail:
    """A small picture as the bytes of a JPEG file; of an image that cannot be read, none and in words why."""

    jpeg: bytes = b""
    size: tuple[int, int] = (0, 0)  # width, height in pixels
    problem: str = ""


def split_member(path: str) -> tuple[str, str]:
    """Return the file of a row's path and the member of it, "" where the file is the image itself."""
    if MEMBER not in path or os.path.exists(path):  # "::" may also be a part of a name
        return path, ""
    parts = path.split(MEMBER)
    splits = [(MEMBER.join(parts[:place]), MEMBER.join(parts[place:])) for place in range(1, len(parts))]
    return next((split for split in splits if os.path.isfile(split[0])), splits[0])


def read_originals(paths: Sequence[str]) -> Iterator[tuple[int, bytes | Exception]]:
    """Yield the place in `paths` and the content of each image, or why it cannot be read; one at a time is in memory.

    An archive is read once, from its beginning to the last member that is asked for, and yields in its own order.
    """
    members: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, path in enumerate(paths):
        file, member = split_member(path)
        if member:
            members[file][member].append(place)
            continue
        try:
            yield place, read_small(Path(file), MAX_BYTES)
        except (OSError, ValueError) as error:  # a ValueError for a name with a zero byte
            yield place, error
    for archive, places in members.items():
        yield from _read_members(archive, places)


def _read_members(archive: str, places: dict[str, list[int]]) -> Iterator[tuple[int, bytes | Exception]]:
    problem: Exception | None = None
    try:
        with tarfile.open(archive, tarinfo=BoundedHeader) as tar:
            for member in tar:
                if member.name in places and member.size > MAX_BYTES:
                    raise tarfile.ReadError(f"{shown(member.name)} has {member.size:,} bytes")
                if member.name in places and (stream := tar.extractfile(member)) is not None:
                    content = stream.read()
                    yield from ((place, content) for place in places.pop(member.name))
                if not places:
                    return
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        problem = error
    for name, left in places.items():
        missing = problem or OSError(f"{archive} has no member {name}.")
        yield from ((place, missing) for place in left)


def make_thumbnail(source: bytes | Image.Image, side: int = THUMBNAIL_SIDE) -> Thumbnail:
    """Return a thumbnail of at most `side` pixels of an image, or of the content of its file.

    It is upright as its EXIF data say, and on white where it is transparent.
    """
    try:
        image = open_formats(BytesIO(source)) if isinstance(source, bytes) else source.copy()
        image.thumbnail((side, side), reducing_gap=2.0)  # a JPEG is decoded at a fraction of its size
        small = to_rgb(composite_over(top_byte_of_16bit(ImageOps.exif_transpose(image)), _WHITE))
        buffer = BytesIO()
        small.save(buffer, "JPEG", quality=80)
    except Exception as error:  # Pillow's decoders raise errors of any type for files that they cannot read
        return Thumbnail(problem=_describe(error))
    return Thumbnail(buffer.getvalue(), small.size)


def make_thumbnails(paths: Sequence[str], side: int = THUMBNAIL_SIDE) -> list[Thumbnail]:
    """Return a thumbnail for each path of an index; see `make_thumbnail`."""
    thumbnails = [Thumbnail()] * len(paths)
    for place, content in read_originals(paths):
        if isinstance(content, bytes):
            thumbnails[place] = make_thumbnail(content, side)
        else:
            thumbnails[place] = Thumbnail(problem=_describe(content))
    return thumbnails


def _describe(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "The file is not there any more."
    return str(error) or type(error).__name__
