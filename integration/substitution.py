"""For clients that name a class themselves: `from_pretrained` of one class loads another."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any


@contextmanager
def substituted(classes: Mapping[Any, Any]) -> Iterator[None]:
    """Let `from_pretrained` of each key load its value inside the block; classes derived from a key load themselves.

    That reaches clients that have imported the class before, which an exchange of its name would not.
    """
    try:
        for native, own in classes.items():
            native.from_pretrained = _loading(native, own)
        yield
    finally:
        for native in classes:
            if "from_pretrained" in vars(native):
                del native.from_pretrained


def _loading(native: Any, own: Any) -> Any:
    inherited = native.from_pretrained.__func__

    @wraps(inherited)
    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return own.from_pretrained(*args, **kwargs) if cls is native else inherited(cls, *args, **kwargs)

    return classmethod(from_pretrained)
