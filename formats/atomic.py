"""Files and folders that appear complete or not at all."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from safetensors import SafetensorError

from .workplace import Workplace

_ERROR_IN_RUST = "(os error "  # in the message of any error by which tokenizers tells of one of the system


@contextmanager
def complete_or_absent(*paths: Path, overwrite: bool = False) -> Iterator[tuple[Path, ...]]:
    """Yield a hidden path for each of `paths`, to be made as a file or a folder; all move to `paths` at the end.

    They are on the disk and readable like any new file before they move, in the order of `paths`. On an error or a
    signal they are removed, and what has moved already is taken back. What is there is replaced with `overwrite` only,
    a folder only as it was when the work began. What runs left here that were killed is put back or removed first.
    Raises OSError with the last path where writing fails.
    """
    new_parents = [parent for path in paths for parent in path.parents if not parent.exists()]
    workplaces: list[Workplace] = []
    with _termination_as_exception():
        try:
            for parent in reversed(new_parents):
                parent.mkdir(exist_ok=True)
            workplaces += [Workplace(path, overwrite) for path in paths]
            for workplace in workplaces:
                workplace.open()
            yield tuple(workplace.new for workplace in workplaces)
            for workplace in workplaces:
                workplace.sync()
            for workplace in workplaces:
                workplace.move()
        except BaseException as error:
            for workplace in reversed(workplaces):
                workplace.take_back()
                workplace.close()
            for parent in new_parents:
                with suppress(OSError):
                    parent.rmdir()
            # No space, no permission, ...
            if isinstance(error, (OSError, SafetensorError)) or _ERROR_IN_RUST in str(error):
                raise OSError(f"Writing {paths[-1]} failed: {error}") from error
            raise
        for workplace in workplaces:
            workplace.close()


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
