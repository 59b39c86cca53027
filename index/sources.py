"""The images of a job, one after the other in an order that never changes: of a folder, a list of paths, or tars.

Nothing holds all of them. What says where the bytes of an image are is small; the bytes are read when they are needed.
"""

import hashlib
import os
import stat
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from ..messages import shown
from ..processing.image_download import MAX_BYTES
from ..processing.image_files import TAR_SUFFIXES, is_image_name
from ..processing.tar_headers import BoundedHeader

MEMBER = "::"  # between the name of a tar and that of a file in it
_LONGEST_PATH = 1 << 16  # bytes
_BYTES_CHECKED = 4096  # of a list, at its start, for whether it is text

Entry = TypeVar("Entry")


class Item(NamedTuple):
    """An image: its path in the index, and where its bytes are."""

    path: str
    file: str
    start: int = 0  # the place of its first byte in `file`
    size: int = -1  # bytes; -1 is the whole file
    data: bytes | None = None  # of a member of a compressed tar, which has no place
    problem: str = ""  # why it cannot be read

    def read(self) -> bytes:
        """Return the bytes. Raises OSError."""
        if self.problem:
            raise OSError(self.problem)
        if self.data is not None:
            return self.data
        if not stat.S_ISREG(os.stat(self.file).st_mode):  # a pipe would be waited for
            raise OSError("It is not a file.")
        with open(self.file, "rb") as stream:
            stream.seek(self.start)
            return stream.read(self.size)


class Batch(NamedTuple):
    """Images that are embedded together, and the shard to which all of them belong."""

    shard: int
    items: list[Item]
    share: float  # of the source, up to its last image


class Source(Protocol[Entry]):
    """Images in an order."""

    def entries(self) -> Iterator[Entry]:
        """Yield what `item` needs to know of each image, as cheaply as possible: most may be of no interest."""

    def item(self, entry: Entry) -> Item:
        """Return the image of an entry."""

    def share(self, place: int, entry: Entry) -> float:
        """Return which share of the source has been read after the entry at a place."""

    def describe(self) -> dict[str, Any]:
        """Return what tells this source from another, as JSON has it."""


class FolderSource:
    """The images in a folder and the folders in it, sorted by name in each. Links to folders are not followed."""

    def __init__(self, folder: Path) -> None:
        self.folder = os.path.abspath(folder)
        digest = hashlib.sha256()
        self.images = 0
        for path in self.entries():
            digest.update(os.fsencode(path[len(self.folder) :]) + b"\0")
            self.images += 1
        self.digest = digest.hexdigest()
        if not self.images:
            tars = [name for name in sorted(os.listdir(folder)) if name.endswith(TAR_SUFFIXES)]
            hint = f" Its tars, such as {tars[0]}, can be passed themselves." if tars else ""
            raise ValueError(f"Expected images in the folder {folder}, got none.{hint}")

    def entries(self) -> Iterator[str]:
        return _walk(self.folder)

    def item(self, entry: str) -> Item:
        return Item(entry, entry)

    def share(self, place: int, entry: str) -> float:
        return (place + 1) / self.images

    def describe(self) -> dict[str, Any]:
        return {"folder": self.folder, "images": self.images, "sha256": self.digest}


def _walk(folder: str) -> Iterator[str]:
    with os.scandir(folder) as found:
        entries = sorted((entry for entry in found if entry.name[0] != "."), key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)
        elif is_image_name(entry.name) and entry.is_file():
            yield entry.path


class ListSource:
    """The images that a text file names, one a line. Their paths are relative to the file; empty lines do not count."""

    def __init__(self, file: Path) -> None:
        self.file = os.path.abspath(file)
        if not os.path.isfile(self.file):  # a pipe would be waited for, and can be read once
            raise ValueError(f"Expected a folder, a list of paths or tars, got {file}, which is none of them.")
        with open(self.file, "rb") as stream:
            if b"\0" in stream.read(_BYTES_CHECKED) or is_image_name(self.file):
                raise ValueError(f"Expected a folder, a list of paths or tars, got {file}, which is no text file.")
        digest = hashlib.sha256()
        self.images = 0
        for line in self.entries():
            digest.update(line + b"\n")
            self.images += 1
        self.digest = digest.hexdigest()
        if not self.images:
            raise ValueError(f"Expected paths of images in {file}, one a line, got none.")

    def entries(self) -> Iterator[bytes]:
        with open(self.file, "rb") as lines:
            while line := lines.readline(_LONGEST_PATH + 1):
                if len(line) > _LONGEST_PATH:
                    raise ValueError(f"{self.file} has a line of more than {_LONGEST_PATH:,} bytes, which is no path.")
                if stripped := line.strip(b"\r\n"):
                    yield stripped

    def item(self, entry: bytes) -> Item:
        path = os.path.join(os.path.dirname(self.file), os.fsdecode(entry))
        return Item(os.path.normpath(path), path)

    def share(self, place: int, entry: bytes) -> float:
        return (place + 1) / self.images

    def describe(self) -> dict[str, Any]:
        return {"list": self.file, "images": self.images, "sha256": self.digest}


