"""Images: formats that start programs, sizes and streams beyond all bounds, and addresses of bad servers."""

import gzip
import io
import struct
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from helpers.servers import HEAD, Answer, dripping, file, redirect, saying, without_end
from PIL import Image

from .trial import Case
from .vocabularies import link, pipe, write

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 100 100
%%EndComments
0 0 100 100 rectfill
showpage
%%EOF
"""


def chunk(kind: bytes, contents: bytes) -> bytes:
    return struct.pack(">I", len(contents)) + kind + contents + struct.pack(">I", zlib.crc32(kind + contents))


def png(width: int, height: int, *before: bytes, mode: int = 2, rows: int = 0) -> bytes:
    """A PNG that states a size and has some rows of it, all black."""
    head = chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, mode, 0, 0, 0))
    channels = {0: 1, 2: 3, 6: 4}[mode]
    packer = zlib.compressobj(9)
    row = bytes(1 + width * channels)
    packed = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(before) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    """Zeros in zlib's form, a thousandth of their number."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(count >> 20)) + packer.flush()


def saved(form: str, size: tuple[int, int] = (20, 20), mode: str = "RGB", **settings: object) -> bytes:
    data = io.BytesIO()
    Image.new(mode, size).save(data, form, **settings)
    return data.getvalue()


def resized(image: bytes, form: str, side: int) -> bytes:
    """Let an image of 20x20 state another size."""
    return image.replace(struct.pack(form, 20, 20), struct.pack(form, side, side))


