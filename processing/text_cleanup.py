"""The cleaning of texts in Python: OpenAI's, and the three ways that a JSON of open_clip names.

Source: `open_clip/tokenizer.py`, `get_clean_fn`; its "lower" is OpenAI's `simple_tokenizer.py`.
"""

import html
import re
import string
from collections.abc import Callable
from itertools import islice

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


_LONG_TEXT = 20_000  # characters; shorter ones are cleaned as a whole in a tenth of a second
_LONGEST_SEGMENT = 1_000_000  # characters: ftfy's `max_decode_length`
_UNSURE_WORDS = 40  # at the end of a beginning


def clean_beginning(clean: Callable[[str], str], text: str, words: int) -> str:
    """Return a beginning of `clean(text)`, for one of the cleanings here, that has the given number of whole words.

    It is all of it where the text has fewer. CLIP makes at least one token of a word, which here is one between spaces
    that has a letter or a digit, and none of its tokens spans a space; so a text that is cut after n tokens has the
    same ones with n words as with all. That its beginning is cleaned as in the whole text has these reasons:

    - ftfy repairs a text line by line, a long line in parts of a million characters, from left to right, and what it
      has found in one decides nothing but what it does to later ones. The beginning is made of such parts.
    - HTML entities do not span more than 33 characters, or else have no spaces; an entity that is cut at the end of the
      beginning changes so many words at most, twice. The last 40 words are not used.
    - Upper and lower case, and punctuation, depend on no more than the word that they are in.
    """
    if len(text) <= _LONG_TEXT:
        return clean(text)
    text = _NESTED_AMPERSAND.sub("&amp;" * 9, text)
    length = _LONG_TEXT
    while (end := _end_of_segment(text, length)) < len(text):
        cleaned = clean(text[:end]).split(" ")[:-_UNSURE_WORDS]
        with_letters = (number for number, word in enumerate(cleaned, 1) if any(map(str.isalnum, word)))
        if (enough := next(islice(with_letters, words - 1, None), None)) is not None:
            return " ".join(cleaned[:enough])
        length = 2 * end
    return clean(text)


def _end_of_segment(text: str, position: int) -> int:
    """Return the end of the part of a text that ftfy repairs by itself and that has the character at `position`."""
    start = 0
    while start <= min(position, len(text) - 1):
        line = text.find("\n", start) + 1 or len(text)
        start = min(line, start + _LONGEST_SEGMENT)
    return start


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
