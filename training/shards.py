"""Tars by their names with braces, and the files in a tar; both within limits, whatever is in them."""

import re
import tarfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import IO, Any

from ..catalogue.addresses import ADDRESS_ERRORS, Clock, is_address, open_address, reason_in_words, shown_address
from ..messages import quoted, shown
from ..processing.tar_headers import BoundedHeader

MAX_SHARDS = 1_000_000
MAX_FILE = 1 << 28  # bytes of an image or a caption
_PART, _PART_SECONDS = 1 << 18, 60.0  # bytes that a server has to send in this time, at least
_MAX_NAMES = 1 << 28  # characters of all names of tars together
_MAX_DEPTH = 20
_NUMBERS = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?")
_LETTERS = re.compile(r"[A-Za-z]\.\.[A-Za-z](?:\.\.-?\d+)?")


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a pattern such as `shards-{000..009}.tar` stands for, as in a shell.

    Raises ValueError for braces that do not match or are too deep, and for a pattern that stands for too many names.
    """
    from braceexpand import braceexpand

    count = _count_names(pattern)
    if count > MAX_SHARDS or count * len(pattern) > _MAX_NAMES:
        raise ValueError(f"Expected the names of at most {MAX_SHARDS:,} tars, got a pattern of more: {shown(pattern)}.")
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


class _Header(BoundedHeader):
    """A bounded header of a file without holes, which could have any size."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(f"{quoted(self.name)} is sparse")
        return super()._proc_member(tar)


def shown_shard(shard: str) -> str:
    """Return the name of a tar as messages print it: an address without what opens doors."""
    return shown_address(shard) if is_address(shard) else shard


@contextmanager
def open_shard(shard: str) -> Iterator[IO[bytes]]:
    """Yield the bytes of a tar, which is a file, or what an http or https address answers.

    A server has a minute for each part of `_PART` bytes. Opening and reading raise OSError where it takes longer.
    """
    if not is_address(shard):
        with Path(shard).open("rb") as file:
            yield file
        return
    with BufferedReader(_Answer(shard), _PART) as answer:
        yield answer


class _Answer(RawIOBase):
    """What a server answers, as a file; the time that it has begins anew with each read."""

    def __init__(self, url: str) -> None:
        self._clock = Clock(_PART_SECONDS)
        self._opened = open_address(url, self._clock)
        with _in_words():
            self._answer = self._opened.__enter__()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._clock.restart()
        with _in_words():
            count = self._answer.readinto(buffer)
        if not count and self._answer.length:
            raise OSError(f"the connection broke {self._answer.length:,} bytes before the end")
        return count

    def close(self) -> None:
        if not self.closed and hasattr(self, "_answer"):
            self._opened.__exit__(None, None, None)
        super().close()


@contextmanager
def _in_words() -> Iterator[None]:
    """Turn every error of an address into an OSError with nothing of what the server wrote."""
    try:
        yield
    except ADDRESS_ERRORS as error:
        raise OSError(reason_in_words(error, _PART_SECONDS)) from None


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
                raise tarfile.ReadError(
                    f"{shown(member.name)} has {member.size:,} bytes, expected at most {MAX_FILE:,}"
                )
            is_wanted = (base_plus_ext(member.name)[1] or "").lower() in kinds
            file = tar.extractfile(member) if is_wanted else None
            yield member.name, file.read() if file is not None else b""