def tiff(*tags: tuple[int, int, int, int], following: int = 0) -> bytes:
    """A TIFF of one directory with these tags, each (number, type, count, value), and the place of the next one."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)


def grey(width: int, height: int, *more: tuple[int, int, int, int]) -> list[tuple[int, int, int, int]]:
    """The tags of a TIFF of one grey strip."""
    usual = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: 25}
    tags = {number: (number, 4, 1, value) for number, value in usual.items()}
    return [tag for _, tag in sorted((tags | {tag[0]: tag for tag in more}).items())]


def iptc(contents: bytes) -> bytes:
    """An image of IPTC that holds a file."""

    def field(record: int, number: int, value: bytes) -> bytes:
        return struct.pack(">BBBH", 0x1C, record, number, len(value)) + value

    size = field(3, 20, struct.pack(">H", 100)) + field(3, 30, struct.pack(">H", 100))
    return field(3, 60, b"\1\0") + size + field(3, 120, b"\1") + field(8, 10, contents)


def scans(count: int) -> bytes:
    """A progressive JPEG of many scans, each of which says nothing about all of its blocks."""
    side = 8192
    blocks = (side // 8) ** 2
    sound = saved("JPEG", (16, 16), "L", progressive=True)
    head = sound[: sound.index(b"\xff\xda")]
    place = head.index(b"\xff\xc2") + 5
    head = head[:place] + struct.pack(">2H", side, side) + head[place + 4 :]
    table = b"\xff\xc4" + struct.pack(">HB", 3 + 16 + 1, 0x10) + bytes([1] + [0] * 15) + b"\xe0"  # one code: EOB14
    run = "0" + "1" * 14  # the code, and how many blocks beyond 2**14 there are
    bits = run * (blocks // (2**15 - 1) + 1)
    bits += "1" * (-len(bits) % 8)
    body = bytes(int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)).replace(b"\xff", b"\xff\0")
    scan = b"\xff\xda" + struct.pack(">HB2B3B", 8, 1, 1, 0x00, 1, 63, 0x00) + body
    return head + table + scan * count + b"\xff\xd9"


FILES: dict[str, Callable[[], bytes]] = {
    "EPS": lambda: EPS,
    "EPS with a preview": lambda: struct.pack("<4s6I4x", b"\xc5\xd0\xd3\xc6", 32, len(EPS), 0, 0, 0, 0) + EPS,
    "EPS in IPTC": lambda: iptc(EPS),
    "PostScript": lambda: EPS.replace(b" EPSF-3.0", b""),
    "WMF": lambda: b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<4hH6x", 0, 0, 9, 9, 72) + b"\1\0\t\0\0\3" + bytes(40),
    "HDF5": lambda: b"\x89HDF\r\n\x1a\n" + bytes(100),
    "DDS that goes on after its end": lambda: b"DDS "
    + struct.pack("<7I44x", 124, 0x1007, 13000, 13000, 0, 0, 0)
    + struct.pack("<2I4s5I", 32, 0x40, bytes(4), 32, 0xFF, 0xFF00, 0xFF0000, 0)
    + bytes(20),
    "FITS of a gigabyte": lambda: b"".join(
        card.ljust(80)
        for card in (
            *(b"SIMPLE  =                    T", b"BITPIX  =                    8", b"NAXIS   =                    0"),
            *(b"END", *[b""] * 32),
            *(b"XTENSION= 'BINTABLE'", b"BITPIX  =                    8", b"NAXIS   =                    2"),
            *(b"NAXIS1  =                    8", b"NAXIS2  =                    1", b"ZIMAGE  =                    T"),
            *(b"ZCMPTYPE= 'GZIP_1  '", b"ZBITPIX =                    8", b"ZNAXIS  =                    2"),
            *(b"ZNAXIS1 =                 1000", b"ZNAXIS2 =                 1000", b"END", *[b""] * 24),
        )
    )
    + gzip.compress(bytes(1 << 28)) * 4,
    "PNG of 2**62": lambda: png(2**31 - 1, 2**31 - 1),
    "PNG of 20,000 squared": lambda: png(20_000, 20_000, rows=100),
    "PNG of 9,000 squared": lambda: png(9000, 9000, mode=0, rows=9000),  # below all limits of Pillow
    "PNG of a line of 10**8": lambda: png(10**8, 1, mode=0, rows=1),
    "PNG without pixels": lambda: png(0, 5),
    "PNG with a gigabyte of text": lambda: png(5, 5, chunk(b"zTXt", b"a\0\0" + zeros(1 << 30)), rows=5),
    "PNG with a gigabyte of colours": lambda: png(5, 5, chunk(b"iCCP", b"a\0\0" + zeros(1 << 30)), rows=5),
    "PNG with a million texts": lambda: png(5, 5, chunk(b"tEXt", b"a\0b") * 1_000_000, rows=5),
    "PNG with a gigabyte of pixels too many": lambda: png(1000, 5, rows=300_000),
    "GIF of 2**32": lambda: b"GIF89a" + struct.pack("<2H3B", 65535, 65535, 0, 0, 0) + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
    "TIFF that repeats itself": lambda: tiff(*grey(5, 5), following=8),
    "TIFF of 2**62": lambda: tiff(*grey(2**31, 2**31)),
    "TIFF of 2**31 strips": lambda: tiff(*grey(5, 5, (273, 4, 2**31 - 1, 8), (279, 4, 2**31 - 1, 8))),
    "TIFF with 2**32 samples": lambda: tiff(*grey(5, 5, (277, 4, 1, 2**32 - 1))),
    "TIFF with a tag of text for a number": lambda: tiff(*grey(5, 5, (258, 2, 4, 0x41414141))),
    "JPEG of 65,500 squared": lambda: resized(saved("JPEG"), ">2H", 65_500),
    "JPEG of 5,000 scans": lambda: scans(5000),
    "JPEG 2000 of 10**9": lambda: resized(saved("JPEG2000"), ">2I", 30_000),
    "icon of icons": lambda: b"\0\0\1\0\xff\xff" + struct.pack("<4B2H2I", 0, 0, 0, 0, 1, 32, 100, 6) * 65535,
    "text": lambda: b"P3\n10 10\n255\n" + b"1 " * 10,
    "nothing": lambda: b"",
    "a megabyte of letters": lambda: b"iVBORw0KGgo" + b"A" * 1_000_000,
}  # fmt: skip
PNG = png(20, 20, rows=20)
LENGTH = f"Content-Length: {len(PNG)}\r\n\r\n".encode()
ANSWERS: dict[str, Answer] = {
    "sound": file(PNG),
    "EPS": file(EPS),
    "to a file": redirect("file:///etc/passwd"),
    "to ftp": redirect("ftp://127.0.0.1:9/cat.png"),
    "to itself": redirect("/again"),
    "no end": without_end(HEAD + b"\r\n"),
    "a redirect without end": without_end(b"HTTP/1.1 302 Found\r\nLocation: /a\r\n\r\n"),
    "a head without end": without_end(HEAD, b"X: y\r\n"),
    "too long": file(PNG, 1 << 40),
    "too short": file(PNG, len(PNG) + 1),
    "no HTTP": saying(b"220 mail.example\r\n\x1b[2J"),
    "drips": dripping(HEAD + LENGTH, PNG, seconds=100, pause=1),
    "drips a head": dripping(b"", HEAD + LENGTH + PNG, seconds=100, pause=1),
}
NAMED: dict[str, Callable[[Path], object]] = {
    **{name: partial(write, make) for name, make in FILES.items()},
    "pipe": pipe,
    "endless device": partial(link, "/dev/zero"),
    "memory of the process": partial(link, "/proc/self/mem"),
}
_SLOW = ("FITS", "PNG of", "PNG with a", "JPEG of 5", "server drips", "server no end")
REFUSED = tuple(name for name in FILES if not name.startswith((*_SLOW, "TIFF that repeats")))  # at once
ALL = (*NAMED, *(f"server {name}" for name in ANSWERS))
SAMPLE = tuple(name for name in ALL if not name.startswith(_SLOW))[::3]


def cases(names: Iterable[str]) -> dict[str, Case]:
    classify = ("classify", "siglip-shapes", "{path}", "--labels", "a,b")
    served = {
        f"server {name}": Case(
            lambda folder: None, commands=[[*classify[:2], "http://{address}/cat.png", *classify[3:]]], answer=answer
        )
        for name, answer in ANSWERS.items()
    }
    written = {name: Case(write, commands=[classify]) for name, write in NAMED.items()}
    return {name: case for name, case in (served | written).items() if name in names}
