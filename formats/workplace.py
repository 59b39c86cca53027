"""The hidden folder in which one file or folder is made, and from which it moves to its path in one step."""

import glob
import logging
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from .exchange import exchange, rename_to_free

logger = logging.getLogger(__name__)

_NEW, _OLD, _LOCK = "new", "old", "lock"  # the names in the folder; the lock is held by the run that is at work in it

_NO_LOCKS = (OSError, NotImplementedError)  # what file systems answer that have none

Contents = dict[str, tuple[int, int, int]]  # identity, size and time of change, by path


class Workplace:
    """A hidden folder beside `path`, with `new`, which is to be made, and later with what was at the path before."""

    def __init__(self, path: Path, overwrite: bool) -> None:
        self.path, self.overwrite = path, overwrite
        self.folder = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        self.new, self._old = self.folder / _NEW, self.folder / _OLD
        self._lock = FileLock(self.folder / _LOCK)
        self._moved = self._exchanged = False

    def open(self) -> None:
        """Make the folder. Raises FileExistsError where a killed run left something at the path that is not in it."""
        if _recover(self.path) and not self.overwrite:
            raise FileExistsError(f"a run that was killed had taken {self.path} away, and it is back now")
        self._before = _contents(self.path) if self.path.is_dir() else {}
        self.folder.mkdir()
        with suppress(*_NO_LOCKS):
            self._lock.acquire()
        self.new.touch()
        self._mode = self.new.stat().st_mode  # of new files; safetensors lets nobody but the owner read its own
        self.new.unlink()

    def sync(self) -> None:
        """Have the disk hold every file before one can be seen."""
        for path in (self.new, *self.new.rglob("*")):
            if path.is_file():
                path.chmod(self._mode)
                with path.open("rb+") as stream:
                    os.fsync(stream.fileno())

    def move(self) -> None:
        """Move `new` to the path. Raises OSError where something is there that may not be replaced."""
        if self.path.is_dir() and not (self.overwrite and self.new.is_dir()):
            self.path.rmdir()  # it was empty when the work began; if it no longer is, this fails
        if not self.overwrite or not os.path.lexists(self.path):
            rename_to_free(self.new, self.path)
            self._moved = True
            return
        if self.new.is_dir() and _contents(self.path) != self._before:
            raise FileExistsError(f"{self.path} has changed since this run began, and was left as it is")
        self._exchanged = exchange(self.new, self.path)
        if self._exchanged:
            return
        try:
            os.link(self.path, self._old)  # not of a folder: for a moment, its path is free
        except OSError:
            self.path.rename(self._old)
        self.new.replace(self.path)

    def take_back(self) -> None:
        """Undo `move`, or what it has done before it failed."""
        if self._exchanged:
            exchange(self.new, self.path)
        elif self._moved:
            self.path.rename(self.new)
        elif os.path.lexists(self._old):
            if not os.path.lexists(self.new):
                _remove(self.path)
            self._old.replace(self.path)

    def close(self) -> None:
        """Remove the folder."""
        if self.folder.exists():
            self._lock.release()
            _clear(self.folder)


def _recover(path: Path) -> bool:
    """Remove the folders of runs that were killed; return whether one had taken away what now is at the path again."""
    is_back = False
    for folder in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        if not (folder / _LOCK).is_file():  # another program's, or of a run that has just begun
            continue
        lock = FileLock(folder / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:  # a run is at work there
            continue
        except _NO_LOCKS:
            logger.warning("%s is of another run that writes %s. If that was killed, remove it.", folder, path)
            continue
        try:
            if os.path.lexists(folder / _OLD) and not os.path.lexists(path):
                (folder / _OLD).rename(path)
                is_back = True
        finally:
            lock.release()
        _clear(folder)
        logger.warning(
            "A run was killed that wrote %s. What it left was %s.", path, "put back" if is_back else "removed"
        )
    return is_back


def _contents(path: Path) -> Contents:
    stats = {str(entry): entry.lstat() for entry in (path, *path.rglob("*"))}
    return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def _clear(folder: Path) -> None:
    for name in (_NEW, _OLD, _LOCK):  # the lock at last, since the folder is known by it
        _remove(folder / name)
    try:
        folder.rmdir()
    except OSError:
        logger.warning("%s could not be removed.", folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
