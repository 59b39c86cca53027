"""The memory of a PIL image as a tensor, without a copy, through the Arrow C data interface that Pillow exports.

Packing an image into bytes and copying these takes longer than resizing it.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image


class _ArrowArray(ctypes.Structure):
    """`struct ArrowArray` of arrow.apache.org/docs/format/CDataInterface.html."""


_ArrowArray._fields_ = [
    *((name, ctypes.c_int64) for name in ("length", "null_count", "offset", "n_buffers", "n_children")),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
    *((name, ctypes.c_void_p) for name in ("dictionary", "release", "private_data")),
]
_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


@contextmanager
def borrowed_levels(image: Image.Image) -> Iterator[torch.Tensor]:
    """Provide the levels (channels, height, width) of an RGB or L image; RGB has a fourth channel without meaning.

    They lie in Pillow's own memory: read them, and only inside the `with`. Where Pillow keeps them in several pieces
    (from 16 MB on), they are a copy.
    """
    capsule = None
    try:
        _, capsule = image.__arrow_c_array__()
        array = _ArrowArray.from_address(_pointer_of(capsule, b"arrow_array"))
        if array.n_children:
            array = array.children[0].contents
        size = array.length * ctypes.sizeof(ctypes.c_uint8)
        levels = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(array.buffers[1]))
    except (AttributeError, ValueError, MemoryError):
        levels = np.array(image)
    yield torch.from_numpy(levels.reshape(image.height, image.width, -1)).permute(2, 0, 1)
    del capsule  # kept up to here, since it owns the memory together with the image
