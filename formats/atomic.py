"""Files and folders that appear complete or not at all."""

import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from safetensors import SafetensorError


@contextmanager
def complete_or_absent(*paths: Path, overwrite: bool = False) -> Iterator[tuple[Path, ...]]:
    """Yield a hidden sibling of each path, to be made as a file or a folder; rename them to the paths at the end.

    They are on the disk and readable like any new file before they are renamed, in the order of `paths`. On an error or
    a signal they are removed, and files that were renamed already are what they were. An existing folder that is not
    empty is replaced only with `overwrite`, a file always. Raises OSError with the last path where writing fails.
    """
    partials = tuple(path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial") for path in paths)
    new_parents = [parent for path in paths for parent in path.parents if not parent.exists()]
    earlier: list[tuple[Path, Path, Path]] = []  # of files before the last: path, partial, copy of the old one
    with _termination_as_exception():
        try:
            for parent in reversed(new_parents):
                parent.mkdir(exist_ok=True)
            mode = _mode_of_new_files(partials[0])
            yield partials
            for partial in partials:
                _sync(partial, mode)
            for path, partial in zip(paths, partials, strict=True):
                if path != paths[-1] and partial.is_file():
                    old = partial.with_suffix(".old")
                    earlier.append((path, partial, old))
                    if path.is_file():
                        shutil.copy2(path, old)
                _replace(path, partial, overwrite)
            for _, _, old in earlier:
                _remove(old)
        except BaseException as error:
            for path, partial, old in earlier:
                if not partial.exists():  # it was renamed
                    _remove(path)
                    if old.exists():
                        old.rename(path)
                _remove(old)
            for partial in partials:
                _remove(partial)
            for parent in new_parents:
                with suppress(OSError):
                    parent.rmdir()
            if isinstance(error, (OSError, SafetensorError)):  # no space, no permission, ...
                raise OSError(f"Writing {paths[-1]} failed: {error}") from error
            raise


def _mode_of_new_files(path: Path) -> int:
    """Return the permissions that the user gives new files; safetensors lets nobody but the owner read its own."""
    path.touch()
    mode = path.stat().st_mode
    path.unlink()
    return mode


def _sync(partial: Path, mode: int) -> None:
    """Have the disk hold every file before a rename makes it visible."""
    for path in (partial, *partial.rglob("*")):
        if path.is_file():
            path.chmod(mode)
            with path.open("rb+") as stream:
                os.fsync(stream.fileno())


def _replace(path: Path, partial: Path, overwrite: bool) -> None:
    if not path.is_dir():
        partial.replace(path)
        return
    old = partial.with_suffix(".old")
    try:
        if overwrite:
            path.rename(old)
        else:
            path.rmdir()  # it was empty when the work began; if it no longer is, this fails
        partial.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def _termination_as_exception() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that what was begun is removed; a handler of the caller's stays in place."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
