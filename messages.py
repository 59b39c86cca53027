"""What error messages quote: names and values out of files, arguments, and lists of faults."""

import reprlib
from collections.abc import Iterable

_LONGEST = 80  # characters of a name or a value
_MOST_ITEMS = 10

_values = reprlib.Repr()  # which looks neither at all nor at the depth of a value
_values.maxlevel = 3
_values.maxlist = _values.maxtuple = _values.maxdict = _values.maxset = 10
_values.maxstring = _values.maxlong = _values.maxother = 2 * _LONGEST


def shown(name: object) -> str:
    """Return a name out of a file as messages print it: at most 80 characters, none of which a terminal obeys."""
    return printable(_cut(str(name) if isinstance(name, str | int) else type(name).__name__))


def quoted(value: object) -> str:
    """Return a value as Python writes it, of which messages print the same: a text in quotation marks."""
    try:
        text = _values.repr(value)
    except ValueError:  # of a number with more digits than Python writes
        text = f"a {type(value).__name__}"
    return printable(_cut(text))


def printable(text: str) -> str:
    """Return a text with escapes for what a terminal would obey, line feeds included."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def listed(items: Iterable[str], separator: str = "; ") -> str:
    """Return the first items of a message, and how many there are beyond."""
    items = list(items)
    beyond = [f"and {len(items) - _MOST_ITEMS:,} more"] if len(items) > _MOST_ITEMS else []
    return separator.join([*items[:_MOST_ITEMS], *beyond])


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]}...{text[3 - _LONGEST // 2 :]}"


def describe_encoding(error: UnicodeDecodeError) -> str:
    """Return what is not UTF-8 in a text, and what to do."""
    data, place = bytes(error.object), error.start
    line = data[data.rfind(b"\n", 0, place) + 1 :].partition(b"\n")[0].decode("latin-1").strip()
    return f"is not in UTF-8, at the byte {data[place]:#04x} in {line[:40]!r}. Save it as UTF-8."