class _Member(NamedTuple):
    archive: int
    name: str
    start: int
    size: int
    data: bytes | None
    problem: str


class TarSource:
    """The images in tars, in the order of the tars and of the files in each of them.

    The rest of a tar that is damaged is one image that cannot be read. A tar compressed by gzip is decompressed from
    its beginning to get at any of its files; of another, only the heads are read.
    """

    def __init__(self, archives: Sequence[Path]) -> None:
        self.archives = [os.path.abspath(archive) for archive in archives]
        if repeated := [archive for archive, count in Counter(self.archives).items() if count > 1]:
            raise ValueError(f"Expected every tar once, got {repeated[0]} more than once.")
        self._ends = [*accumulate(map(os.path.getsize, self.archives), initial=0)]  # bytes up to each archive

    @property
    def is_compressed(self) -> bool:
        """Whether one of the tars is."""
        return any(map(_is_compressed, self.archives))

    def entries(self) -> Iterator[_Member]:
        for number, archive in enumerate(self.archives):
            last = _Member(number, "", 0, 0, None, "")
            try:
                for last in _members(number, archive):
                    yield last
            except (tarfile.TarError, zlib.error, OSError, EOFError) as error:
                yield last._replace(name="", data=None, problem=f"The rest of the tar cannot be read: {error}")

    def item(self, entry: _Member) -> Item:
        file = self.archives[entry.archive]
        path = file + MEMBER + entry.name if entry.name else file
        return Item(path, file, entry.start, entry.size, entry.data, entry.problem)

    def share(self, place: int, entry: _Member) -> float:
        begin, end = self._ends[entry.archive : entry.archive + 2]
        return min(end, begin + entry.start + entry.size) / max(1, self._ends[-1])  # of a compressed tar it is too much

    def describe(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for archive, end in zip(self.archives, self._ends[1:], strict=True):
            digest.update(os.fsencode(archive) + f"\0{end}\n".encode())
        return {"tars": len(self.archives), "first": self.archives[0], "sha256": digest.hexdigest()}


def _members(number: int, archive: str) -> Iterator[_Member]:
    """Yield the images in a tar. Raises an error where it is damaged, whether or not anyone reads its images."""
    is_compressed, length = _is_compressed(archive), os.path.getsize(archive)
    with tarfile.open(archive, "r:gz" if is_compressed else "r:", tarinfo=BoundedHeader) as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # where it would hold all of them
            if not is_compressed and member.offset_data + member.size > length:
                raise tarfile.ReadError("it is cut off")
            if member.isreg() and not member.issparse() and is_image_name(member.name):
                if member.size > MAX_BYTES:
                    raise tarfile.ReadError(f"{shown(member.name)} has {member.size:,} bytes")
                stream = tar.extractfile(member) if is_compressed else None
                data = None if stream is None else stream.read()
                yield _Member(number, member.name, member.offset_data, member.size, data, "")
        files: Any = tar.fileobj
        files.seek(tar.offset)
        if files.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile ends without a word
            raise tarfile.ReadError("it is damaged")


def _is_compressed(archive: str) -> bool:
    with open(archive, "rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def open_source(names: Sequence[str]) -> Source[Any]:
    """Return the images in a folder, in a list of paths, or in tars, of which there may be several.

    Raises FileNotFoundError for what is not there, and ValueError for another mixture and for none at all.
    """
    if missing := [name for name in names if not os.path.exists(name)]:
        raise FileNotFoundError(f"Expected a folder, a list of paths or tars, got {missing[0]}, which is not there.")
    paths = [Path(name) for name in names]
    if paths and all(path.name.endswith(TAR_SUFFIXES) and path.is_file() for path in paths):
        return TarSource(paths)
    if len(paths) != 1:
        raise ValueError(f"Expected one folder, one list of paths, or tars, got {', '.join(names) or 'nothing'}.")
    return FolderSource(paths[0]) if paths[0].is_dir() else ListSource(paths[0])


class Batches:
    """The batches of those shards that are wanted; after the last one, `shards` is the number of all shards.

    A shard is `shard_size` images of the source, a batch `batch_size` of a shard, whatever is wanted: so every run has
    the same batches, and the same numbers.
    """

    def __init__(self, source: Source[Any], shard_size: int, batch_size: int, is_wanted: Callable[[int], bool]) -> None:
        self.source, self.shard_size, self.batch_size, self.is_wanted = source, shard_size, batch_size, is_wanted
        self.shards = 0
        self.first_share = 1.0  # of the source, up to the first image that is wanted

    def __iter__(self) -> Iterator[Batch]:
        items: list[Item] = []
        share, wanted, shards, is_first = 0.0, False, 0, True
        for place, entry in enumerate(self.source.entries()):
            if place % self.shard_size == 0:
                wanted = self.is_wanted(shards)
                shards += 1
            if not wanted:
                continue
            items.append(self.source.item(entry))
            share = self.source.share(place, entry)
            if is_first:
                self.first_share, is_first = share, False
            if len(items) == self.batch_size or (place + 1) % self.shard_size == 0:
                yield Batch(shards - 1, items, share)
                items = []
        if items:
            yield Batch(shards - 1, items, share)
        self.shards = shards
