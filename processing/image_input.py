"""The images that a caller may pass: files in any form, PIL images, arrays and tensors, alone or in lists."""

import base64
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from io import BytesIO, UnsupportedOperation
from threading import Lock
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes
from urllib.request import url2pathname

import numpy as np
import torch
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from ..catalogue.addresses import is_address, shown_address
from .image_arrays import highest_float
from .image_download import download_image
from .image_formats import open_formats, starts_a_program, unopened_format

# What `open_image` raises; a warning, such as Pillow's of many pixels, where the caller has made it an error.
READ_ERRORS = (TypeError, ValueError, OSError, Image.DecompressionBombError, Warning)

_LONGEST_NAME, _LONGEST_BASE64_NAME = 255, 64  # characters; a longer text may be an image itself, which nobody reads
# What Pillow says of files that may be sound, but that it, or a library that it was built with, does not decode.
_NOT_DECODABLE = re.compile("not available|find loader|locate|unsupported|unimplemented|unknown|decoder error", re.I)

# Pillow reads the file of an image when it is first used, which two threads must not do at the same time.
_LOCKS = [Lock() for _ in range(61)]


def _renew_locks() -> None:
    _LOCKS[:] = [Lock() for _ in _LOCKS]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)  # the threads that hold them stay behind


@dataclass(frozen=True)
class ImageItem:
    """One image of a call, and the name by which errors call it, "" for its place in the call.

    `highest` is the highest value of the array of floats that it is a part of, which tells the scale of all parts.
    """

    image: Any
    name: str = ""
    highest: float | None = None


def flatten_images(images: Any, name: str = "") -> list[ImageItem]:
    """Return one flat list of the images in nested collections and four-dimensional batches, without opening any.

    A collection is a list, an array of objects or texts, a column of a data set or any other iterable.
    """
    if isinstance(images, ImageItem):
        return flatten_images(images.image, images.name) if images.highest is None else [images]
    if isinstance(images, np.ndarray) and images.ndim < 3 and images.dtype.kind in "OUST":
        images = images.ravel().tolist()
    if isinstance(images, np.ndarray | torch.Tensor):
        if images.ndim == 4:
            highest = highest_float(images)
            return [ImageItem(image, name, highest) for image in images]
        is_collection = False
    else:
        is_one = isinstance(images, str | bytes | bytearray | memoryview | Mapping) or hasattr(images, "read")
        is_collection = isinstance(images, Iterable) and not is_one
    if not is_collection:
        return [ImageItem(images, name)]
    if isinstance(images, ImageSequence.Iterator):  # it yields one image again and again, and changes it
        images = (frame.copy() for frame in images)
    return [item for entry in images for item in flatten_images(entry, name)]


def named_error(error: Exception, name: str) -> Exception:
    """Return an error of the same type that says which image it is about."""
    kind = ValueError if isinstance(error, UnicodeError) else type(error)  # those are not made of a message
    return kind(f"{name}: {error}")


