"""What counts as a text, and a clear error for what does not, with its place in the list."""

from collections.abc import Callable, Iterable
from typing import Any


def clean_texts(text: Any, clean: Callable[[str], str], *place: int) -> Any:
    """Check and clean a text, or texts or lists of words in any kind of column; return lists.

    Raises TypeError for what is no text, and ValueError for one that was decoded wrongly.
    """
    if isinstance(text, str):
        if not text.isascii():
            check_encodable(text, place)
        return clean(text)
    # The columns of NumPy and pandas, and those of Arrow.
    if to_list := getattr(text, "tolist", None) or getattr(text, "to_pylist", None):
        return clean_texts(to_list(), clean, *place)
    # Tables and mappings have several columns (`keys`), and sets have no order.
    is_bytes = isinstance(text, bytes | bytearray)
    if not isinstance(text, Iterable) or is_bytes or type(text) in (set, frozenset) or hasattr(text, "keys"):
        fix = "decode it first, text.decode('utf-8')" if is_bytes else "pass str or a list of str"
        raise TypeError(f"Expected text, got {type(text).__name__}{_at(place)}: {fix}.")
    return [clean_texts(item, clean, *place, position) for position, item in enumerate(text)]


def check_encodable(text: str, place: tuple[int, ...]) -> None:
    """Raise ValueError for a text with half of a surrogate pair; `place` is where in a list it is."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"Expected text, got half of a surrogate pair, {text[error.start]!a} ({error.start}){_at(place)}: "
            "it was decoded wrongly; text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') repairs it."
        ) from error


def _at(place: tuple[int, ...]) -> str:
    """Return where in the list of texts a mistake is, for error messages."""
    return f" at {''.join(f'[{position}]' for position in place)} of the list" if place else ""
