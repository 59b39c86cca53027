"""Pairs to train on: tables and captions beside images, tars, whatever is in them."""

import io
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from PIL import Image

from .trial import Case

LARGE = 5 << 30  # bytes, most of them a hole in the file
DEEP = "[" * 100_000


def _png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(stream, "png")
    return stream.getvalue()


def _with_image(folder: Path, name: str, content: bytes) -> None:
    (folder / "file").mkdir()
    (folder / "file" / "a.png").write_bytes(_png())
    (folder / "file" / name).write_bytes(content)


def _table(content: str, folder: Path) -> None:
    _with_image(folder, "metadata.jsonl", content.encode())


def _hole(name: str, folder: Path) -> None:
    """Make a file of 5 GB that takes no place on the disk."""
    _with_image(folder, name, b"")
    with (folder / "file" / name).open("wb") as file:
        file.truncate(LARGE)


def _tar(members: Iterable[tuple[str, bytes]], folder: Path) -> None:
    with tarfile.open(folder / "file.tar", "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def _compressed(kind: bytes, name: str, size: int, held: int, folder: Path) -> None:
    """Make a tar of about a thousandth of its size whose first member promises `size` bytes, and has `held` zeros."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    with (folder / "file.tar").open("wb") as file:
        file.write(b"\x1f\x8b\x08" + bytes(7))  # of gzip
        file.write(compressor.compress(member.tobuf()) + compressor.flush(zlib.Z_FULL_FLUSH))
        # After a full flush a part does not depend on what came before.
        block = compressor.compress(bytes(1 << 20)) + compressor.flush(zlib.Z_FULL_FLUSH)
        file.write(block * (held >> 20))


def _sparse_member(folder: Path) -> None:
    """Make a tar with a member that says that it has 5 GB, and stores nothing."""
    member = tarfile.TarInfo("a.png")
    member.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[483:495] = b"0" + f"{LARGE:011o}".encode()  # the size with its holes
    block[148:156] = b"        "
    block[148:156] = f"{sum(block[:512]):06o}\0 ".encode()
    (folder / "file.tar").write_bytes(bytes(block) + bytes(1024))


def _pipe(folder: Path) -> None:
    (folder / "file").mkdir()
    os.mkfifo(folder / "file" / "a.png")
    (folder / "file" / "a.txt").write_text("a caption")


ROW = '{"file_name": "a.png", "text": %s}\n'
FOLDERS: dict[str, Callable[[Path], None]] = {
    "a caption of lists": partial(_table, ROW % (DEEP + "]" * 100_000)),
    "a caption of 900 lists": partial(_table, ROW % ("[" * 900 + "]" * 900)),
    "a row of lists": partial(_table, DEEP),
    "a row of objects": partial(_table, '{"a":' * 100_000),
    "a caption of a number": partial(_table, ROW % ("1" * 5000)),
    "10 MB of columns": partial(_table, json.dumps({f"column {n}": 1 for n in range(600_000)})),
    "a table of a hole": partial(_hole, "metadata.jsonl"),
    "a .csv of a hole": partial(_hole, "metadata.csv"),
    "captions of a hole": partial(_hole, "a.txt"),
    "a pipe": _pipe,
}
TARS: dict[str, Callable[[Path], None]] = {
    "deep JSON": partial(_tar, [("a.png", _png()), ("a.json", DEEP.encode())]),
    "deep objects": partial(_tar, [("a.png", _png()), ("a.json", b'{"caption":' * 50_000)]),
    "an image of 5 GB": partial(_compressed, tarfile.REGTYPE, "a.png", LARGE, 3 << 29),
    "an image of 5 GB that is not stored": _sparse_member,
    "a long name": partial(_compressed, tarfile.GNUTYPE_LONGNAME, "a", 2 << 30, 2 << 30),
    "a long link": partial(_compressed, tarfile.GNUTYPE_LONGLINK, "a", 2 << 30, 2 << 30),
    "long settings": partial(_compressed, tarfile.XHDTYPE, "a", 2 << 30, 2 << 30),
    "long settings of all": partial(_compressed, tarfile.XGLTYPE, "a", 2 << 30, 2 << 30),
    "a name that leaves the folder": partial(_tar, [("../a.png", b"x"), ("/etc/a.png", b"x")]),
}
ALL = SAMPLE = (*FOLDERS, *TARS)


def cases(names: Iterable[str]) -> dict[str, Case]:
    import matplotlib.figure  # noqa: F401  (what it makes for itself is made before the canary watches)

    import twinlens.training.run  # noqa: F401

    commands = (("train", "siglip-shapes", "{path}", "{out}", "--steps", "1", "--batch-size", "1", "--dry-run"),)
    return {
        name: Case(FOLDERS[name], commands=commands) if name in FOLDERS else Case(TARS[name], "file.tar", commands)
        for name in names
    }
