"""The cleaning of texts in Python: OpenAI's, and the three ways that a JSON of open_clip names.

Source: `open_clip/tokenizer.py`, `get_clean_fn`; its "lower" is OpenAI's `simple_tokenizer.py`.
"""

import html
import re
import string
from collections.abc import Callable

import ftfy
import regex

# In ASCII ftfy changes entities, control characters and the ends of lines; these stay white space.
_NOTHING_TO_REPAIR = re.compile(r"[\t\n\f\r -%'-~]*")
# Each pass of ftfy undoes one level of "&amp;amp;amp;...", which takes forever where there are very many.
_NESTED_AMPERSAND = re.compile(r"&(?:(?:amp|AMP|#0*38|#[xX]0*26);){9,}")
_WITHOUT_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


def whitespace(text: str) -> str:
    """Repair encoding, undo HTML entities twice, make white space single."""
    if not _NOTHING_TO_REPAIR.fullmatch(text):
        text = _NESTED_AMPERSAND.sub("&amp;" * 9, text)
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


def lower(text: str) -> str:
    """Do the same, and lower-case."""
    return whitespace(text).lower()


def canonicalize(text: str) -> str:
    """Do the same, and drop ASCII punctuation; an underscore becomes a space."""
    return " ".join(whitespace(text).translate(_WITHOUT_PUNCTUATION).lower().split())


# A word of punctuation may begin with what spells a special token; only where no other word has begun, it is one.
_PUNCTUATION_OR_SPECIAL = regex.compile(
    r"<(?P<special>start|end)_of_text>|[^\s\p{L}\p{N}]+(?P<hidden>(?<=<\|)(?=(?:start|end)oftext\|>))?",
    regex.IGNORECASE,
)


def spell_specials(text: str) -> str:
    """Spell CLIP's special tokens as its vocabulary does where open_clip reads them, and what it does not read apart.

    In a text, open_clip's are <start_of_text> and <end_of_text>, OpenAI's <|startoftext|> and <|endoftext|>.
    """
    if "_of_text>" not in text and "oftext|>" not in text:
        return text

    def spell(found: "regex.Match[str]") -> str:
        if (special := found["special"]) and found[0].islower():
            return f"<|{special}oftext|>"
        return found[0] + (" " if found["hidden"] is not None else "")

    return _PUNCTUATION_OR_SPECIAL.sub(spell, text)


OPEN_CLIP_CLEANUPS: dict[str, Callable[[str], str]] = {
    "open_clip_canonicalize": canonicalize,
    "open_clip_lower": lower,
    "open_clip_whitespace": whitespace,
}
