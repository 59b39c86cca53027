"""The `tokenizers` library: its file, and Python's string methods as its steps."""

from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.normalizers import Lowercase, Normalizer, Replace

from .vocabulary_file import MAX_JSON, check_file, check_pieces, readable_vocabulary

# `str.lower()`. `Lowercase` takes letters one by one and so misses that a sigma at the end of a word is written ς.
_BARE = r"[\p{Cased}&&\P{Case_Ignorable}]"
_FINAL_SIGMA = (
    rf"Σ(?<={_BARE}\p{{Case_Ignorable}}{{0,9}}Σ)(?!\p{{Case_Ignorable}}*{_BARE})"  # found fast, by its letter
)
LOWER: list[Normalizer] = [Replace(Regex(_FINAL_SIGMA), "ς"), Lowercase()]
# ASCII punctuation; an underscore becomes a space.
WITHOUT_PUNCTUATION: list[Normalizer] = [Replace("_", " "), Replace(Regex(r"[!-/:-@\[-`{-~]"), "")]


def read_tokenizer_json(path: str | Path) -> Tokenizer:
    """Read a `tokenizer.json` without its padding and truncation; ValueError if it is none."""
    check_file(path, MAX_JSON)
    content = Path(path).read_bytes()
    with readable_vocabulary(path, "a tokenizer.json"):
        check_pieces(content)
        tokenizer = Tokenizer.from_buffer(content)
        tokenizer.no_padding()  # both are the caller's, and a length of the file could be any number
        tokenizer.no_truncation()
    return tokenizer
