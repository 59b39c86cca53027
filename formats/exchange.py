"""Two renames that `os` lacks: to a name that must be free, and of two names with each other in one step."""

import ctypes
import errno
import os
import sys
from pathlib import Path

_NO_REPLACE, _EXCHANGE = 1, 2  # linux/fs.h: RENAME_NOREPLACE, RENAME_EXCHANGE
_CURRENT_FOLDER = -100  # linux/fcntl.h: AT_FDCWD
# What a kernel without the call answers, a file system without the flag, and a sandbox that does not know the call.
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


def rename_to_free(old: Path, new: Path) -> None:
    """Rename `old` to a name that nothing has. Raises FileExistsError."""
    if _renameat2(old, new, _NO_REPLACE):
        return
    if os.path.lexists(new):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new))
    old.rename(new)


def exchange(first: Path, second: Path) -> bool:
    """Give each of two files or folders the name of the other, in one step; return False where the system cannot."""
    return _renameat2(first, second, _EXCHANGE)


def _renameat2(old: Path, new: Path, flag: int) -> bool:
    """Return whether the system knows such a rename. Raises OSError where it does, and refuses this one."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if call is None:
        return False
    if call(_CURRENT_FOLDER, os.fsencode(old), _CURRENT_FOLDER, os.fsencode(new), flag) == 0:
        return True
    if (number := ctypes.get_errno()) in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(old), None, str(new))
