"""Names and values of strangers in Markdown, where a line feed and a backtick would make headings, HTML and links."""

import re

from ..messages import printable

_MARKUP = re.compile(r"[\\`*<>\[\]|]")


def code_span(name: object) -> str:
    """Return a name as code on one line, whatever is in it: `name`."""
    text = printable(str(name))
    longest = max(map(len, re.findall("`+", text)), default=0)
    if not longest:
        return f"`{text}`"
    fence = "`" * (longest + 1)  # what is inside may have any shorter run of backticks
    return f"{fence} {text} {fence}"


def escaped(value: object) -> str:
    """Return a value as plain text on one line."""
    return _MARKUP.sub(r"\\\g<0>", printable(str(value)))
