"""Archives of weights: pickles, zips, .npz and safetensors files."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .trial import Case


def zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, contents in entries.items():
            archive.writestr(name, contents)
    return file.getvalue()


def array(shape: str, values: bytes = b"", dtype: str = "<f4") -> bytes:
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}}}".encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + values


def npz(arrays: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    return zipped({f"{name}.npy": contents for name, contents in arrays.items()}, compression)


def safetensors(header: Any, values: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + values


# Pieces of pickles. Those with {} are filled.
PROTO, STOP = b"\x80\x02", b"."
TUPLES = b"K\x01" + b"\x86".join([b"q\x00h\x00"] * 60) + b"\x86"  # a tuple of two, 60 times: 2**60 leaves
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"


def tensor(size: bytes = b"K\x01\x85", stride: bytes = b"K\x01\x85", offset: bytes = b"K\x00") -> bytes:
    """A tensor of storage 0."""
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + offset + size + stride + b"\x89)tR"


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def dictionary(*items: bytes) -> bytes:
    return b"}(" + b"".join(items) + b"u"


MODULE = b"c__torch__\nModule\n)\x81"
PICKLES: dict[str, Callable[[], bytes]] = {
    "bytearray of 4 GB": lambda: b"\x96" + struct.pack("<Q", 1 << 32),
    "bytes of 4 GB": lambda: b"\x8e" + struct.pack("<Q", 1 << 32),
    "text of 4 GB": lambda: b"X\xff\xff\xff\xff",
    "text of 2**62": lambda: b"\x8d" + struct.pack("<Q", 1 << 62),
    "integer of 2 GB": lambda: b"\x8b\xff\xff\xff\x7f",
    "frame of 2**62": lambda: b"\x95" + struct.pack("<Q", 1 << 62) + b"}",
    "memory of 2**31": lambda: b"]r\xff\xff\xff\x7f",
    "tuple as a key": lambda: dictionary(TUPLES, b"K\x01"),
    "tuple as a member": lambda: b"\x8f(" + TUPLES + b"\x90",
    "frozen set": lambda: b"(" + TUPLES + b"\x91",
    "tuple as a storage": lambda: b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + TUPLES + b"tQ",
    "tuple as a storage's kind": lambda: b"(" + TUPLES + b"ctorch\nFloatStorage\n" + text("0") + b"tQ",
    "tuple as a place": lambda: TUPLES + b"Q",
    "tuple as a size": lambda: dictionary(text("a"), tensor(size=TUPLES)),
    "tuple as an offset": lambda: dictionary(text("a"), tensor(offset=TUPLES)),
    "tuple as a value": lambda: dictionary(text("a"), TUPLES),
    "tuple as the file": lambda: TUPLES,
    "list that holds itself": lambda: b"]q\x00h\x00a",
    "dict that holds itself": lambda: b"}q\x00" + text("model") + b"h\x00s",
    "dicts in each other": lambda: b"}q\x00(" + b"".join(text(f"a{n}") + b"h\x00" for n in range(50_000)) + b"u",
    "copies of a dict": lambda: (
        b"}(" + b"".join(text(str(n)) + b"N" for n in range(20_000)) + b"uq\x00"
        + b"0ccollections\nOrderedDict\nh\x00\x85R" * 2000
    ),
    "copies of a dict, kept": lambda: (
        b"](" + b"}(" + b"".join(text(str(n)) + b"N" for n in range(20_000)) + b"uq\x00"
        + b"ccollections\nOrderedDict\nh\x00\x85R" * 2000 + b"e"
    ),
    "keys of one hash": lambda: dictionary(
        *(b"\x8a\x10" + (n * (2**61 - 1)).to_bytes(16, "little") + b"N" for n in range(1, 60_000))
    ),
    "module in itself": lambda: MODULE + b"q\x00}" + text("a") + b"h\x00sb",
    "modules in each other": lambda: (
        MODULE + b"q\x00}(" + b"".join(text(f"a{n}") + b"h\x00" for n in range(3000)) + b"ub"
    ),
    "module of a number": lambda: MODULE + b"K\x01b",
    "module with keys of numbers": lambda: MODULE + b"}K\x01K\x02sb",
    "attributes of a tensor": lambda: tensor() + b"}b",
    "call of a number": lambda: b"K\x01)R",
    "call without a tuple": lambda: b"ccollections\nOrderedDict\nK\x01R",
    "call of a command": lambda: b"cos\nsystem\n" + text("touch executed") + b"\x85R",
    "call by name": lambda: text("os") + text("system") + b"\x93" + text("touch executed") + b"\x85R",
    "getattr": lambda: b"cbuiltins\ngetattr\n(ctorch\nload\n" + text("x") + b"tR",
    "old call": lambda: b"(S'touch executed'\nios\nsystem\n",
    "extension": lambda: b"\x82\x01",
    "class without end": lambda: b"c" + b"a" * 3_000_000,
    "nothing to pop": lambda: b"aRbst",
    "mark without end": lambda: b"(" * 200_000,
    "lists in lists": lambda: b"]" * 500_000 + b"a" * 499_999,
    "tuples in tuples": lambda: b")" + b"\x85" * 500_000,
    "million lists": lambda: b"]" * 5_000_000,
    "name of a megabyte": lambda: dictionary(text("a" * 1_000_000), tensor()),
    "name of controls": lambda: dictionary(text("visual.\x1b[2J\n\x00"), tensor()),
    "name of a surrogate": lambda: dictionary(text("visual.\ud800"), tensor()),
    "many names of 900": lambda: dictionary(
        b"c__torch__\nX\n0", *(text(f"{n}" + "visual." * 130) + b"N" for n in range(3000))
    ),
    "many tensors": lambda: dictionary(
        tensor() + b"q\x000", *(text(f"visual.{n}.weight") + b"h\x00" for n in range(100_000))
    ),
    "tensors of many dimensions": lambda: (
        b"(" + b"K\x01" * 100_000 + b"tq\x000"
        + dictionary(*(text(f"visual.{n}") + tensor(size=b"h\x00", stride=b"h\x00") for n in range(1000)))
    ),
    "negative offset": lambda: dictionary(text("a"), tensor(offset=b"J\xff\xff\xff\xff")),
    "huge stride": lambda: dictionary(text("a"), tensor(stride=b"\x8a\x08" + bytes([255] * 7) + b"\x7f\x85")),
    "overflowing size": lambda: dictionary(
        text("a"), tensor(size=(b"\x8a\x05" + bytes(4) + b"\x01") * 2 + b"\x86", stride=b"K\x00K\x00\x86")
    ),
    "size of text": lambda: dictionary(text("a"), tensor(size=text("a") + b"\x85")),
    "storage out of the archive": lambda: (
        dictionary(text("a"), tensor()).replace(text("0"), text("../../../etc/passwd"))
    ),
    "nothing": lambda: b"",
}  # fmt: skip


def _without_stop(make: Callable[[], bytes]) -> bytes:
    return PROTO + make() + STOP


def _as_zip(make: Callable[[], bytes]) -> bytes:
    return zipped({"archive/data.pkl": _without_stop(make), "archive/data/0": bytes(4)})


_LEGACY_HEAD: tuple[object, ...] = (0x1950A86A20F9469CFC6C, 1001, {})


def _as_legacy(make: Callable[[], bytes]) -> bytes:
    """After the three pickles that old files begin with."""
    return b"".join(pickle.dumps(value, 2) for value in _LEGACY_HEAD) + _without_stop(make)


def _legacy_storage(keys: bytes, sizes: bytes) -> bytes:
    root = dictionary(text("a"), tensor())
    return _as_legacy(lambda: root) + PROTO + keys + STOP + sizes


def _bits(place: int, value: bytes) -> bytes:
    """A zip with some bytes of its directory replaced."""
    data = bytearray(npz({"params/t": array("(1,)", bytes(4))}))
    start = data.rindex(b"PK\x01\x02")
    data[start + place : start + place + len(value)] = value
    return bytes(data)


def _entries(count: int) -> bytes:
    """A directory of so many entries, all of them the same bytes."""
    data = zipped({"a.npy": b""})
    start, end = data.rindex(b"PK\x01\x02"), data.rindex(b"PK\x05\x06")
    directory = data[start:end] * count
    return (
        data[:start] + directory + b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 65535, 65535, len(directory), start, 0)
    )


def _header(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4), **further: Any) -> dict[str, Any]:
    return {"visual.conv1.weight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}, **further}


FILES: dict[str, Callable[[], bytes]] = {
    "zip bomb": lambda: zipped({"archive/data.pkl": bytes(100_000_000)}, zipfile.ZIP_DEFLATED),
    "bomb of arrays": lambda: npz({"params/t": array("(25000000,)", bytes(100_000_000))}, zipfile.ZIP_DEFLATED),
    "zip of two million entries": lambda: _entries(2_000_000),
    "zip of 100,000 entries": lambda: _entries(100_000),
    "zip that says it is large": lambda: _bits(24, b"\xff\xff\xff\x7f"),
    "zip whose entry is elsewhere": lambda: _bits(42, b"\xff\xff\xff\x7f"),
    "encrypted zip": lambda: _bits(8, b"\x01\x00"),
    "zip of an unknown method": lambda: _bits(10, b"\x63\x00"),
    "array of 2**40": lambda: npz({"params/t": array("(1<<40,)")}),
    "array of 10**11": lambda: npz({"params/t": array("(99999999999,)")}),
    "compressed array of 10**11": lambda: npz({"params/t": array("(99999999999,)")}, zipfile.ZIP_DEFLATED),
    "array of negative size": lambda: npz({"params/t": array("(-4,)")}),
    "array of two negative sizes": lambda: npz({"params/t": array("(-2, -2)", bytes(16))}),
    "array of nothing": lambda: npz({"params/t": array("(9999999999999,)", dtype="<V0")}),
    "array of objects": lambda: npz({"params/t": array("(1,)", pickle.dumps([print]), dtype="|O")}),
    "array of texts": lambda: npz({"params/t": array("(1,)", bytes(4), dtype="<U1")}),
    "array of big ends": lambda: npz({"params/t": array("(1,)", bytes(4), dtype=">f4")}),
    "array that calls": lambda: npz({"params/t": array("__import__('os').system('touch executed')")}),
    "array of deep sizes": lambda: npz({"params/t": array("(" * 3000 + ")" * 3000)}),
    "thousand arrays": lambda: npz({f"params/{n}": array("(1,)", bytes(4)) for n in range(1000)}),
    "names of arrays": lambda: npz({"params/\x1b[2J\n" + "a" * 5000: array("(1,)", bytes(4))}),
    "30,000 arrays": lambda: npz({f"params/img/{n}": array("(1,)", bytes(4)) for n in range(30_000)}),
    "safetensors of 2**60": lambda: struct.pack("<Q", 1 << 60) + b"{" + bytes(100),
    "safetensors outside": lambda: safetensors(_header(shape=(9,), offsets=(0, 36))),
    "safetensors backwards": lambda: safetensors(_header(offsets=(4, 0)), bytes(4)),
    "safetensors of negative size": lambda: safetensors(_header(shape=(-1,)), bytes(4)),
    "safetensors of fractions": lambda: safetensors(_header(shape=(1.5,)), bytes(4)),
    "safetensors of NaN": lambda: safetensors(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4)),
    "safetensors twice": lambda: safetensors(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        bytes(8),
    ),
    "safetensors of float8": lambda: safetensors(_header("F8_E4M3", (4,)), bytes(4)),
    "safetensors of float4": lambda: safetensors(_header("F4", (8,)), bytes(4)),
    "safetensors of complex": lambda: safetensors(_header("C64", (1,), (0, 8)), bytes(8)),
    "safetensors overflowing": lambda: safetensors(_header(shape=(1 << 62, 1 << 62)), bytes(4)),
    "safetensors of dimensions": lambda: safetensors(_header(shape=[1] * 100_000), bytes(4)),
    "safetensors of metadata": lambda: safetensors(_header(__metadata__={"a": "b" * 1_000_000}), bytes(4)),
    "safetensors deep": lambda: safetensors(b'{"a":' + b"[" * 1_000_000, bytes(4)),
    "safetensors of nothing": lambda: safetensors(
        {f"visual.{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(50_000)}
    ),
    "safetensors of names": lambda: safetensors(
        {"visual.\x1b[2J\n" + "a" * 100_000: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)
    ),
    "empty": lambda: b"",
    "beginning of a zip": lambda: b"PK\x03\x04",
    "beginning of a pickle": lambda: b"\x80",
    "zeros": lambda: bytes(1_000_000),
    "legacy storage of 2**63": lambda: _legacy_storage(b"](" + text("0") + b"e", b"\xff" * 8),
    "legacy storage that is not there": lambda: _legacy_storage(b"](" + text("1") + b"e", bytes(8)),
    "legacy storages of tuples": lambda: _legacy_storage(b"](" + TUPLES + b"e", bytes(8)),
    "legacy storage twice": lambda: _legacy_storage(b"](" + text("0") * 100_000 + b"e", bytes(1_000_000)),
    "legacy storages of a number": lambda: _legacy_storage(b"K\x01", bytes(8)),
}  # fmt: skip


def _write(make: Callable[[], bytes], folder: Path) -> None:
    (folder / "file").write_bytes(make())


def _shared() -> bytes:
    """A thousand tensors by the same bytes."""
    file, value = io.BytesIO(), torch.zeros(1000)
    torch.save({f"visual.transformer.resblocks.{n}.ln_1.weight": value for n in range(1000)}, file)
    return file.getvalue()


NAMED: dict[str, Callable[[], bytes]] = {
    **{f"zip: {name}": partial(_as_zip, make) for name, make in PICKLES.items()},
    **{f"legacy: {name}": partial(_as_legacy, make) for name, make in PICKLES.items()},
    **FILES,
    "shared values": _shared,
}
_SLOW = (*(f"legacy: {name}" for name in PICKLES), "zip: million lists", "zip: tuples in tuples", "zip: lists in lists",
         "zip: class without end", "zip: many tensors", "zip of two million entries", "zip of 100,000 entries",
         "zip bomb", "bomb of arrays", "30,000 arrays", "safetensors of nothing")  # fmt: skip
SAMPLE = tuple(name for name in NAMED if name not in _SLOW)[::15]
ALL = tuple(NAMED)


def cases(names: Iterable[str]) -> dict[str, Case]:
    return {name: Case(partial(_write, NAMED[name])) for name in names}