def open_image(source: object, exif_transpose: bool = False) -> Image.Image:
    """Decode a PIL image, a path, a URL, the bytes of a file, these in base64, or an open file; its first frame.

    A URL begins with http, https, file or data. `{"bytes": ..., "path": ...}` is a file as `datasets` has it. Raises
    ValueError where an image has none of the `FORMATS` of `image_formats`, cannot be read or has no pixels, and OSError
    where a file or URL is out of reach. Pillow's limit against decompression bombs (`Image.MAX_IMAGE_PIXELS`) applies.
    """
    name = ""
    if isinstance(source, Mapping) and source.keys() & {"bytes", "path"}:
        path = source.get("path")
        name = short_name(path) if isinstance(path, str) else ""
        source = source.get("bytes") or path
    if isinstance(source, Image.Image):
        return _decode(source, os.fsdecode(getattr(source, "filename", "")) or "the image", exif_transpose)
    if isinstance(source, str | os.PathLike):
        return _open_text(os.fsdecode(source), exif_transpose)
    if hasattr(source, "read"):
        source = _read_file(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode_bytes(bytes(source), name or f"{len(source)} bytes", exif_transpose)
    raise TypeError(
        "Expected PIL images, NumPy arrays, PyTorch tensors, paths, URLs, open files, the bytes of files or these in "
        f"base64, or lists of them, got {type(source).__name__}."
    )


def _open_text(text: str, exif_transpose: bool) -> Image.Image:
    """Open a URL, a path or base64."""
    if text.lstrip()[:5].lower() == "data:":
        return _decode_bytes(text.encode(), f"a data URI of {len(text)} characters", exif_transpose)
    name = short_name(text)
    if is_address(text):
        return _decode(BytesIO(download_image(text.strip())), name, exif_transpose)
    path = local_path(text)
    if os.path.isfile(path):
        with open(path, "rb") as file:
            return _decode(file, name, exif_transpose)
    if os.path.isdir(path):
        raise IsADirectoryError(f"Expected an image file, got {name}, which is a folder: pass the files in it.")
    if (decoded := _from_base64(text)) and (len(text) > _LONGEST_BASE64_NAME or _is_image(decoded)):
        name = f"a text of {len(text)} characters (taken for base64, because there is no such file)"
        return _decode(BytesIO(decoded), name, exif_transpose)
    raise FileNotFoundError(f"Expected an image file, got {name}, which is not there.")


def local_path(text: str) -> str:
    """Return the path in a file URL, and any other text as it is."""
    if not text[:6].lower().startswith("file:/"):
        return text
    encoded = text[len("file:") :].removeprefix("//localhost").removeprefix("//")
    return encoded if os.path.exists(encoded) else url2pathname(encoded)


def short_name(text: str) -> str:
    """Return the name by which errors call a path or URL, without what is private: a long text may be an image."""
    if is_address(text):
        return shown_address(text.strip())
    return text if len(text) <= _LONGEST_NAME else f"a text of {len(text)} characters"


def _from_base64(text: str) -> bytes | None:
    """Return the bytes that a text is in base64, of the plain or the URL-safe alphabet; None if it is not."""
    try:
        digits = "".join(map(str.strip, text.splitlines())).rstrip("=").replace("-", "+").replace("_", "/")
        return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except ValueError:
        return None


def _is_image(data: bytes) -> bool:
    try:
        open_formats(BytesIO(data))
    except UnidentifiedImageError:
        return False
    except Exception:  # it is one, and opening it again will say what is wrong with it
        return True
    return True


def _read_file(file: Any) -> bytes:
    """Return all that an open file holds."""
    try:
        with _lock_of(file):
            with suppress(AttributeError, UnsupportedOperation):
                file.seek(0)  # as Pillow does
            data = file.read()
    except UnicodeDecodeError:  # it was opened as text
        data = ""
    except ValueError as error:
        raise ValueError(f"Expected an open file, got a {type(file).__name__} that cannot be read: {error}") from error
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(
            f"Expected a file opened as binary ('rb'), got a {type(file).__name__} of which read() returns "
            f"{type(data).__name__}."
        )
    return bytes(data)


def _lock_of(source: object) -> Lock:
    return _LOCKS[id(source) % len(_LOCKS)]


def _decode_bytes(data: bytes, name: str, exif_transpose: bool) -> Image.Image:
    """Decode the bytes of a file, or these in a data URI or in base64."""
    if data[:16].lstrip()[:5].lower() == b"data:":
        data = unquote_to_bytes(data.partition(b",")[2])
    if data.isascii() and (decoded := _from_base64(data.decode())) and _is_image(decoded):
        data = decoded
    return _decode(BytesIO(data), name, exif_transpose)


def _decode(source: Image.Image | BinaryIO, name: str, exif_transpose: bool) -> Image.Image:
    is_opened = isinstance(source, Image.Image)
    try:
        with _lock_of(source) if is_opened else nullcontext():
            image = source if isinstance(source, Image.Image) else open_formats(source)
            if starts_a_program(image):
                raise NotImplementedError(f"a program would have to decode {image.format}, and none is started")
            image.load()
            image = ImageOps.exif_transpose(image) if exif_transpose else image
    except Image.DecompressionBombError as error:
        raise Image.DecompressionBombError(f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        other = "" if isinstance(source, Image.Image) else unopened_format(source)
        if other:
            fault = f"which is {other}, a format that is not opened here: save it as PNG."
        else:
            fault = "which has no format that Pillow knows."
        raise ValueError(f"Expected an image, got {name}, {fault}") from error
    except MemoryError as error:
        raise ValueError(f"Expected an image, got {name}, which takes more memory than there is.") from error
    except Warning:  # which the caller has made an error
        raise
    except Exception as error:  # Pillow's decoders raise errors of any type for files that they cannot read
        reason = str(error) or type(error).__name__
        if is_opened and ("closed" in reason or isinstance(error, AssertionError)):
            fault = "which was closed before it was read"
        elif isinstance(error, NotImplementedError) or _NOT_DECODABLE.search(reason):
            fault = f"which Pillow cannot decode here: {reason}"
        else:
            fault = f"which is damaged: {reason}"
        raise ValueError(f"Expected an image, got {name}, {fault}") from error
    if 0 in image.size:
        raise ValueError(
            f"Expected an image with at least one pixel, got {name}, which is {image.width}x{image.height}."
        )
    return image
