"""Tars by their names with braces, and the files in a tar; both within limits, whatever is in them."""

import re
import tarfile
from collections.abc import Collection, Iterator
from typing import IO

MAX_SHARDS = 1_000_000
MAX_FILE = 1 << 28  # bytes of an image or a caption
_MAX_NAMES = 1 << 28  # characters of all names of tars together
_MAX_DEPTH = 20
_MAX_HEADER = 1 << 20  # bytes of the extended header of a file, which holds a long name
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_NUMBERS = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?")
_LETTERS = re.compile(r"[A-Za-z]\.\.[A-Za-z](?:\.\.-?\d+)?")


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a pattern such as `shards-{000..009}.tar` stands for, as in a shell.

    Raises ValueError for braces that do not match or are too deep, and for a pattern that stands for too many names.
    """
    from braceexpand import braceexpand

    count = _count_names(pattern)
    if count > MAX_SHARDS or count * len(pattern) > _MAX_NAMES:
        raise ValueError(f"Expected the names of at most {MAX_SHARDS:,} tars, got a pattern of more: {pattern[:80]}.")
    return list(braceexpand(pattern))


def _count_names(pattern: str) -> int:
    """Return how many names a pattern stands for, or any number above `MAX_SHARDS`."""
    product = 1  # of what is read at this depth
    outer: list[tuple[int, int, int]] = []  # of each depth around it: its product, alternatives, and beginning
    place = 0
    while place < len(pattern):
        character = pattern[place]
        if character == "\\":
            place += 1
        elif character == "{":
            if len(outer) == _MAX_DEPTH:
                raise ValueError(f"Expected braces in at most {_MAX_DEPTH} others, got {pattern[:80]}.")
            outer.append((product, 0, place + 1))
            product = 1
        elif character == "," and outer:
            before, alternatives, beginning = outer[-1]
            outer[-1], product = (before, alternatives + product, beginning), 1
        elif character == "}":
            if not outer:
                raise ValueError(f"Expected a {{ for each }}, got {pattern[:80]}.")
            before, alternatives, beginning = outer.pop()
            if numbers := _NUMBERS.fullmatch(pattern, beginning, place):
                first, last, step = (int(number or 1) for number in numbers.groups())
                product = abs(last - first) // (step or 1) + 1
            elif _LETTERS.fullmatch(pattern, beginning, place):
                product = 52
            product = min(before * (alternatives + product), MAX_SHARDS + 1)
        place += 1
    return product


class _Header(tarfile.TarInfo):
    """A header that is refused where reading it takes as much memory as a stranger likes."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _EXTENDED and self.size > _MAX_HEADER:
            raise tarfile.ReadError(f"a header has {self.size:,} bytes, expected at most {_MAX_HEADER:,}")
        if sum(map(len, tar.pax_headers.values())) > _MAX_HEADER:  # those for all files, which add up
            raise tarfile.ReadError(f"its headers have more than {_MAX_HEADER:,} bytes")
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(f"{self.name[:80]!r} is sparse")
        return super()._proc_member(tar)  # type: ignore[misc]


def read_tar(stream: IO[bytes], kinds: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the names of the files in a tar, in their order, with their content if their suffix is one of `kinds`.

    Of others it is empty. Raises tarfile.TarError where a tar is damaged, and for a file that is too large: to read on
    behind one can take as long as somebody likes.
    """
    from webdataset.tariterators import base_plus_ext

    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header) as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # which would hold every header of a tar without an end
            if not member.isreg():
                continue
            if member.size > MAX_FILE:
                raise tarfile.ReadError(f"{member.name[-80:]} has {member.size:,} bytes, expected at most {MAX_FILE:,}")
            is_wanted = (base_plus_ext(member.name)[1] or "").lower() in kinds
            file = tar.extractfile(member) if is_wanted else None
            yield member.name, file.read() if file is not None else b""
